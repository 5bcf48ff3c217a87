"""What Prefect shall show of a job and its operators, made of our records. Pure: rows in, requests out.

Prefect stamps the states of flow runs itself, so a history that is told later has the times of the telling there, and
the true ones in the state's message. Task runs have the true times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

from clara_flow.records.models import AE_TITLE, BY_DICOM, BY_REQUEST, INSTANCES, TRIGGER, Job, JobOperator
from clara_flow.records.state_machine import JobPhase, OperatorPhase

STATE_OF_JOB: dict[JobPhase, tuple[str, str]] = {
    JobPhase.CREATED: ("PENDING", "Created"),
    JobPhase.QUEUED: ("PENDING", "WaitingForResources"),
    JobPhase.RUNNING: ("RUNNING", "Running"),
    JobPhase.COMPLETED: ("COMPLETED", "Completed"),
    JobPhase.FAULTED: ("FAILED", "Faulted"),
    JobPhase.CANCELED: ("CANCELLED", "Cancelled"),
    JobPhase.EVICTED: ("CRASHED", "Evicted"),
    JobPhase.TERMINATED: ("FAILED", "TimedOut"),
}
REQUEUED = ("PENDING", "Requeued")

TYPE_OF_OPERATOR = {  # the state's name is the phase's own word
    OperatorPhase.PENDING: "PENDING",
    OperatorPhase.WAITING: "PENDING",
    OperatorPhase.RUNNING: "RUNNING",
    OperatorPhase.COMPLETED: "COMPLETED",
    OperatorPhase.CACHED: "COMPLETED",
    OperatorPhase.SKIPPED: "CANCELLED",
    OperatorPhase.CANCELLED: "CANCELLED",
}


def task_run_id(flow_run_id: UUID, operator: str) -> UUID:
    """Id of an operator's task run: the same however often, and by whom, it is told."""
    return uuid5(flow_run_id, operator)


def task_run_keys(operator: str) -> dict[str, str]:
    """What makes a task run one of its flow run, for Prefect: the operator's name."""
    return {"task_key": operator, "dynamic_key": "0"}


def flow_run_request(job: Job, *, pool: str, deployment_id: UUID | None) -> dict[str, Any]:
    """Body of the request that makes the job's flow run, without flow and state; one run for a job, however often."""
    return {
        "name": flow_run_name(job),
        "parameters": {"job_id": str(job.id)},
        "tags": flow_run_tags(job),
        "idempotency_key": str(job.id),
        "deployment_id": str(deployment_id) if deployment_id else None,
        "work_pool_name": pool,
        "work_queue_name": str(job.priority).lower(),
    }


def flow_run_name(job: Job) -> str:
    """The name of the job's run in the UI."""
    return f"{job.name}-{str(job.id)[:8]}"


def flow_run_tags(job: Job) -> list[str]:
    """What the job's run can be found by in the UI: `source:dicom` and `aetitle:...` for what came by DICOM."""
    made = {"source": job.metadata_.get(TRIGGER), "aetitle": job.metadata_.get(AE_TITLE)}
    return [
        *(f"{name}:{value}" for name, value in made.items() if value),
        f"tenant:{job.tenant}",
        f"runtime:{job.runtime}",
    ]


def origin_of(job: Job) -> str:
    """In words, what made the job, where it was no person; else "". Of the metadata only what names no patient."""
    instances = job.metadata_.get(INSTANCES, "?")
    trigger = job.metadata_.get(TRIGGER)
    if trigger == BY_DICOM:
        return f"Triggered by DICOM: {instances} instances came for AE title {job.metadata_.get(AE_TITLE, '?')}."
    return f"Triggered by an inference request, with {instances} files." if trigger == BY_REQUEST else ""


def flow_run_state(job: Job) -> dict[str, Any]:
    """The state that the job's flow run shall be in."""
    kind, name = REQUEUED if job.phase is JobPhase.QUEUED and job.requeues else STATE_OF_JOB[job.phase]
    lines = list(job.messages)
    if job.started is not None and job.stopped is not None:
        lines.append(f"It ran from {_moment(job.started)} to {_moment(job.stopped)}; told later.")
    return {"type": kind, "name": name, "message": "\n".join(lines)}


def task_run_events(
    flow_run_id: UUID, job: Job, operators: Sequence[JobOperator], edges: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Events of the task runs of all operators that have come to anything, with their true times.

    edges   of the plan, as JSON: `source` and `target` are names of operators.
    """
    upstreams: dict[str, list[str]] = {}
    for edge in edges:
        upstreams.setdefault(edge["target"], []).append(edge["source"])
    return [
        _task_run_event(flow_run_id, job, row, upstreams.get(row.name, []))
        for row in operators
        if row.detail is not OperatorPhase.PENDING or row.attempt
    ]


def _task_run_event(flow_run_id: UUID, job: Job, row: JobOperator, upstreams: Sequence[str]) -> dict[str, Any]:
    run_id = task_run_id(flow_run_id, row.name)
    kind, name = TYPE_OF_OPERATOR.get(row.detail, "FAILED"), str(row.detail)
    occurred = row.stopped or row.started or job.stopped or job.created
    if row.detail is OperatorPhase.PENDING:  # an attempt that was begun came to nothing
        (kind, name), occurred = REQUEUED, datetime.now(UTC)
    waits_for = [{"input_type": "task_run", "id": str(task_run_id(flow_run_id, upstream))} for upstream in upstreams]
    task_run = {
        **task_run_keys(row.name),
        "name": row.name,
        "run_count": row.attempt,
        "task_inputs": {"wait_for": waits_for},
        "expected_start_time": _moment(row.started or occurred),
        "total_run_time": row.run_time_s or 0.0,
    }
    if row.started is not None:
        task_run["start_time"] = _moment(row.started)
    if row.stopped is not None:
        task_run["end_time"] = _moment(row.stopped)
    return {
        "id": str(uuid5(run_id, f"{name} {occurred.isoformat()}")),
        "occurred": _moment(occurred),
        "event": f"prefect.task-run.{name}",
        "resource": {
            "prefect.resource.id": f"prefect.task-run.{run_id}",
            "prefect.resource.name": row.name,
            "prefect.run-count": str(row.attempt),
            "prefect.state-message": row.message,
            "prefect.state-name": name,
            "prefect.state-timestamp": _moment(occurred),
            "prefect.state-type": kind,
            "prefect.orchestration": "client",
        },
        "related": [
            {
                "prefect.resource.id": f"prefect.flow-run.{flow_run_id}",
                "prefect.resource.role": "flow-run",
                "prefect.resource.name": flow_run_name(job),
            }
        ],
        "payload": {
            "intended": {"from": None, "to": kind},
            "initial_state": None,
            "validated_state": {
                "type": kind, "name": name, "message": row.message, "state_details": {}, "data": None,
            },
            "task_run": task_run,
        },
    }  # fmt: skip


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()
