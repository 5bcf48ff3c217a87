"""What the worker's tests have in the place of `deployments.intake` and `deployments.register`."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from job_rows_fixture import JobMaker

from clara_flow.errors import InputError

engines: list[sa.Engine] = []
seen: list[dict[str, Any]] = []
registered: list[str] = []


def job_for_flow_run(flow_run_id: UUID, **facts: Any) -> UUID:
    """A job that waits; a run with the input `nowhere` is refused."""
    seen.append(facts)
    if facts["parameters"].get("input") == "nowhere":
        raise InputError("there is no folder nowhere")
    return JobMaker(engines[-1]).queued(flow_run_id=flow_run_id).id


def register_again(engine: sa.Engine, *, pool: str, api_url: str) -> int:
    """Notes that it was called."""
    del engine, api_url
    registered.append(pool)
    return 0
