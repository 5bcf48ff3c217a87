"""Jobs on their way through the pool: who is queued or admitted, and who goes back to the queue."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Session, col, select

from clara_flow.records.database import statements, transaction
from clara_flow.records.models import Job, Node, OnRestart, is_silent
from clara_flow.records.owner import Owner
from clara_flow.records.state_machine import JobEvent, JobPhase, JobState
from clara_flow.records.transitions import change, check_owner, locked

MOST_REQUEUES = 5


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """What the pool must know of a job that waits to be admitted, or was admitted and has not begun.

    priority    a word of JobPriority.
    queued      UTC; also after a preemption the first time.
    demand      `{"job": amounts, "first": [operator, amounts] | null, "needs": [amounts...], "limit_s": seconds,
                "expected_s": seconds | null}`, amounts by resource name (`infra.ledger`).
    node        where it was admitted; None: it waits.
    """

    id: uuid.UUID
    name: str
    tenant: str
    priority: str
    queued: datetime
    demand: dict[str, Any]
    preemptible: bool
    node: str | None


# Said often, made once: to make it costs more than to run it.
QUEUED = (
    sa.select(*(col(getattr(Job, name)) for name in QueuedJob.__slots__))
    .where(col(Job.state) == JobState.PENDING, col(Job.queued).is_not(None))
    .order_by(col(Job.queued), col(Job.id))
)
WAITING = sa.select(col(Job.id)).where(
    col(Job.state) == JobState.PENDING, col(Job.queued).is_not(None), col(Job.node).is_(None)
)
QUEUED_OF = QUEUED.where(col(Job.id) == sa.any_(sa.bindparam("ids", type_=ARRAY(sa.Uuid))))


def queued(engine: sa.Engine, ids: Collection[uuid.UUID] | None = None) -> list[QueuedJob]:
    """The queued jobs, first come first; of `ids` only where given."""
    with statements(engine) as connection:
        rows = connection.execute(QUEUED) if ids is None else connection.execute(QUEUED_OF, {"ids": list(ids)})
        return [QueuedJob(*row) for row in rows]


def waiting(engine: sa.Engine) -> set[uuid.UUID]:
    """The ids of the queued jobs that were not admitted: of many, much less than to read them."""
    with statements(engine) as connection:
        return set(connection.execute(WAITING).scalars())


def requeue_job(
    engine: sa.Engine,
    job_id: uuid.UUID,
    *,
    reason: str,
    owner: Owner | None = None,
    most_requeues: int = MOST_REQUEUES,
) -> Job:
    """A job goes back to the queue, with its place there: its next run goes on from its sealed operators.

    owner   its runner, which was asked to yield. None: the runner is lost, or never began what it was admitted to; then
            the job's `on_restart` counts, and it is FAULTED when it was lost more than `most_requeues` times.

    A job whose cancel was requested is CANCELED instead; nothing happens to one that waits already or is over.
    Raises StaleOwner when the job is another runner's.
    """
    with transaction(engine) as session:
        job = locked(session, job_id)
        if job.phase is JobPhase.QUEUED and job.node is not None and owner is None:
            return lose(session, job, reason, most_requeues)
        if job.state is not JobState.RUNNING:
            return job
        if owner is None:
            return lose(session, job, reason, most_requeues)
        check_owner(job, owner)
        return change(session, job, JobEvent.CANCEL if job.cancel_requested else JobEvent.REQUEUE, messages=[reason])


def runner_crashed(
    engine: sa.Engine, job_id: uuid.UUID, *, node: str, reason: str, most_requeues: int = MOST_REQUEUES
) -> Job:
    """The runner on `node` that was given a job ended before it had begun it: that counts like a job's lost runner.

    So a job that no runner survives ends FAULTED. Nothing happens to one that was begun, or is not there any more.
    """
    with transaction(engine) as session:
        job = locked(session, job_id)
        if job.phase is not JobPhase.QUEUED or job.node != node:
            return job
        return lose(session, job, reason, most_requeues, counts=True)


def requeue_orphans(
    engine: sa.Engine,
    is_alive: Callable[[Owner], bool] = Owner.is_alive,
    *,
    most_requeues: int = MOST_REQUEUES,
) -> tuple[list[uuid.UUID], list[uuid.UUID]]:
    """Take the jobs whose runner or node is gone from them: each goes back to the queue, or ends, by its `on_restart`.

    Gone is a runner whose process is not `is_alive`; one of another host when its node is silent; and the runner that
    should have begun on a node that is silent. Returns (ids queued again, ids that ended).
    """
    with transaction(engine) as session:
        silent = set(session.exec(select(Node.name).where(is_silent())))
        candidates = session.exec(select(Job).where(col(Job.state) != JobState.STOPPED, suspicious(silent)))
        suspects = {job.id: (job.fence, job.node) for job in candidates if is_orphan(job, silent, is_alive)}
        session.expunge_all()
        query = select(Job).where(col(Job.id).in_(suspects)).order_by(col(Job.id))
        orphans = [
            job
            for job in session.exec(query.with_for_update(skip_locked=True, key_share=True))
            if job.state is not JobState.STOPPED and (job.fence, job.node) == suspects[job.id]
        ]
        for job in orphans:
            gone = "its runner is gone" if job.node not in silent else f"node {job.node} is silent"
            lose(session, job, gone, most_requeues)
        return (
            [job.id for job in orphans if job.state is not JobState.STOPPED],
            [job.id for job in orphans if job.state is JobState.STOPPED],
        )


def suspicious(silent: Collection[str]) -> sa.ColumnElement[bool]:
    """Running jobs, and admitted ones whose node is silent."""
    return sa.or_(col(Job.state) == JobState.RUNNING, col(Job.node).in_(silent))


def is_orphan(job: Job, silent: Collection[str], is_alive: Callable[[Owner], bool]) -> bool:
    """Whether nobody runs it, or will begin it."""
    owner = job.owner
    if job.state is not JobState.RUNNING:
        return job.node in silent
    if owner is None or not is_alive(owner):
        return True
    return owner.host != socket.gethostname() and job.node in silent


def lose(session: Session, job: Job, reason: str, most_requeues: int, *, counts: bool = False) -> Job:
    """Take a locked job from a runner that is gone. counts: also where it had not begun it."""
    counts = counts or job.phase is JobPhase.RUNNING
    if job.phase is JobPhase.RUNNING and job.cancel_requested is not None:
        return change(session, job, JobEvent.CANCEL, messages=[reason])
    if job.phase is JobPhase.RUNNING and job.on_restart is OnRestart.EVICT:
        return change(session, job, JobEvent.EVICT, messages=[reason])
    if counts and job.losses >= most_requeues:
        times = f"it was queued again {job.losses} times after its runner was lost, and not once more"
        return change(session, job, JobEvent.FAULT, messages=[reason, times])
    job.losses += counts
    return change(session, job, JobEvent.REQUEUE, messages=[reason])
