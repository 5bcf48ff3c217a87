"""The contract with Prefect's private API, held to a real server: a new Prefect that breaks it fails here first."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from prefect import flow, task
from prefect.client.schemas.objects import State, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from waiting import eventually

from clara_flow.errors import OperatorCancelled, OperatorFailed, OperatorOutOfMemory, OperatorTimedOut
from clara_flow.services.platform import PlatformHandle
from clara_flow.tasks import task_states


def test_outcomes_have_names_that_tell_the_truth() -> None:
    told = {
        (state.name, state.type)
        for state in (
            task_states.ended_badly(OperatorFailed("a", exit_code=1, log_path="x")),
            task_states.ended_badly(OperatorOutOfMemory("a", limit_mib=1, log_path="x")),
            task_states.ended_badly(OperatorTimedOut("a", timeout_s=1, log_path="x")),
            task_states.ended_badly(OperatorCancelled("a", log_path="x")),
            task_states.cached(""),
            task_states.completed(""),
            task_states.skipped(""),
        )
    }
    assert told == {
        ("Failed", StateType.FAILED),
        ("OutOfMemory", StateType.FAILED),
        ("TimedOut", StateType.FAILED),
        ("Cancelled", StateType.CANCELLED),
        ("Cached", StateType.COMPLETED),
        ("Completed", StateType.COMPLETED),
        ("Skipped", StateType.CANCELLED),
    }


def test_outside_a_task_run_there_is_nothing_to_report() -> None:
    assert task_states.report_waiting("for nothing") is None


@task(persist_result=False)
async def wait_then_end() -> State[Any]:
    task_states.report_waiting("waits for gpu")
    task_states.report_running()
    return task_states.skipped("on purpose")


@task(persist_result=False)
async def after() -> State[Any]:
    return task_states.completed("came after a cancelled one")


@flow(persist_result=False)
async def two_tasks() -> None:
    first: State[Any] = await wait_then_end(return_state=True)  # type: ignore[call-overload]
    second: State[Any] = await after(wait_for=[task_states.edge_from(first)], return_state=True)  # type: ignore[call-overload]
    assert (first.name, second.name) == ("Skipped", "Completed")


def test_a_real_server_records_every_state_and_the_edge(platform: PlatformHandle) -> None:
    with temporary_settings({PREFECT_API_URL: platform.prefect_api_url}):
        state: State[Any] = asyncio.run(two_tasks(return_state=True))  # type: ignore[arg-type]
    assert state.is_completed()
    run_id = state.state_details.flow_run_id
    api = platform.prefect_api_url

    def task_runs() -> dict[str, Any]:
        body = {"flow_runs": {"id": {"any_": [str(run_id)]}}}
        return {run["name"].rpartition("-")[0]: run for run in httpx.post(f"{api}/task_runs/filter", json=body).json()}

    def history(name: str) -> list[str]:
        run = task_runs().get(name)
        if run is None:
            return []
        states = httpx.get(f"{api}/task_run_states/", params={"task_run_id": run["id"]}).json()
        return [state["name"] for state in sorted(states, key=lambda state: state["timestamp"])]

    expected = ["Pending", "Running", "WaitingForResources", "Running", "Skipped"]
    eventually(lambda: history("wait_then_end") == expected, within_s=20)
    eventually(lambda: history("after") == ["Pending", "Running", "Completed"], within_s=20)
    graph = dict(httpx.get(f"{api}/flow_runs/{run_id}/graph-v2").json()["nodes"])
    labels = {node["id"]: node["label"] for node in graph.values()}
    parents = {labels[parent["id"]] for node in graph.values() for parent in node["parents"]}
    assert {name.rpartition("-")[0] for name in parents} == {"wait_then_end"}


@pytest.mark.parametrize("kind", [OperatorFailed, OperatorTimedOut])
def test_the_message_is_the_errors(kind: type) -> None:
    error = kind("seg", log_path="x", **({"exit_code": 3} if kind is OperatorFailed else {"timeout_s": 2}))
    assert task_states.ended_badly(error).message == str(error)
