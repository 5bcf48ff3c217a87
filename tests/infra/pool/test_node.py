"""A machine of the pool with its dispatcher, its runners and a real database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from pool_records import PLAN
from postgres_fixture import empty_database_url  # noqa: F401
from waiting import eventually

from clara_flow.infra.pool import node
from clara_flow.infra.pool.node import PoolNode
from clara_flow.records import database, jobs, leases, payloads, pipelines
from clara_flow.records.job_queue import MOST_REQUEUES
from clara_flow.records.state_machine import JobPhase
from clara_flow.settings import load_settings

TESTS = Path(__file__).parents[2]


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[sa.Engine]:  # noqa: F811
    database.migrate(empty_database_url)
    engine = database.connect(empty_database_url)
    yield engine
    engine.dispose()


def test_a_job_that_kills_every_runner_before_it_begins_ends_with_the_reason(
    engine: sa.Engine,
    empty_database_url: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node, "RUNNER_PROGRAM", "tiny.crashing_runner")
    settings = load_settings(
        data_dir=tmp_path, database_url=empty_database_url, node_name="node-1", warm_runners=1, node_jobs=1, poll_s=0.5
    )
    pipeline = pipelines.create_pipeline(engine, name="brain", definition="", plan=PLAN)
    payload = payloads.create_payload(engine)
    demand = {"job": {}, "first": None, "needs": [], "limit_s": 60}
    job = jobs.create_job(
        engine, name="j", pipeline_id=pipeline.id, payload_id=payload.id, operators=("reader",), runtime="process",
        timeout_s=60, demand=demand,
    )  # fmt: skip
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    machine = PoolNode(settings, environment={**os.environ, "PYTHONPATH": path})
    machine.start()
    try:
        eventually(lambda: jobs.get_job(engine, job.id).phase is JobPhase.FAULTED, within_s=120)
    finally:
        machine.stop()
    ended = jobs.get_job(engine, job.id)
    assert ended.losses == MOST_REQUEUES
    assert ended.messages.count("its runner ended before it began: it ended with exit status 11") == MOST_REQUEUES + 1
    assert (
        ended.messages[-1] == f"it was queued again {MOST_REQUEUES} times after its runner was lost, and not once more"
    )
    assert [line.split()[1] for line in ended.story] == ["create", "start", *["requeue"] * MOST_REQUEUES, "fault"]
    assert leases.load(engine) == []
