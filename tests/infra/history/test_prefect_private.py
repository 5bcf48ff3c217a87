"""The contract with what Prefect does not promise to keep: a Prefect that breaks it fails here first."""

from __future__ import annotations

import inspect
import logging
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow, get_run_logger, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun, State
from prefect.events import Event
from prefect.states import Completed, Pending, Running
from prefect.workers.base import BaseWorker

from clara_flow.infra.history.prefect_private import Engine, show_task_state

NOBODY = "http://127.0.0.1:9/api"


class Collected:
    """An EngineRun that remembers what it is told."""

    def __init__(self) -> None:
        self.flow_name = "quiet"
        self.flow_run = FlowRun(id=uuid4(), flow_id=uuid4(), name="study")
        self.states: list[str | None] = []
        self.artifacts: list[str | None] = []

    def on_state(self, state: State[Any]) -> None:
        self.states.append(state.name)

    def on_artifact(self, artifact: ArtifactCreate) -> None:
        self.artifacts.append(artifact.key)


@task(persist_result=False)
async def waits() -> State[Any]:
    show_task_state(Pending(name="WaitingForResources", message="waits for gpu"))
    show_task_state(Running())
    get_run_logger().info("at work")
    return Completed()


@flow(persist_result=False, validate_parameters=False)
async def quiet() -> State[Any]:
    await waits(return_state=True)  # type: ignore[call-overload]
    await acreate_markdown_artifact("text", key="report")
    return Completed()


async def test_the_engine_runs_a_flow_without_any_server(caplog: pytest.LogCaptureFixture) -> None:
    events: list[Event] = []
    lines: list[dict[str, Any]] = []
    engine = Engine(NOBODY)
    runs = [Collected(), Collected()]
    async with engine.opened(events.append, lines.append):
        for run in runs:
            with engine.serving(run):
                state: State[Any] = await quiet(return_state=True)  # type: ignore[call-overload]
                assert state.is_completed()
                await engine.settle()
    for run in runs:
        assert run.states == ["Running", "Completed"]
        assert run.artifacts == ["report"]
        mine = [event for event in events if f"prefect.flow-run.{run.flow_run.id}" in {r.id for r in event.related}]
        told = [event.event.removeprefix("prefect.task-run.") for event in mine if "task-run" in event.event]
        assert told == ["Pending", "Running", "WaitingForResources", "Running", "Completed"]
        assert {r.name for event in mine for r in event.related if r.role == "flow"} == {"quiet"}
        payload = mine[-1].payload["task_run"]
        assert {"task_key", "dynamic_key", "task_inputs", "start_time", "end_time", "total_run_time"} <= set(payload)
        said = [line for line in lines if line["flow_run_id"] == str(run.flow_run.id)]
        assert next(line["message"] for line in said if line["task_run_id"]) == "at work"
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_outside_a_task_run_there_is_no_state_to_show() -> None:
    assert show_task_state(Running()) is None


def test_the_worker_that_ours_is_built_on_has_what_ours_overrides() -> None:
    assert list(inspect.signature(BaseWorker._submit_run).parameters) == ["self", "flow_run"]
    assert list(inspect.signature(BaseWorker.run).parameters) == ["self", "flow_run", "configuration", "task_status"]
    assert {"get_and_submit_flow_runs", "sync_with_backend", "setup", "teardown"} <= set(dir(BaseWorker))
