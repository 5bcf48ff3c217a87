"""States of Prefect task runs that tell the truth about an operator.

Prefect lets a state have any name on one of its fixed types; the names are ours:

    Completed, Cached (sealed by an earlier run of the same job), Skipped (an upstream did not complete),
    Failed, TimedOut, OutOfMemory, Cancelled, WaitingForResources, Preempted (its job went back to the queue)
"""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import State, StateType
from prefect.states import Cancelled, Completed, Failed, Pending, Running

from clara_flow.errors import OperatorError
from clara_flow.infra.history.prefect_private import show_task_state

STATE_NAMES = {"out-of-memory": "OutOfMemory", "timed-out": "TimedOut", "cancelled": "Cancelled"}


def completed(message: str) -> State:
    """The operator ran and its outputs are sealed."""
    return Completed(message=message)


def cached(message: str) -> State:
    """The operator did not run: the same work was sealed before."""
    return Completed(name="Cached", message=message)


def skipped(message: str) -> State:
    """The operator did not run: one of its upstreams did not complete."""
    return Cancelled(name="Skipped", message=message)


def left_over(message: str) -> State:
    """The operator did not begin: its job goes back to the queue, and it will run when the job goes on."""
    return Cancelled(name="Preempted", message=message)


def ended_badly(error: OperatorError) -> State:
    """The state of an attempt that raised."""
    name = STATE_NAMES.get(error.outcome, "Failed")
    return Cancelled(message=str(error)) if name == "Cancelled" else Failed(name=name, message=str(error))


def edge_from(upstream: State[Any]) -> State[Any]:
    """A stand-in for an upstream's end that Prefect draws an edge from and never refuses to go on after.

    Prefect would not even start a task after a Cancelled (Skipped) one; that it did not complete, our task says itself.
    """
    return upstream.model_copy(update={"type": StateType.COMPLETED})


def report_waiting(message: str) -> None:
    """Show the current task run as WaitingForResources. Outside a task run: nothing happens."""
    show_task_state(Pending(name="WaitingForResources", message=message))


def report_running() -> None:
    """Show the current task run as Running again, after `report_waiting`."""
    show_task_state(Running())
