"""A runner's history against a real server: whole where it can be, and never in the job's way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow, get_run_logger, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed, Scheduled
from prefect_fixture import OwnPrefect
from waiting import eventually

from clara_flow.infra.history.run_history import LOG_LINES_LIMIT, HistoryRun, RunHistory
from clara_flow.infra.history.server import PrefectServer
from clara_flow.infra.history.truth import task_run_id

STEPS = ("reader", "segment", "writer")
Between = Callable[[], None]
End = Callable[[], State[Any]]  # Prefect takes a state among the arguments for an upstream's


@task(persist_result=False)
async def step(name: str, between: Between) -> State[Any]:
    get_run_logger().info("%s at work", name)
    between()
    return Completed(message=f"{name} done")


@flow(persist_result=False, validate_parameters=False)
async def chain(end: End, between: Between) -> State[Any]:
    states: list[State[Any]] = []
    for name in STEPS:
        one = step.with_options(name=name, task_run_name=name)
        states = [await one(name, between, wait_for=states, return_state=True)]  # type: ignore[call-overload]
    await acreate_markdown_artifact("text", key="report")
    return end()


async def run(
    history: RunHistory,
    *,
    end: End = lambda: Completed(message="3 steps"),
    between: Between = lambda: None,
    **facts: Any,
) -> tuple[HistoryRun, State[Any]]:
    job_id = facts.pop("job_id", None) or uuid4()
    facts = {"name": "study-1", "flow_name": "liver", "parameters": {"job_id": str(job_id)}} | facts
    async with history.run(job_id, **facts) as running:
        state: State[Any] = await chain(end, between, return_state=True)  # type: ignore[call-overload]
    return running, state


async def test_a_run_is_told_whole(history: RunHistory, prefect: OwnPrefect) -> None:
    created: list[UUID] = []

    async def on_created(flow_run_id: UUID) -> None:
        created.append(flow_run_id)

    told, state = await run(history, tags=["tenant:a"], on_created=on_created)
    assert (state.name, told.complete) == ("Completed", True)
    assert created == [told.flow_run_id]
    shown = prefect.flow_run(told.flow_run_id)
    assert (shown["name"], shown["tags"], shown["state"]["message"]) == ("study-1", ["tenant:a"], "3 steps")
    assert shown["start_time"] < shown["end_time"]
    eventually(lambda: len(prefect.task_runs(told.flow_run_id)) == 3, within_s=15)
    tasks = prefect.task_runs(told.flow_run_id)
    assert told.flow_run_id is not None
    assert {name: run["id"] for name, run in tasks.items()} == {
        name: str(task_run_id(told.flow_run_id, name)) for name in STEPS
    }
    assert {run["state"]["message"] for run in tasks.values()} == {f"{name} done" for name in STEPS}
    assert all(run["start_time"] < run["end_time"] and run["run_count"] == 1 for run in tasks.values())
    assert tasks["writer"]["task_inputs"]["wait_for"] == [{"input_type": "task_run", "id": tasks["segment"]["id"]}]
    said = {line["message"]: line["task_run_id"] for line in prefect.logs(told.flow_run_id)}
    assert {name: said[f"{name} at work"] for name in STEPS} == {name: tasks[name]["id"] for name in STEPS}
    artifacts = prefect.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [str(told.flow_run_id)]}}})
    assert [artifact["key"] for artifact in artifacts] == ["report"]


@pytest.mark.parametrize(
    ("end", "shown"),
    [
        (lambda: Failed(name="Faulted", message="segment"), ("FAILED", "Faulted")),
        (lambda: Cancelled(), ("CANCELLED", "Cancelled")),
        (lambda: Scheduled(name="Requeued"), ("PENDING", "Requeued")),  # no worker must take it
    ],
)
async def test_ends_are_shown_as_they_are(
    history: RunHistory, prefect: OwnPrefect, end: End, shown: tuple[str, str]
) -> None:
    told, _ = await run(history, end=end)
    assert told.complete
    assert prefect.state(told.flow_run_id) == shown


async def test_a_job_that_goes_on_is_one_run_with_each_operator_once(history: RunHistory, prefect: OwnPrefect) -> None:
    job_id = uuid4()
    first, _ = await run(history, job_id=job_id, end=lambda: Scheduled(name="Requeued"))
    second, _ = await run(history, job_id=job_id, flow_run_id=first.flow_run_id)
    assert (second.flow_run_id, second.complete) == (first.flow_run_id, True)
    forgotten, _ = await run(history, job_id=job_id)  # nobody has noted the run
    assert forgotten.flow_run_id == first.flow_run_id
    assert prefect.state(first.flow_run_id) == ("COMPLETED", "Completed")
    eventually(lambda: len(prefect.task_runs(first.flow_run_id)) == 3, within_s=15)


async def test_a_run_that_was_deleted_is_made_again(history: RunHistory, prefect: OwnPrefect) -> None:
    told, _ = await run(history, flow_run_id=uuid4())
    assert told.complete
    assert prefect.state(told.flow_run_id) == ("COMPLETED", "Completed")


async def test_a_pool_that_is_missing_costs_the_pool_only(history: RunHistory, prefect: OwnPrefect) -> None:
    told, _ = await run(history, work_pool="nowhere", work_queue="normal")
    assert told.complete
    assert prefect.flow_run(told.flow_run_id)["work_pool_name"] is None


async def test_few_requests_are_made(history: RunHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    await run(history)  # the first one also asks for the flow
    asked: list[str] = []
    real = PrefectServer._ask

    async def counted(self: PrefectServer, method: str, path: str, *content: Any) -> Any:
        asked.append(path.rpartition("/")[2] or path)
        return await real(self, method, path, *content)

    monkeypatch.setattr(PrefectServer, "_ask", counted)
    told, _ = await run(history)
    assert told.complete
    assert asked == ["/flow_runs/", "events", "/logs/", "/artifacts/", "set_state"]


async def test_a_flood_of_lines_is_cut(history: RunHistory, prefect: OwnPrefect) -> None:
    @flow(persist_result=False)
    async def talkative() -> State[Any]:
        for number in range(LOG_LINES_LIMIT + 500):
            get_run_logger().info("line %d", number)
        return Completed()

    async with history.run(uuid4(), name="talkative", flow_name="talkative") as told:
        await talkative(return_state=True)  # type: ignore[call-overload]
    assert told.complete
    last = {"logs": {"flow_run_id": {"any_": [str(told.flow_run_id)]}}, "sort": "TIMESTAMP_DESC", "limit": 5}
    assert any("more lines" in line["message"] for line in prefect.post("/logs/filter", last))


async def test_a_server_that_is_away_costs_next_to_nothing() -> None:
    history = RunHistory("http://127.0.0.1:9/api")
    await history.open()
    try:
        first, state = await run(history)
        assert (state.name, first.complete, first.flow_run_id) == ("Completed", False, None)
        start = time.monotonic()
        second, state = await run(history)
        assert (state.name, second.complete) == ("Completed", False)
        assert time.monotonic() - start < 1.0
    finally:
        await history.close()


async def test_a_server_that_is_frozen_does_not_hold_the_job(prefect: OwnPrefect) -> None:
    history = RunHistory(prefect.api_url, patience_s=0.5)
    await history.open()
    prefect.freeze()
    try:
        start = time.monotonic()
        told, state = await run(history)
        assert (state.name, told.complete) == ("Completed", False)
        assert time.monotonic() - start < 3.0
    finally:
        prefect.thaw()
        await history.close()


async def test_a_server_that_is_killed_in_the_middle_and_comes_back(history: RunHistory, prefect: OwnPrefect) -> None:
    killed = asyncio.Event()

    def between() -> None:
        if not killed.is_set():
            killed.set()
            prefect.kill()

    try:
        told, state = await run(history, between=between)
        assert (state.name, told.complete) == ("Completed", False)
    finally:
        prefect.start()
    eventually(lambda: not history.server.away, within_s=10)
    told, _ = await run(history)
    assert told.complete
    assert prefect.state(told.flow_run_id) == ("COMPLETED", "Completed")
