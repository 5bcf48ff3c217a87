"""The worker against a real Prefect server. The node that it hosts has tests of its own; here one that does nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
import sqlalchemy as sa
import worker_intake
from job_rows_fixture import JobMaker
from postgres_fixture import database_url  # noqa: F401
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, PREFECT_WORKER_QUERY_SECONDS, temporary_settings
from prefect_fixture import OwnPrefect, prefect  # noqa: F401
from waiting import eventually

from clara_flow.deployments import register
from clara_flow.infra.history.historian import Historian
from clara_flow.infra.pool import worker as module
from clara_flow.infra.pool.variables import PoolVariables, base_job_template
from clara_flow.infra.pool.work_pool import QUEUES, WORKER_TYPE
from clara_flow.infra.pool.worker import ClaraGpuWorker
from clara_flow.records import database, jobs
from clara_flow.records.state_machine import JobPhase, JobState
from clara_flow.settings import Settings

PREFECT_COMMAND = Path(sys.executable).with_name("prefect")


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:  # noqa: F811
    engine = database.connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE leases, job_operators, jobs, pipelines, payloads"))
    yield engine
    engine.dispose()


class IdleNode:
    """A node that joins and leaves."""

    def __init__(self) -> None:
        self.joined = threading.Event()
        self.left = threading.Event()

    def start(self) -> None:
        self.joined.set()

    def stop(self) -> None:
        self.left.set()


class Running:
    """A worker at work, and what tests ask of it."""

    def __init__(self, worker: ClaraGpuWorker, node: IdleNode, task: asyncio.Task[None]) -> None:
        self.worker, self.node, self.task = worker, node, task
        self.pool = worker._work_pool_name


@contextlib.asynccontextmanager
async def working(api_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    node = IdleNode()

    def make(settings: Settings, on_waiting: Callable[..., None]) -> IdleNode:
        del settings, on_waiting
        return node

    monkeypatch.setattr(ClaraGpuWorker, "node_factory", staticmethod(make))
    monkeypatch.setattr(module, "INTAKE", "worker_intake:job_for_flow_run")
    monkeypatch.setattr(module, "REGISTER", "worker_intake:register_again")
    with temporary_settings({PREFECT_API_URL: api_url, PREFECT_WORKER_QUERY_SECONDS: 0.5}):
        worker = ClaraGpuWorker(f"pool-{uuid4().hex[:8]}", name="tests", heartbeat_interval_seconds=1)
        task = asyncio.create_task(worker.start(printer=lambda *_: None))
        await asyncio.to_thread(eventually, lambda: node.joined.is_set() or task.done(), within_s=20)
        yield Running(worker, node, task)
        task.cancel()
        await asyncio.wait({task})
        # Prefect's event service stays with the first server that a process talks to: others follow in this one.
        await asyncio.to_thread(EventsWorker.drain_all, timeout=5)
        assert node.left.is_set()


@pytest_asyncio.fixture
async def running(
    prefect: OwnPrefect,  # noqa: F811
    engine: sa.Engine,
    database_url: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Running]:
    """A worker of a pool of its own, which it has made."""
    monkeypatch.setenv("CLARA_FLOW_DATABASE_URL", database_url)
    worker_intake.engines.append(engine)
    worker_intake.seen.clear()
    worker_intake.registered.clear()
    async with working(prefect.api_url, monkeypatch) as it:
        await asyncio.to_thread(eventually, lambda: len(queues(prefect, it.pool)) == len(QUEUES) + 1, within_s=30)
        yield it


def queues(prefect: OwnPrefect, pool: str) -> dict[str, int]:  # noqa: F811
    """Priorities of a pool's queues by name; empty when there is no pool."""
    pools = prefect.post("/work_pools/filter", {"work_pools": {"name": {"any_": [pool]}}})
    found = prefect.post(f"/work_pools/{pool}/queues/filter", {}) if pools else []
    return {queue["name"]: queue["priority"] for queue in found}


async def quick_run(prefect: OwnPrefect, engine: sa.Engine, pool: str, **body: Any) -> str:  # noqa: F811
    """A run as the UI makes it from a deployment."""
    pipeline = JobMaker(engine).pipeline()
    deployment = await asyncio.to_thread(
        register.register_pipeline, engine, pipeline, pool=pool, api_url=prefect.api_url
    )
    run = await asyncio.to_thread(
        prefect.post, f"/deployments/{deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}, **body}
    )
    return str(run["id"])


async def within(seconds: float, predicate: Callable[[], object]) -> None:
    await asyncio.to_thread(eventually, predicate, within_s=seconds)


def test_the_form_is_one_that_people_can_fill_in() -> None:
    template = base_job_template()
    fields = template["variables"]["properties"]
    assert set(fields) == set(template["job_configuration"]) == set(PoolVariables.model_fields)
    assert {"gpus", "gpu_memory", "cpu", "memory", "fastio_size", "timeout", "runtime", "tenant", "scheduling"} < set(
        fields
    )
    assert all(field["title"] and field["description"] for field in fields.values())


def test_the_pool_can_be_made_by_prefects_own_command(prefect: OwnPrefect) -> None:  # noqa: F811
    name = f"pool-{uuid4().hex[:8]}"
    done = subprocess.run(
        [PREFECT_COMMAND, "work-pool", "create", "--type", WORKER_TYPE, name],
        env={**os.environ, "PREFECT_API_URL": prefect.api_url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = prefect.get(f"/work_pools/{name}")
    assert (made["type"], made["base_job_template"]) == (WORKER_TYPE, base_job_template())


async def test_the_worker_makes_its_pool_with_four_queues(running: Running, prefect: OwnPrefect) -> None:  # noqa: F811
    there = queues(prefect, running.pool)
    assert [name for name in sorted(there, key=lambda name: there[name]) if name in QUEUES] == list(QUEUES)
    assert worker_intake.registered == [running.pool]


async def test_a_quick_run_becomes_a_job_and_is_never_called_crashed(
    running: Running,
    prefect: OwnPrefect,  # noqa: F811
    engine: sa.Engine,
) -> None:
    run = await quick_run(
        prefect, engine, running.pool, parameters={"input": "/study"}, job_variables={"tenant": "radiology"}
    )
    await within(20, lambda: prefect.flow_run(run)["infrastructure_pid"])
    (facts,) = worker_intake.seen
    assert facts["parameters"] == {"input": "/study"}
    assert facts["job_variables"] == {"tenant": "radiology"}
    assert facts["work_queue"] == "normal"
    assert facts["deployment_id"] is not None
    (job,) = jobs.list_jobs(engine)
    assert str(job.flow_run_id) == run
    assert prefect.flow_run(run)["infrastructure_pid"].endswith(run)
    jobs.fault_job(engine, job.id, messages=["no"])
    await within(10, lambda: not running.worker._followed)
    assert prefect.state(run)[0] == "PENDING"  # its true end is the historian's to show


async def test_a_quick_run_that_cannot_be_is_refused_with_the_reason(
    running: Running,
    prefect: OwnPrefect,  # noqa: F811
    engine: sa.Engine,
) -> None:
    run = await quick_run(prefect, engine, running.pool, parameters={"input": "nowhere"})
    await within(20, lambda: prefect.state(run) == ("FAILED", "Refused"))
    assert prefect.flow_run(run)["state"]["message"] == "there is no folder nowhere"


async def test_retry_of_a_run_that_is_over_comes_in_with_its_job(
    running: Running,
    prefect: OwnPrefect,  # noqa: F811
    engine: sa.Engine,
) -> None:
    job = JobMaker(engine).completed()
    historian = Historian(engine, prefect.api_url, pool=running.pool)
    await historian.server.open()
    run = await historian.tell(job)
    await historian.server.close()
    again = {"type": "SCHEDULED", "name": "AwaitingRetry"}  # what the UI's Retry asks for
    prefect.post(f"/flow_runs/{run}/set_state", {"state": again, "force": True})
    await within(20, lambda: prefect.flow_run(run)["infrastructure_pid"])
    assert worker_intake.seen[-1]["parameters"] == {"job_id": str(job.id)}


async def test_the_buttons_of_the_ui_cancel_a_waiting_job(
    running: Running,
    prefect: OwnPrefect,  # noqa: F811
    engine: sa.Engine,
) -> None:
    run = await quick_run(prefect, engine, running.pool, parameters={"input": "/study"})
    await within(20, lambda: prefect.flow_run(run)["infrastructure_pid"])
    prefect.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    await within(10, lambda: jobs.list_jobs(engine)[0].phase is JobPhase.CANCELED)
    await within(10, lambda: prefect.state(run) == ("CANCELLED", "Cancelled"))


async def test_a_run_that_prefect_gives_up_is_cancelled(running: Running, engine: sa.Engine) -> None:
    run_id = uuid4()
    job = JobMaker(engine).queued(flow_run_id=run_id)
    await running.worker.kill_infrastructure(f"host:1:{run_id}", configuration=None)  # type: ignore[arg-type]
    assert jobs.get_job(engine, job.id).state is JobState.STOPPED


async def test_the_worker_outlives_the_server_and_its_database(
    running: Running,
    prefect: OwnPrefect,  # noqa: F811
    engine: sa.Engine,
) -> None:
    await asyncio.to_thread(prefect.wipe)
    await within(60, lambda: len(queues(prefect, running.pool)) == len(QUEUES) + 1)
    assert worker_intake.registered == [running.pool] * 2
    run = await quick_run(prefect, engine, running.pool, parameters={"input": "/study"})
    await within(60, lambda: prefect.flow_run(run)["infrastructure_pid"])
    assert not running.task.done()


async def test_a_worker_starts_without_prefect(
    engine: sa.Engine,
    database_url: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del engine
    monkeypatch.setenv("CLARA_FLOW_DATABASE_URL", database_url)
    async with working("http://127.0.0.1:9/api", monkeypatch) as it:
        await within(20, lambda: it.worker.is_setup or it.task.done())
        assert not it.task.done()
