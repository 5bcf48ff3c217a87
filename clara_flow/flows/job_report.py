"""What a job leaves in the Prefect UI: artifacts for people. Nothing here decides anything."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import acreate_image_artifact, acreate_link_artifact, acreate_table_artifact

from clara_flow.flows import drawing
from clara_flow.plan import Plan
from clara_flow.records.models import JobOperator
from clara_flow.records.payload_store import PayloadFolder

PICTURE_LIMIT_BYTES = 600_000  # a data URI travels in one API request; Prefect's own limit is about 1 MB
SHOWN_PICTURES = 4
PICTURE_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


async def publish(plan: Plan, operators: Iterable[JobOperator], payload: PayloadFolder) -> None:
    """Create the job's artifacts in the current flow run: the pipeline's picture coloured by state, the table of
    operators, the link to the payload folder, and the pictures among the results.
    """
    rows = list(operators)
    key = re.sub(r"[^a-z0-9]+", "-", plan.name.lower()).strip("-") or "pipeline"
    states = {row.name: str(row.detail) for row in rows}
    drawn = await asyncio.to_thread(drawing.to_svg, plan, states)
    wanted: list[Coroutine[Any, Any, UUID]] = [
        acreate_image_artifact(
            image_url=_data_uri(drawn.encode(), ".svg"), key=f"{key}-pipeline", description=f"The pipeline {plan.name}"
        ),
        acreate_table_artifact(table=[_row(row) for row in rows], key=f"{key}-operators", description="Operators"),
        acreate_link_artifact(
            link=payload.path.as_uri(), link_text=str(payload.path), key=f"{key}-payload", description="Payload folder"
        ),
    ]
    for picture in await asyncio.to_thread(_pictures, plan, payload):
        uri = _data_uri(picture.read_bytes(), picture.suffix)
        wanted.append(acreate_image_artifact(image_url=uri, key=f"{key}-result", description=picture.name))
    await asyncio.gather(*wanted)


def _pictures(plan: Plan, payload: PayloadFolder) -> list[Path]:
    """Pictures that completed operators wrote, the first few that are small enough to be shown."""
    found = []
    for operator in plan.operators:
        folder = payload.operator_folder(operator.name)
        found += [path for path in sorted(folder.rglob("*.png")) if path.stat().st_size <= PICTURE_LIMIT_BYTES]
    return found[:SHOWN_PICTURES]


def _row(operator: JobOperator) -> dict[str, Any]:
    return {
        "operator": operator.name,
        "state": str(operator.detail),
        "waited (s)": _rounded(operator.waited_s),
        "run time (s)": _rounded(operator.run_time_s),
        "peak memory (MiB)": None if operator.peak_memory_bytes is None else operator.peak_memory_bytes // 2**20,
        "exit code": operator.exit_code,
        "message": operator.message,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)


def _data_uri(content: bytes, suffix: str) -> str:
    return f"data:{PICTURE_TYPES[suffix]};base64,{base64.b64encode(content).decode()}"
