"""One step of a job or of an operator: lock the job's row, ask the state machine, store, announce.

Whoever changes anything of a job, its operators or its leases holds the job's row first, then operators' rows, then
leases' rows: one writer per job, and no deadlocks.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Session, col, select

from clara_flow.errors import InputError, StaleOwner
from clara_flow.records.models import Job, JobOperator, Lease
from clara_flow.records.owner import Owner
from clara_flow.records.state_machine import (
    ENDS_OF_RUNNING,
    JobEvent,
    JobState,
    OperatorEvent,
    OperatorPhase,
    OperatorStatus,
    advance_job,
    advance_operator,
)

JOBS_CHANNEL = "clara_flow_jobs"  # {"job", "effect"}: a JobEffect to perform
NEWS_CHANNEL = (
    "clara_flow_news"  # {"job", "operator", "state", "message"}: an operator changed ("": the job itself did)
)
LEASES_CHANNEL = "clara_flow_leases"  # {"asked": lease, "job"} or {"released": job, "job"}
SHOWN_CHARACTERS = 320  # of a message in a notice: below 2,000 bytes however they are written

Announcement = tuple[str, dict[str, Any]]


def announce(session: Session, announcements: Sequence[Announcement]) -> None:
    """NOTIFY: heard by others when, and only when, the transaction is committed."""
    if announcements:
        channels = [channel for channel, _ in announcements]
        messages = [json.dumps(facts, ensure_ascii=False) for _, facts in announcements]
        session.execute(NOTIFY_ALL, {"channels": channels, "messages": messages})


NOTIFY_ALL = sa.text("SELECT pg_notify(channel, message) FROM unnest(:channels, :messages) AS t(channel, message)")
NOTIFY_ALL = NOTIFY_ALL.bindparams(
    sa.bindparam("channels", type_=ARRAY(sa.Text)), sa.bindparam("messages", type_=ARRAY(sa.Text))
)


def news(job_id: uuid.UUID, operator: str, state: str, message: str) -> Announcement:
    """What a watcher of the job is told."""
    shown = storable(message[:SHOWN_CHARACTERS])
    return NEWS_CHANNEL, {"job": str(job_id), "operator": operator, "state": state, "message": shown}


def storable(text: str) -> str:
    """`text` as PostgreSQL takes it: operators print anything, lone surrogates and zeros too."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


LOCK_JOB = select(Job).where(col(Job.id) == sa.bindparam("id")).with_for_update(key_share=True)


def locked(session: Session, job_id: uuid.UUID) -> Job:
    """The job with its row locked until the transaction ends. Raises InputError when there is none."""
    job = session.exec(LOCK_JOB, params={"id": job_id}).one_or_none()
    if job is None:
        raise InputError(f"there is no job {job_id}", reference=str(job_id))
    return job


OPERATORS = select(JobOperator).where(col(JobOperator.job_id) == sa.bindparam("id")).order_by(col(JobOperator.position))


def operators_of(session: Session, job_id: uuid.UUID) -> list[JobOperator]:
    """The operators of a job, in the plan's order."""
    return list(session.exec(OPERATORS, params={"id": job_id}))


def check_owner(job: Job, owner: Owner) -> None:
    """Raise StaleOwner unless `owner` holds the job's fencing token."""
    if job.fence != owner.token:
        raise StaleOwner(
            f"job {job.id} does not belong to process {owner.pid} on {owner.host} (any more): it is {job.phase}",
            job=str(job.id),
        )


def change(
    session: Session, job: Job, event: JobEvent, *, owner: Owner | None = None, messages: Sequence[str] = ()
) -> Job:
    """Take one step of a locked job: ask the state machine, store, announce the effects."""
    now = datetime.now(UTC)
    before = job.phase
    phase, effects = advance_job(before, event, job=str(job.id), story=job.story)
    # New lists: SQLAlchemy does not see a change inside a JSON value.
    job.story = [*job.story, f"{now.isoformat(timespec='milliseconds')} {event}"]
    job.messages = [*job.messages, *map(storable, messages)]
    job.state, job.status = phase.state, phase.status
    announcements: list[Announcement] = [(JOBS_CHANNEL, {"job": str(job.id), "effect": effect}) for effect in effects]
    if phase is not before:
        announcements.append(news(job.id, "", phase, " ".join(messages)))
    if event is JobEvent.START:
        job.queued = now
    if event is JobEvent.BEGIN and owner is not None:
        job.started, job.fence = now, owner.token
        job.owner_host, job.owner_pid, job.owner_process_start = owner.host, owner.pid, owner.process_start
    if event is JobEvent.REQUEST_CANCEL:
        job.cancel_requested = job.cancel_requested or now
    if event is JobEvent.REQUEUE:
        job.started = job.fence = job.owner_host = job.owner_pid = job.owner_process_start = None
        job.node = job.flow_run_id = None
        job.requeues += 1
        announcements += _reset_operators(session, job)
    if phase.state is JobState.STOPPED:
        job.stopped = now
        announcements += _end_operators(session, job, event)
    if event is JobEvent.REQUEUE or phase.state is JobState.STOPPED:
        session.flush()  # the job's row before its leases'
        announcements += release_leases(session, job.id)
    announce(session, announcements)
    return job


def _reset_operators(session: Session, job: Job) -> list[Announcement]:
    """What did not complete begins anew with the job's next run."""
    announcements = []
    for row in operators_of(session, job.id):
        if row.detail is not OperatorPhase.PENDING and row.status is not OperatorStatus.COMPLETED:
            step(row, OperatorEvent.RESET)
            forget_attempt(row)
            announcements.append(news(job.id, row.name, row.detail, ""))
    return announcements


def _end_operators(session: Session, job: Job, event: JobEvent) -> list[Announcement]:
    """What still runs or waits ends with its job."""
    announcements = []
    for row in operators_of(session, job.id):
        if row.detail is OperatorPhase.RUNNING:
            step(row, ENDS_OF_RUNNING[event])
            row.message = f"the job ended ({job.phase}) while it ran"
            stop_clock(row, None)
        elif row.detail is OperatorPhase.WAITING:
            step(row, OperatorEvent.SKIP)
            row.message = f"the job ended ({job.phase}) while it waited"
        else:
            continue
        announcements.append(news(job.id, row.name, row.detail, row.message))
    return announcements


def release_leases(session: Session, job_id: uuid.UUID, operator: str | None = None) -> list[Announcement]:
    """Delete the leases of a job, or of one of its operators; what is to be announced then."""
    query = sa.delete(Lease).where(col(Lease.job_id) == job_id)
    if operator is not None:
        query = query.where(col(Lease.operator) == operator)
    gone = session.execute(query.execution_options(synchronize_session=False)).rowcount  # type: ignore[attr-defined]
    return [(LEASES_CHANNEL, {"released": str(job_id), "job": str(job_id)})] if gone else []


def step(row: JobOperator, event: OperatorEvent) -> None:
    """Store the operator's next phase."""
    row.detail = advance_operator(row.detail, event, operator=row.name)
    row.status = row.detail.status


def forget_attempt(row: JobOperator) -> None:
    """Nothing is known of the attempt that is under way; how many there were stays."""
    row.started = row.stopped = None
    row.exit_code, row.message, row.run_time_s, row.peak_memory_bytes = None, "", None, None


def stop_clock(row: JobOperator, run_time_s: float | None) -> None:
    """Note the end, and the run time where the operator had been started."""
    row.stopped = datetime.now(UTC)
    if run_time_s is None and row.started is not None:
        run_time_s = (row.stopped - row.started).total_seconds()
    row.run_time_s = run_time_s
