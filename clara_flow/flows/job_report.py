"""What a job leaves in the Prefect UI: artifacts for people. Nothing here decides anything."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact

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
    states = {row.name: str(row.detail) for row in rows}
    drawn = await asyncio.to_thread(drawing.to_svg, plan, states)
    image = _data_uri(drawn.encode(), ".svg")
    wanted: list[Coroutine[Any, Any, UUID]] = [  # without keys: versions of each other they are not, and keys cost time
        acreate_image_artifact(image_url=image, description=f"The pipeline {plan.name}"),
        acreate_markdown_artifact(markdown=_report(rows, payload), description="Operators and payload"),
    ]
    for picture in await asyncio.to_thread(_pictures, plan, payload):
        uri = _data_uri(picture.read_bytes(), picture.suffix)
        wanted.append(acreate_image_artifact(image_url=uri, description=picture.name))
    await asyncio.gather(*wanted)


def _pictures(plan: Plan, payload: PayloadFolder) -> list[Path]:
    """Pictures that completed operators wrote, the first few that are small enough to be shown."""
    found = []
    for operator in plan.operators:
        folder = payload.operator_folder(operator.name)
        found += [path for path in sorted(folder.rglob("*.png")) if path.stat().st_size <= PICTURE_LIMIT_BYTES]
    return found[:SHOWN_PICTURES]


HEADINGS = ("operator", "state", "waited (s)", "run time (s)", "peak memory (MiB)", "exit code", "message")


def _report(operators: Iterable[JobOperator], payload: PayloadFolder) -> str:
    """The table of operators and the link to the payload folder, in Markdown."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *(_row(operator) for operator in operators)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\nPayload folder: [{payload.path}]({payload.path.as_uri()})\n"


def _row(operator: JobOperator) -> tuple[str, ...]:
    peak = operator.peak_memory_bytes
    facts = (
        operator.name,
        str(operator.detail),
        _rounded(operator.waited_s),
        _rounded(operator.run_time_s),
        None if peak is None else peak // 2**20,
        operator.exit_code,
        operator.message,
    )
    return tuple("" if fact is None else str(fact).replace("|", "\\|").replace("\n", "<br>") for fact in facts)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)


def _data_uri(content: bytes, suffix: str) -> str:
    return f"data:{PICTURE_TYPES[suffix]};base64,{base64.b64encode(content).decode()}"
