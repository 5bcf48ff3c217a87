"""The historian against a real server and real records."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
import sqlalchemy as sa
from job_rows_fixture import JobMaker
from prefect_fixture import OwnPrefect
from waiting import eventually

from clara_flow.infra.history import historian as module
from clara_flow.infra.history.historian import Historian
from clara_flow.infra.history.server import ServerAway
from clara_flow.infra.ledger.model import Ask
from clara_flow.infra.pool.work_pool import WORKER_TYPE
from clara_flow.records import jobs

POOL = "history-tests"


@pytest.fixture(autouse=True)
def work_pool(prefect: OwnPrefect, engine: sa.Engine) -> Iterator[None]:
    """A pool of the tests' own, empty; no job is there yet."""
    prefect.post("/work_pools/", {"name": POOL, "type": WORKER_TYPE})
    for queue in ("normal",):
        prefect.post(f"/work_pools/{POOL}/queues", {"name": queue})
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE leases, job_operators, jobs, pipelines, payloads"))
    yield
    for run in prefect.post("/flow_runs/filter", {"work_pools": {"name": {"any_": [POOL]}}}):
        prefect.post(f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLED"}, "force": True})
    import httpx

    httpx.delete(f"{prefect.api_url}/work_pools/{POOL}", timeout=30).raise_for_status()


@pytest_asyncio.fixture
async def historian(prefect: OwnPrefect, engine: sa.Engine) -> AsyncIterator[Historian]:
    """One that does what it is told, and nothing by itself."""
    historian = Historian(engine, prefect.api_url, pool=POOL)
    await historian.server.open()
    yield historian
    await historian.server.close()


def moment(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


async def test_a_job_that_nobody_told_of_is_filled_in_with_its_true_times(
    historian: Historian, prefect: OwnPrefect, make_job: JobMaker, engine: sa.Engine
) -> None:
    job = make_job.faulted()
    jobs.mark_history_due(engine, job.id)
    assert await historian.catch_up() == 1
    assert await historian.catch_up() == 0
    told = jobs.get_job(engine, job.id)
    assert told.flow_run_id is not None
    shown = prefect.flow_run(told.flow_run_id)
    assert (shown["state_type"], shown["state_name"]) == ("FAILED", "Faulted")
    assert "segment exited with 3" in shown["state"]["message"]
    assert "It ran from" in shown["state"]["message"]
    assert (shown["work_pool_name"], shown["work_queue_name"]) == (POOL, "normal")
    eventually(lambda: len(prefect.task_runs(told.flow_run_id)) == 3, within_s=15)
    tasks = prefect.task_runs(told.flow_run_id)
    states = {name: run["state_name"] for name, run in tasks.items()}
    assert states == {"reader": "Completed", "segment": "Failed", "writer": "Skipped"}
    rows = {row.name: row for row in jobs.list_operators(engine, job.id)}
    started, stopped = rows["segment"].started, rows["segment"].stopped
    assert started is not None
    assert stopped is not None
    assert moment(tasks["segment"]["start_time"]) == pytest.approx(started.timestamp(), abs=1e-3)
    assert moment(tasks["segment"]["end_time"]) == pytest.approx(stopped.timestamp(), abs=1e-3)
    assert tasks["segment"]["task_inputs"]["wait_for"] == [{"input_type": "task_run", "id": tasks["reader"]["id"]}]


async def test_telling_twice_is_telling_once(
    historian: Historian, prefect: OwnPrefect, make_job: JobMaker, engine: sa.Engine
) -> None:
    job = make_job.completed()
    first = await historian.tell(job)
    assert await historian.tell(job) == first  # the row that was read before the run was made
    assert await historian.tell(jobs.get_job(engine, job.id)) == first
    eventually(lambda: len(prefect.task_runs(first)) == 3, within_s=15)
    states = prefect.get(f"/task_run_states/?task_run_id={prefect.task_runs(first)['reader']['id']}")
    assert [state["name"] for state in states] == ["Completed"]


def _states(runs: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: run["state_name"] for name, run in runs.items()}


async def test_runs_that_say_something_else_than_the_records_are_repaired(
    historian: Historian, prefect: OwnPrefect, make_job: JobMaker, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED", timedelta(0))
    over, running, again = make_job.completed(), make_job.running(), make_job.running()
    runs = {job.id: await historian.tell(job) for job in (over, running, again)}
    prefect.post(f"/flow_runs/{runs[over.id]}/set_state", {"state": {"type": "RUNNING"}, "force": True})
    jobs.requeue_job(engine, again.id, reason="its runner died", owner=make_job.owner)
    nobody = prefect.post("/flow_runs/", run_request(prefect, {"job_id": str(uuid4())}))["id"]
    assert await historian.repair() == 2
    assert prefect.state(runs[over.id]) == ("COMPLETED", "Completed")
    assert prefect.state(runs[running.id]) == ("RUNNING", "Running")
    assert prefect.state(runs[again.id]) == ("PENDING", "Requeued")
    assert prefect.state(nobody) == ("RUNNING", "Running")
    monkeypatch.setattr(module, "UNTAKEN", timedelta(0))
    assert await historian.repair() == 1
    assert prefect.state(nobody)[0] == "CRASHED"
    assert await historian.repair() == 0
    wanted = {"reader": "Completed", "segment": "Requeued"}
    eventually(lambda: _states(prefect.task_runs(runs[again.id])) == wanted, within_s=30)


async def test_waiting_jobs_say_what_they_wait_for(
    historian: Historian, prefect: OwnPrefect, make_job: JobMaker, engine: sa.Engine
) -> None:
    job, young = make_job.queued(), make_job.queued()
    reasons = ["waits for 1 GPU, held by job 1", "its turn is next"]
    task = asyncio.create_task(historian.keep_up())

    def shown() -> str | None:
        run_id = jobs.get_job(engine, job.id).flow_run_id
        return prefect.flow_run(run_id)["state"]["message"] if run_id else None

    try:
        for reason in reasons:
            historian.show_waiting(
                [
                    (Ask(id=job.id, job_id=job.id, asked=time.time() - 10), reason),
                    (Ask(id=uuid4(), job_id=job.id, operator="segment", asked=0), "an operator's is the task's affair"),
                    (Ask(id=young.id, job_id=young.id, asked=time.time() + 60), "not yet"),
                ]
            )
            await asyncio.to_thread(eventually, lambda reason=reason: shown() == reason, within_s=10)
    finally:
        task.cancel()
        await asyncio.wait({task})
    run_id = jobs.get_job(engine, job.id).flow_run_id
    assert prefect.state(run_id) == ("PENDING", "WaitingForResources")
    assert jobs.get_job(engine, young.id).flow_run_id is None


async def test_an_outage_is_waited_for(engine: sa.Engine, make_job: JobMaker) -> None:
    historian = Historian(engine, "http://127.0.0.1:9/api", pool=POOL)
    await historian.server.open()
    job = make_job.completed()
    jobs.mark_history_due(engine, job.id)
    with pytest.raises(ServerAway):
        await historian.catch_up()
    assert jobs.get_job(engine, job.id).history_due
    await historian.server.close()


def run_request(prefect: OwnPrefect, parameters: dict[str, str]) -> dict[str, object]:
    """A Running run of the pool."""
    flow_id: UUID = prefect.post("/flows/", {"name": "liver"})["id"]
    return {"flow_id": flow_id, "parameters": parameters, "work_pool_name": POOL, "state": {"type": "RUNNING"}}
