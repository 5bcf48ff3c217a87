"""Fixtures of the records' tests."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence

import pytest
import sqlalchemy as sa
from pool_records import OWNER, PLAN
from postgres_fixture import database_url, empty_database_url  # noqa: F401

from clara_flow.records import database, jobs, payloads, pipelines
from clara_flow.records.models import Job


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:  # noqa: F811
    """An engine on a migrated database without rows."""
    engine = database.connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE leases, nodes, quotas, job_operators, jobs, pipelines, payloads"))
    yield engine
    engine.dispose()


@pytest.fixture
def make_job(engine: sa.Engine) -> Callable[..., Job]:
    pipeline = pipelines.create_pipeline(engine, name="brain", definition="api-version: 0.4.0", plan=PLAN)

    def make(name: str = "study", operators: Sequence[str] = ("reader", "segment"), **more: object) -> Job:
        payload = payloads.create_payload(engine)
        facts = {"runtime": "process", "timeout_s": 600, "pipeline_id": pipeline.id, "payload_id": payload.id, **more}
        return jobs.create_job(engine, name=name, operators=operators, **facts)  # type: ignore[arg-type]

    return make


@pytest.fixture
def running(engine: sa.Engine, make_job: Callable[..., Job]) -> Job:
    return jobs.begin_job(engine, make_job().id, OWNER, flow_run_id=uuid.uuid4())
