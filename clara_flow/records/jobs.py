"""Records of jobs and what changes them. Each function is one transaction around the pure state machine.

Effects and news are sent with NOTIFY, which PostgreSQL delivers when, and only when, the change is committed.

Who runs a job is fenced: a write that carries another token than the job's raises StaleOwner, so that a runner which
was taken for dead can neither change the record nor, if it asks first, export. What a runner calls may be repeated
(`database.persistently`): the same thing told twice by the same owner is one thing.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import col, select

from clara_flow.errors import InputError, InvalidTransition, StaleOwner
from clara_flow.records.database import reading, statements, transaction
from clara_flow.records.job_queue import QueuedJob, queued, requeue_job, requeue_orphans, runner_crashed, waiting
from clara_flow.records.models import Job, JobOperator, Lease, OnRestart, Payload
from clara_flow.records.operators import (
    list_operators,
    operator_ended,
    operator_reset,
    operator_started,
    operator_waits,
)
from clara_flow.records.owner import Owner
from clara_flow.records.state_machine import JobEvent, JobPhase, JobPriority, JobState, JobStatus, OperatorStatus
from clara_flow.records.transitions import JOBS_CHANNEL as CHANNEL
from clara_flow.records.transitions import NEWS_CHANNEL as NEWS
from clara_flow.records.transitions import announce, change, check_owner, locked, operators_of

__all__ = [
    "CHANNEL",
    "NEWS",
    "QueuedJob",
    "begin_job",
    "cancel_job",
    "create_job",
    "delete_records",
    "fault_job",
    "find_job",
    "finish_job",
    "get_job",
    "history_due",
    "is_owned",
    "list_jobs",
    "list_operators",
    "mark_history_due",
    "names",
    "note_flow_run",
    "operator_ended",
    "operator_reset",
    "operator_started",
    "operator_waits",
    "queued",
    "requeue_job",
    "requeue_orphans",
    "runner_crashed",
    "start_job",
    "tell_news",
    "waiting",
]

SHOWN_HITS = 5
ID_DIGITS = 32


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
    tenant: str = "default",
    demand: Mapping[str, Any] | None = None,
    preemptible: bool = False,
    on_restart: OnRestart | str = OnRestart.RESUME,
    fastio_mib: int = 0,
    flow_run_id: uuid.UUID | None = None,
    job_id: uuid.UUID | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Job:
    """A new job, PENDING, with a record for each of its operators.

    operators   names in the plan's order.
    start       queue it at once; else it waits for `start_job`.
    demand      what the pool must have for it (`QueuedJob.demand`).
    flow_run_id the Prefect flow run that shows it, where somebody made one before.

    Raises InputError when the pipeline, the payload or the job to resume does not exist, or a job has that id.
    """
    with transaction(engine) as session:
        now = datetime.now(UTC)
        job = Job(
            id=job_id or uuid.uuid4(),
            metadata_=dict(metadata or {}),
            name=name,
            pipeline_id=pipeline_id,
            payload_id=payload_id,
            runtime=runtime,
            timeout_s=timeout_s,
            arguments=dict(arguments or {}),
            priority=priority,
            resumes=resumes,
            tenant=tenant,
            demand=dict(demand or {}),
            preemptible=preemptible,
            on_restart=OnRestart(on_restart),
            fastio_mib=fastio_mib,
            flow_run_id=flow_run_id,
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


def begin_job(
    engine: sa.Engine,
    job_id: uuid.UUID,
    owner: Owner,
    *,
    node: str | None = None,
    flow_run_id: uuid.UUID | None = None,
) -> Job:
    """`owner` takes a queued job and its leases, and runs it from now on; told twice, it is one beginning.

    node    where the owner is: the job must be admitted there. None: that is not asked.

    Raises InvalidTransition when somebody else was first, or the job went back to the queue in the meantime.
    """
    with transaction(engine) as session:
        job = locked(session, job_id)
        if job.state is not JobState.RUNNING or job.fence != owner.token:
            if node is not None and job.phase is JobPhase.QUEUED and job.node != node:
                raise InvalidTransition(
                    f"job {job_id} is not admitted to node {node} (any more)", job=str(job_id), node=job.node
                )
            change(session, job, JobEvent.BEGIN, owner=owner)
            job.history_due = True  # until its runner, or whoever comes after that, has told it
            session.flush()
            session.execute(sa.update(Lease).where(col(Lease.job_id) == job_id).values(owner=owner.token))
        job.flow_run_id = flow_run_id or job.flow_run_id
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


FOUND = (
    select(Job)
    .where(col(Job.id).between(sa.bindparam("first"), sa.bindparam("last")))
    .order_by(col(Job.created).desc())
    .limit(SHOWN_HITS + 1)
)


def get_job(engine: sa.Engine, reference: str | uuid.UUID) -> Job:
    """The job of that id, or of the unique beginning of an id (dashes may be left out).

    Raises InputError when there is none, or when several begin so: it lists them.
    """
    prefix = str(reference).replace("-", "").lower()
    if not prefix or len(prefix) > ID_DIGITS or prefix.strip("0123456789abcdef"):
        raise InputError(f"{str(reference)!r} is no job id: ids are hexadecimal", reference=str(reference))
    first, last = (uuid.UUID(prefix.ljust(ID_DIGITS, digit)) for digit in "0f")  # a range, which the index finds
    with reading(engine) as session:
        hits = session.exec(FOUND, params={"first": first, "last": last}).all()
    if not hits:
        raise InputError(f"there is no job {reference}", reference=str(reference))
    if len(hits) > 1:
        shown = ", ".join(f"{job.id} ({job.name})" for job in hits[:SHOWN_HITS])
        more = " and more" if len(hits) > SHOWN_HITS else ""
        raise InputError(f"several jobs begin with {reference}: {shown}{more}. Give more of the id.")
    return hits[0]


def find_job(engine: sa.Engine, job_id: uuid.UUID) -> Job | None:
    """The job of that whole id; None when there is none."""
    with reading(engine) as session:
        return session.get(Job, job_id)


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
    with reading(engine) as session:
        return list(session.exec(query))


def is_owned(engine: sa.Engine, job_id: uuid.UUID, owner: Owner) -> bool:
    """Whether `owner` still runs the job: to be asked before anything leaves the house."""
    with reading(engine) as session:
        job = session.get(Job, job_id)
        return job is not None and job.state is JobState.RUNNING and job.fence == owner.token


def note_flow_run(engine: sa.Engine, job_id: uuid.UUID, flow_run_id: uuid.UUID | None) -> None:
    """Note which Prefect flow run shows the job; None: none does any more."""
    with statements(engine) as connection:
        connection.execute(sa.update(Job).where(col(Job.id) == job_id).values(flow_run_id=flow_run_id))


def mark_history_due(engine: sa.Engine, job_id: uuid.UUID, due: bool = True) -> None:
    """Note that Prefect was not, or (`due` False) was now, told everything of the job."""
    with statements(engine) as connection:
        connection.execute(sa.update(Job).where(col(Job.id) == job_id).values(history_due=due))


def history_due(engine: sa.Engine, *, limit: int = 100) -> list[Job]:
    """The first stopped jobs of which Prefect was not told everything."""
    query = select(Job).where(col(Job.history_due), col(Job.state) == JobState.STOPPED).order_by(col(Job.stopped))
    with reading(engine) as session:
        return list(session.exec(query.limit(limit)))


def tell_news(engine: sa.Engine, job_id: uuid.UUID, **facts: Any) -> None:
    """Tell whoever watches the job something that is not recorded."""
    with transaction(engine) as session:
        announce(session, [(NEWS, {"job": str(job_id), **facts})])


def typical_run_times(
    engine: sa.Engine, pipeline_id: uuid.UUID, *, of_last: int = 20
) -> tuple[float | None, dict[str, float]]:
    """Median seconds that the pipeline's last completed jobs ran, and their operators by name; None where none did."""
    query = sa.text("""
        WITH lately AS (
            SELECT id, extract(epoch FROM stopped - started)::float8 AS run_s FROM jobs
            WHERE pipeline_id = :pipeline_id AND state = 'STOPPED' AND status = 'HEALTHY'
            ORDER BY created DESC LIMIT :of_last
        )
        SELECT '' AS operator, percentile_cont(0.5) WITHIN GROUP (ORDER BY run_s) AS median_s FROM lately
        UNION ALL
        SELECT name, percentile_cont(0.5) WITHIN GROUP (ORDER BY run_time_s)
        FROM job_operators JOIN lately ON lately.id = job_id WHERE run_time_s IS NOT NULL GROUP BY name
    """)
    with statements(engine) as connection:
        rows = connection.execute(query, {"pipeline_id": pipeline_id, "of_last": of_last})
        medians = {row.operator: row.median_s for row in rows if row.median_s is not None}
    return medians.pop("", None), medians


def names(engine: sa.Engine, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, str]:
    """The names of those jobs that there are."""
    with statements(engine) as connection:
        rows = connection.execute(sa.select(col(Job.id), col(Job.name)).where(col(Job.id).in_(ids)))
        return {row.id: row.name for row in rows}


def delete_records(engine: sa.Engine, ids: Collection[uuid.UUID]) -> list[uuid.UUID]:
    """Delete the records of stopped jobs, and of their payloads where these are removed and no other job's.

    Returns the ids of the jobs that were deleted; one that has not stopped is left alone.
    """
    with transaction(engine) as session:
        stopped = select(Job).where(col(Job.id).in_(ids), col(Job.state) == JobState.STOPPED)
        gone = list(session.exec(stopped.order_by(col(Job.id)).with_for_update(key_share=False)))
        session.execute(sa.delete(Job).where(col(Job.id).in_([job.id for job in gone])))
        session.execute(
            sa.delete(Payload).where(
                col(Payload.id).in_([job.payload_id for job in gone]),
                col(Payload.removed).is_not(None),
                ~sa.exists().where(col(Job.payload_id) == Payload.id),
            )
        )
        return [job.id for job in gone]
