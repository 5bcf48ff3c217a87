"""Records of jobs and what changes them. Each function is one transaction around the pure state machine.

The order in every change: lock the job's row, ask the state machine, store. Effects that others must hear of are sent
with NOTIFY on `CHANNEL`, which PostgreSQL delivers when, and only when, the change is committed.

Who runs a job is fenced: a write that carries another token than the job's raises StaleOwner, so that a runner which
was taken for dead can neither change the record nor, if it asks first, export.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlmodel import Session, col, select

from clara_flow.errors import InputError, InvalidTransition, StaleOwner
from clara_flow.records.database import transaction
from clara_flow.records.models import Job, JobOperator
from clara_flow.records.owner import Owner
from clara_flow.records.state_machine import (
    ENDS_OF_RUNNING,
    JobEvent,
    JobPriority,
    JobState,
    JobStatus,
    OperatorEvent,
    OperatorStatus,
    advance_job,
    advance_operator,
)

CHANNEL = "clara_flow_jobs"
SHOWN_HITS = 5


def create_job(
    engine: sa.Engine,
    *,
    name: str,
    pipeline_id: uuid.UUID,
    payload_id: uuid.UUID,
    operators: Sequence[str],
    runtime: str,
    timeout_s: int,
    arguments: Mapping[str, str] | None = None,
    priority: JobPriority = JobPriority.NORMAL,
    resumes: uuid.UUID | None = None,
    start: bool = True,
) -> Job:
    """A new job, PENDING, with a record for each of its operators.

    operators   names in the plan's order.
    start       queue it at once; else it waits for `start_job`.

    Raises InputError when the pipeline, the payload or the job to resume does not exist.
    """
    with transaction(engine) as session:
        now = datetime.now(UTC)
        job = Job(
            name=name,
            pipeline_id=pipeline_id,
            payload_id=payload_id,
            runtime=runtime,
            timeout_s=timeout_s,
            arguments=dict(arguments or {}),
            priority=priority,
            resumes=resumes,
            created=now,
            story=[f"{now.isoformat(timespec='milliseconds')} create"],
        )
        session.add(job)
        try:
            session.flush()
        except sa.exc.IntegrityError as error:
            raise InputError(f"job {name!r} cannot be created: {str(error.orig).splitlines()[-1]}") from None
        for position, operator in enumerate(operators):
            session.add(JobOperator(job_id=job.id, name=operator, position=position, created=now))
        if start:
            change(session, job, JobEvent.START)
        return job


def start_job(engine: sa.Engine, job_id: uuid.UUID) -> Job:
    """Queue a created job. Raises InvalidTransition when it was started already."""
    with transaction(engine) as session:
        return change(session, locked(session, job_id), JobEvent.START)


def begin_job(engine: sa.Engine, job_id: uuid.UUID, owner: Owner, *, flow_run_id: uuid.UUID | None = None) -> Job:
    """`owner` takes a queued job and runs it from now on. Raises InvalidTransition when somebody else was first."""
    with transaction(engine) as session:
        job = change(session, locked(session, job_id), JobEvent.BEGIN, owner=owner)
        job.flow_run_id = flow_run_id
        return job


def finish_job(
    engine: sa.Engine, job_id: uuid.UUID, owner: Owner, event: JobEvent, *, messages: Sequence[str] = ()
) -> Job:
    """Its runner ends a job: COMPLETE, FAULT, CANCEL or EXPIRE. Operators left running end with it.

    The same end told twice by the same owner is one end. Raises StaleOwner, and InvalidTransition (also for COMPLETE
    while an operator has not completed).
    """
    with transaction(engine) as session:
        job = locked(session, job_id)
        check_owner(job, owner)
        if job.state is JobState.STOPPED:
            if job.story[-1].endswith(f" {event}"):
                return job
            raise StaleOwner(f"job {job_id} is over ({job.phase}): it cannot {event} any more", job=str(job_id))
        if event is JobEvent.COMPLETE:
            unfinished = [o.name for o in operators_of(session, job_id) if o.status is not OperatorStatus.COMPLETED]
            if unfinished:
                raise InvalidTransition(
                    f"job {job_id} cannot complete: {', '.join(unfinished)} did not",
                    job=str(job_id),
                    unfinished=tuple(unfinished),
                )
        return change(session, job, event, messages=messages)


def fault_job(engine: sa.Engine, job_id: uuid.UUID, *, messages: Sequence[str]) -> Job:
    """End a job that nobody could begin: it was refused, or its flow could not be started. Raises InvalidTransition."""
    with transaction(engine) as session:
        job = locked(session, job_id)
        if job.state is JobState.RUNNING:
            raise InvalidTransition(f"job {job_id} is running: only its owner ends it", job=str(job_id))
        return change(session, job, JobEvent.FAULT, messages=messages)


def cancel_job(engine: sa.Engine, job_id: uuid.UUID, *, reason: str = "") -> Job:
    """Ask for a job's end. Pending: it is CANCELED now. Running: its runner is told. Stopped: nothing changes."""
    with transaction(engine) as session:
        job = locked(session, job_id)
        if job.state is JobState.STOPPED:
            return job
        return change(session, job, JobEvent.REQUEST_CANCEL, messages=[reason] if reason else [])


def evict_orphans(engine: sa.Engine, is_alive: Callable[[Owner], bool] = Owner.is_alive) -> list[uuid.UUID]:
    """End the running jobs whose owner is gone: STOPPED/EVICTED. Returns their ids."""
    with transaction(engine) as session:
        running = select(Job).where(col(Job.state) == JobState.RUNNING).order_by(col(Job.created))
        orphans = [
            job
            for job in session.exec(running.with_for_update(skip_locked=True))
            if (owner := job.owner) is None or not is_alive(owner)
        ]
        for job in orphans:
            change(session, job, JobEvent.EVICT, messages=["its runner ended without a word"])
        return [job.id for job in orphans]


def operator_waits(engine: sa.Engine, job_id: uuid.UUID, operator: str, owner: Owner) -> JobOperator:
    """An operator's resources are taken; it waits. Raises StaleOwner, InvalidTransition."""
    with transaction(engine) as session:
        return change_operator(session, job_id, operator, owner, OperatorEvent.WAIT)


def operator_started(
    engine: sa.Engine,
    job_id: uuid.UUID,
    operator: str,
    owner: Owner,
    *,
    waited_s: float | None = None,
    digest: str | None = None,
    identity: str = "",
) -> JobOperator:
    """An attempt of an operator was launched; `attempt` counts them. Raises StaleOwner, InvalidTransition."""
    with transaction(engine) as session:
        row = change_operator(session, job_id, operator, owner, OperatorEvent.BEGIN)
        row.attempt += 1
        row.started, row.stopped = datetime.now(UTC), None
        row.exit_code, row.message, row.run_time_s, row.peak_memory_bytes = None, "", None, None
        row.waited_s, row.digest, row.identity = waited_s, digest, identity
        return row


def operator_ended(
    engine: sa.Engine,
    job_id: uuid.UUID,
    operator: str,
    owner: Owner,
    event: OperatorEvent,
    *,
    message: str = "",
    exit_code: int | None = None,
    run_time_s: float | None = None,
    peak_memory_bytes: int | None = None,
    digest: str | None = None,
    identity: str | None = None,
) -> JobOperator:
    """An operator ended, or was skipped, or an earlier job's outputs were taken (REUSE).

    event       for a failure `OperatorEvent(error.outcome)`.
    run_time_s  from launch to exit, as the launcher measured it; None: from the record's own times.

    Raises StaleOwner, InvalidTransition.
    """
    with transaction(engine) as session:
        row = change_operator(session, job_id, operator, owner, event)
        row.message, row.exit_code, row.peak_memory_bytes = message, exit_code, peak_memory_bytes
        if digest is not None:
            row.digest = digest
        if identity is not None:
            row.identity = identity
        if event is not OperatorEvent.SKIP:
            stop_clock(row, run_time_s)
        return row


def get_job(engine: sa.Engine, reference: str | uuid.UUID) -> Job:
    """The job of that id, or of the unique beginning of an id (dashes may be left out).

    Raises InputError when there is none, or when several begin so: it lists them.
    """
    prefix = str(reference).replace("-", "").lower()
    if not prefix or prefix.strip("0123456789abcdef"):
        raise InputError(f"{str(reference)!r} is no job id: ids are hexadecimal", reference=str(reference))
    with transaction(engine) as session:
        digits = sa.func.replace(sa.cast(col(Job.id), sa.Text), "-", "")
        hits = session.exec(
            select(Job).where(digits.startswith(prefix)).order_by(col(Job.created).desc()).limit(SHOWN_HITS + 1)
        ).all()
    if not hits:
        raise InputError(f"there is no job {reference}", reference=str(reference))
    if len(hits) > 1:
        shown = ", ".join(f"{job.id} ({job.name})" for job in hits[:SHOWN_HITS])
        more = " and more" if len(hits) > SHOWN_HITS else ""
        raise InputError(f"several jobs begin with {reference}: {shown}{more}. Give more of the id.")
    return hits[0]


def list_jobs(
    engine: sa.Engine,
    *,
    states: Collection[JobState] = (),
    statuses: Collection[JobStatus] = (),
    pipeline_ids: Collection[uuid.UUID] = (),
    created_after: datetime | None = None,
    completed_before: datetime | None = None,
    limit: int | None = None,
) -> list[Job]:
    """Jobs that pass every filter given, newest first. A job that has not stopped was not completed before any time."""
    query = select(Job).order_by(col(Job.created).desc(), col(Job.id)).limit(limit)
    if states:
        query = query.where(col(Job.state).in_(states))
    if statuses:
        query = query.where(col(Job.status).in_(statuses))
    if pipeline_ids:
        query = query.where(col(Job.pipeline_id).in_(pipeline_ids))
    if created_after is not None:
        query = query.where(col(Job.created) > created_after)
    if completed_before is not None:
        query = query.where(col(Job.stopped) < completed_before)
    with transaction(engine) as session:
        return list(session.exec(query))


def list_operators(engine: sa.Engine, job_id: uuid.UUID) -> list[JobOperator]:
    """The operators of a job, in the plan's order."""
    with transaction(engine) as session:
        return operators_of(session, job_id)


def is_owned(engine: sa.Engine, job_id: uuid.UUID, owner: Owner) -> bool:
    """Whether `owner` still runs the job: to be asked before anything leaves the house."""
    with transaction(engine) as session:
        job = session.get(Job, job_id)
        return job is not None and job.state is JobState.RUNNING and job.fence == owner.token


def locked(session: Session, job_id: uuid.UUID, *, shared: bool = False) -> Job:
    """The job with its row locked until the transaction ends; `shared`: others may hold it so, too."""
    query = select(Job).where(col(Job.id) == job_id).with_for_update(read=shared)
    job = session.exec(query).one_or_none()
    if job is None:
        raise InputError(f"there is no job {job_id}", reference=str(job_id))
    return job


def operators_of(session: Session, job_id: uuid.UUID) -> list[JobOperator]:
    """The operators of a job, in the plan's order."""
    return list(
        session.exec(select(JobOperator).where(col(JobOperator.job_id) == job_id).order_by(col(JobOperator.position)))
    )


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
    phase, effects = advance_job(job.phase, event, job=str(job.id), story=job.story)
    # New lists: SQLAlchemy does not see a change inside a JSON value.
    job.story = [*job.story, f"{now.isoformat(timespec='milliseconds')} {event}"]
    job.messages = [*job.messages, *messages]
    job.state, job.status = phase.state, phase.status
    if event is JobEvent.START:
        job.queued = now
    if event is JobEvent.BEGIN and owner is not None:
        job.started, job.fence = now, owner.token
        job.owner_host, job.owner_pid, job.owner_process_start = owner.host, owner.pid, owner.process_start
    if event is JobEvent.REQUEST_CANCEL:
        job.cancel_requested = job.cancel_requested or now
    if phase.state is JobState.STOPPED:
        job.stopped = now
        for row in operators_of(session, job.id):
            if row.status is OperatorStatus.RUNNING:
                step(row, ENDS_OF_RUNNING[event])
                row.message = f"the job ended ({phase}) while it ran"
                stop_clock(row, None)
    for effect in effects:
        message = json.dumps({"job": str(job.id), "effect": effect})
        session.execute(sa.select(sa.func.pg_notify(CHANNEL, message)))
    return job


def change_operator(
    session: Session, job_id: uuid.UUID, operator: str, owner: Owner, event: OperatorEvent
) -> JobOperator:
    """Take one step of an operator of a running job that `owner` runs."""
    job = locked(session, job_id, shared=True)  # siblings may write at once, the job's end may not
    check_owner(job, owner)
    if job.state is not JobState.RUNNING:
        raise StaleOwner(f"job {job_id} is over ({job.phase}): {operator!r} cannot change any more", job=str(job_id))
    query = select(JobOperator).where(col(JobOperator.job_id) == job_id, col(JobOperator.name) == operator)
    row = session.exec(query.with_for_update()).one_or_none()
    if row is None:
        raise InputError(f"job {job_id} has no operator {operator!r}", operator=operator)
    step(row, event)
    return row


def step(row: JobOperator, event: OperatorEvent) -> None:
    """Store the operator's next phase."""
    row.detail = advance_operator(row.detail, event, operator=row.name)
    row.status = row.detail.status


def stop_clock(row: JobOperator, run_time_s: float | None) -> None:
    """Note the end, and the run time where the operator had been started."""
    row.stopped = datetime.now(UTC)
    if run_time_s is None and row.started is not None:
        run_time_s = (row.stopped - row.started).total_seconds()
    row.run_time_s = run_time_s
