"""Watching a job that the pool runs, and what became of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from clara_flow.deployments.trigger import House
from clara_flow.errors import JobFaulted
from clara_flow.plan import Plan
from clara_flow.records import jobs, pipelines
from clara_flow.records.doorbell import Doorbell
from clara_flow.records.models import Job, JobOperator
from clara_flow.records.payload_store import PayloadFolder
from clara_flow.records.state_machine import JobState, JobStatus, OperatorStatus
from clara_flow.tasks.register_results import FACT

POLL_S = 2.0  # a lost notice costs no more
LOOK_S = 0.1  # operators' news are told together when they come quicker than people read


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFolder:
    """One output that nothing in the pipeline computes with: a result of the job. `output` "" = the only one."""

    operator: str
    output: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """A job that is over.

    results      result folders of operators that completed.
    deliveries   what was registered for delivery, by operator (agent, parameters, uris): in this run or in one that it
                 took the operator over from.
    """

    job: Job
    plan: Plan
    operators: list[JobOperator]
    payload: PayloadFolder
    results: list[ResultFolder] = field(default_factory=list)
    deliveries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def raise_for_status(self) -> None:
        """Raise JobFaulted, with the job's messages, unless it completed."""
        if self.job.status is not JobStatus.HEALTHY:
            story = "\n".join(self.job.messages)
            raise JobFaulted(f"job {self.job.id} ended {self.job.state}/{self.job.status}\n{story}".rstrip())


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How a job stands: its row, its operators' rows, and why operators wait, by name ("" = the job itself)."""

    job: Job
    operators: list[JobOperator]
    reasons: dict[str, str]


OnProgress = Callable[[Progress], None]
OnModel = Callable[[str, float, str], None]


class JobWatch:
    """Follows one job that the pool runs."""

    def __init__(self, house: House, job_id: UUID) -> None:
        self._house, self._job_id = house, job_id
        self._bell = Doorbell(house.engine, (jobs.NEWS, jobs.CHANNEL))
        self._reasons: dict[str, str] = {}
        self._cancel: str | None = None

    def cancel(self, reason: str) -> None:
        """Ask for the job's end, and go on following it; may be called by a signal's handler."""
        self._cancel = reason
        self._bell.interrupt()

    def follow(
        self,
        on_progress: OnProgress = lambda progress: None,
        on_model: OnModel = lambda name, done, message: None,
    ) -> JobOutcome:
        """Wait for the job's end, whatever the end is; `on_progress` at each change.

        Raises ServiceError when the database is away.
        """
        engine, job_id = self._house.engine, self._job_id
        try:
            while True:
                if self._cancel is not None:
                    jobs.cancel_job(engine, job_id, reason=self._cancel)
                    self._cancel = None
                job = jobs.get_job(engine, job_id)
                rows = jobs.list_operators(engine, job_id)
                on_progress(Progress(job=job, operators=rows, reasons=self._reasons))
                if job.state is JobState.STOPPED:
                    return outcome(self._house, job, rows)
                for facts in self._notices():
                    if "model" in facts:
                        on_model(facts["model"], facts["done"], facts["message"])
                    elif "operator" in facts:
                        self._reasons[facts["operator"]] = facts.get("message", "")
        finally:
            self._bell.close()

    def _notices(self) -> list[dict[str, Any]]:
        """Wait for notices about this job; an empty list after POLL_S without one, or when it shall be cancelled.

        Returns at once when the job itself has changed, else with all that comes within LOOK_S.
        """
        mine: list[dict[str, Any]] = []
        until = time.monotonic() + POLL_S
        while self._cancel is None and (left_s := until - time.monotonic()) > 0:
            for _, facts in self._bell.wait(left_s):
                if facts.get("job") == str(self._job_id) or "reconnected" in facts:
                    mine.append(facts)
                    until = min(until, time.monotonic() + LOOK_S) if facts.get("operator") else 0.0
        return mine


def outcome(house: House, job: Job, rows: list[JobOperator]) -> JobOutcome:
    """What became of a job, with the rows of its operators, from its payload."""
    plan = Plan.model_validate(pipelines.get_pipeline(house.engine, job.pipeline_id).plan)
    folder = house.store.folder(job.payload_id)
    completed = {row.name for row in rows if row.status is OperatorStatus.COMPLETED}
    sinks = {operator.name for operator in plan.operators if not operator.outputs}
    results = [
        ResultFolder(
            operator=operator.name, output=output.name, path=folder.operator_folder(operator.name, output.name)
        )
        for operator in plan.operators
        if operator.name in completed
        for output in operator.outputs
        if set(plan.consumers(operator.name, output.name)) <= sinks
    ]
    deliveries = {}
    for name in sorted(completed & sinks):
        sealed = folder.sealed(name)
        if sealed is not None and (record := sealed.facts.get(FACT)) is not None:
            deliveries[name] = record
    return JobOutcome(
        job=job,
        plan=plan,
        operators=rows,
        payload=folder,
        results=results,
        deliveries=deliveries,
    )
