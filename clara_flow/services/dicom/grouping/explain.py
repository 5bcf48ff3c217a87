"""Why a study waits, and what it became: the same questions that the grouper asks, without changing anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import sqlalchemy as sa

from clara_flow.errors import ClaraFlowError, NotFound
from clara_flow.records import delivery_queries, dicom_config, dicom_steps, jobs
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records import dicom_groups as records
from clara_flow.records.dicom_models import Delivery, Group, GroupState, Submission
from clara_flow.records.dicom_steps import StepFacts
from clara_flow.records.state_machine import JobPhase
from clara_flow.services.dicom.grouping.completeness import Expected, verdict
from clara_flow.services.dicom.grouping.completion import expectation, performed_of
from clara_flow.services.dicom.grouping.processors import Configured, configured
from clara_flow.services.dicom.grouping.submit import plans_of

FATES: dict[JobPhase, str] = {
    JobPhase.CREATED: "waits for its turn",
    JobPhase.QUEUED: "waits for its turn",
    JobPhase.RUNNING: "is running",
    JobPhase.COMPLETED: "has completed",
    JobPhase.FAULTED: "failed",
    JobPhase.CANCELED: "was cancelled",
    JobPhase.EVICTED: "was ended by the platform",
    JobPhase.TERMINATED: "ran out of time",
}
FAILURES = frozenset({JobPhase.FAULTED, JobPhase.EVICTED, JobPhase.TERMINATED})


@dataclass(frozen=True, slots=True)
class Choice:
    """A pipeline of the AE title: whether the group becomes a job of it. rule: its text, "" where it has none."""

    label: str
    pipeline: str
    chosen: bool
    rule: str = ""


@dataclass(frozen=True, slots=True)
class MadeJob:
    """A job of the group.

    state       the Platform API's words, "" while it is not made. fate: the same for people.
    message     why it is not made, or why it failed.
    deliveries  of its results.
    """

    label: str
    job_id: str
    state: str = ""
    fate: str = "is not made yet"
    message: str = ""
    deliveries: tuple[Delivery, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Of one group.

    why         why it waits, or why it was complete, for people.
    expected    how many instances it should have, None if nobody tells.
    problem     why its AE title cannot be asked now.
    steps       what its modality says of its study (MPPS), whether that counts or not.
    """

    group: Group
    why: str
    expected: Expected | None = None
    choices: list[Choice] = field(default_factory=list)
    jobs: list[MadeJob] = field(default_factory=list)
    problem: str = ""
    steps: list[StepFacts] = field(default_factory=list)


def explain(engine: sa.Engine, study_uid: str) -> list[Explanation]:
    """Of all groups with an instance of that study, the oldest first. Raises NotFound."""
    groups = queries.groups_of_study(engine, study_uid)
    if not groups:
        told = ", ".join(dicom_steps.statuses_of(engine, study_uid))
        raise NotFound(
            "no instance of that study was received" + (f"; its modality says (MPPS): {told}" if told else "")
        )
    return [_explain(engine, group) for group in groups]


def _explain(engine: sa.Engine, group: Group) -> Explanation:
    one, problem, choices = None, "", list[Choice]()
    try:
        one = configured(dicom_config.get_aetitle(engine, group.aetitle))
        choices = _choices(engine, group, one)
    except ClaraFlowError as error:
        problem = str(error)
    why, expected = _why(engine, group, one)
    made = [_made(engine, row) for row in queries.submissions_of(engine, group.id)]
    steps = dicom_steps.steps_of(engine, group.id, one.row.ignored_sop_classes if one is not None else ())
    return Explanation(group, why, expected, choices, made, problem, steps)


def _choices(engine: sa.Engine, group: Group, one: Configured) -> list[Choice]:
    """A dry run of the processor, with its rules where it has some."""
    plans = plans_of(one, records.work_of(engine, group.id))
    pipelines = getattr(one.settings, "pipelines", {}) | {label: plan.pipeline for label, plan in plans.items()}
    rules = getattr(one.settings, "rules", {})
    return [
        Choice(label, pipeline, label in plans, rules[label].text if label in rules else "")
        for label, pipeline in sorted(pipelines.items())
    ]


def _why(engine: sa.Engine, group: Group, one: Configured | None) -> tuple[str, Expected | None]:
    if group.state is GroupState.OPEN and one is not None:
        for facts in queries.facts_of(engine, [group.id]):
            idle_s = max(0.0, (datetime.now(UTC) - group.last_arrival).total_seconds())
            expected = expectation(engine, facts, one)
            found = verdict(
                facts,
                idle_s=idle_s,
                timeout_s=one.settings.timeout_s,
                expected=expected,
                performed=performed_of(engine, facts, one),
                mpps_timeout_s=one.settings.mpps_timeout_s,
            )
            return found.waits or found.rule, found.expected
    if group.state is GroupState.COMPLETE and group.message:
        return f"{group.rule}; tried again at {group.not_before:%H:%M:%S} UTC: {group.message}", None
    if group.state in {GroupState.FAILED, GroupState.DISCARDED}:
        return group.message or group.rule, None
    return group.rule or "waits", None


def _made(engine: sa.Engine, row: Submission) -> MadeJob:
    job_id = str(row.job_id)
    if row.submitted is None:
        return MadeJob(row.label, job_id, message=row.message)
    job = jobs.find_job(engine, row.job_id)
    if job is None:
        return MadeJob(row.label, job_id, "its record was removed", "is over; its record was removed")
    told = job.messages[-1] if job.messages and job.phase in FAILURES else ""
    delivered = delivery_queries.list_deliveries(engine, job_id=job_id)
    return MadeJob(row.label, job_id, f"{job.state}/{job.status}", FATES[job.phase], told, tuple(delivered))
