"""What housekeeping asks the records, and the few changes that nobody else makes."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from clara_flow.records.database import statements, transaction
from clara_flow.records.dicom_models import Delivery
from clara_flow.records.models import Job, Lease, LeaseState, Payload, PayloadKind
from clara_flow.records.state_machine import JobPhase, JobState, JobStatus
from clara_flow.records.transitions import LEASES_CHANNEL, announce, locked


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldLease:
    """A lease as housekeeping sees it. `held_s`: for how long it is granted; None while it is only asked for."""

    id: uuid.UUID
    operator: str
    owner: uuid.UUID | None
    held_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A job with the leases that name it, at one instant."""

    id: uuid.UUID
    phase: JobPhase
    fence: uuid.UUID | None
    leases: tuple[HeldLease, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdlePayload:
    """A payload that nobody uses: its jobs have stopped, no other goes on from them, nothing of it is to be delivered.

    job_ids     its jobs; none for a payload whose maker was killed before it made one.
    completed   whether all of them completed.
    idle_since  UTC: the end of the last one.
    """

    id: uuid.UUID
    job_ids: tuple[uuid.UUID, ...]
    completed: bool
    idle_since: datetime


def holders(engine: sa.Engine) -> list[Holder]:
    """All jobs that hold or ask for something."""
    with transaction(engine) as session:
        return _holders(session, sa.true())


def release_astray(
    engine: sa.Engine, job_id: uuid.UUID, astray: Callable[[Holder], Collection[uuid.UUID]]
) -> list[uuid.UUID]:
    """Delete those leases of a job that `astray` names, of what they are while nobody else can change them."""
    with transaction(engine) as session:
        locked(session, job_id)
        gone = [lease for holder in _holders(session, col(Lease.job_id) == job_id) for lease in astray(holder)]
        if gone:
            session.execute(sa.delete(Lease).where(col(Lease.id).in_(gone)))
            announce(session, [(LEASES_CHANNEL, {"released": str(job_id), "job": str(job_id)})])
        return gone


def _holders(session: Session, which: sa.ColumnElement[bool]) -> list[Holder]:
    now = session.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    rows = session.exec(select(Lease, Job).join(Job, col(Job.id) == Lease.job_id).where(which)).all()
    jobs = {job.id: job for _, job in rows}
    return [
        Holder(
            id=job.id,
            phase=job.phase,
            fence=job.fence,
            leases=tuple(
                HeldLease(
                    id=lease.id,
                    operator=lease.operator,
                    owner=lease.owner,
                    held_s=(now - lease.granted).total_seconds()
                    if lease.state is LeaseState.GRANTED and lease.granted
                    else None,
                )
                for lease, of in rows
                if of.id == job.id
            ),
        )
        for job in jobs.values()
    ]


def known_payloads(engine: sa.Engine, ids: Collection[uuid.UUID]) -> set[uuid.UUID]:
    """Those of `ids` that have a record."""
    with statements(engine) as connection:
        query = sa.select(col(Payload.id)).where(col(Payload.id) == sa.any_(sa.literal(list(ids), ARRAY(sa.Uuid))))
        return set(connection.execute(query).scalars())


def idle_payloads(engine: sa.Engine, before: datetime, *, only: uuid.UUID | None = None) -> list[IdlePayload]:
    """The payloads with files that nobody has used since `before` (with a time zone), the longest idle first.

    only    of this one alone.

    Reusable payloads are never among them: who uploaded one removes it.
    """
    later, earlier = aliased(Job), aliased(Job)
    goes_on_from_it = (
        sa.exists()
        .where(col(later.resumes) == earlier.id, col(earlier.payload_id) == Payload.id)
        .where(col(later.state) != JobState.STOPPED)
    )
    awaits_delivery = (  # whoever registers may leave out the dashes
        sa.exists()
        .where(col(Delivery.ended).is_(None))
        .where(sa.func.replace(sa.func.lower(Delivery.payload_id), "-", "") == _digits(col(Payload.id)))
    )
    idle_since = sa.func.coalesce(sa.func.max(Job.stopped), col(Payload.created))
    query = (
        sa.select(
            col(Payload.id),
            sa.func.array_remove(sa.func.array_agg(Job.id), None),
            sa.func.bool_and(col(Job.status) == JobStatus.HEALTHY),
            idle_since,
        )
        .select_from(Payload)
        .outerjoin(Job, col(Job.payload_id) == Payload.id)
        .where(
            col(Payload.kind) == PayloadKind.PIPELINE,
            col(Payload.removed).is_(None),
            ~goes_on_from_it,
            ~awaits_delivery,
        )
        .group_by(col(Payload.id))
        .having(sa.func.coalesce(sa.func.bool_and(col(Job.state) == JobState.STOPPED), sa.true()), idle_since < before)
        .order_by(idle_since, col(Payload.id))
    )
    if only is not None:
        query = query.where(col(Payload.id) == only)
    with statements(engine) as connection:
        return [
            IdlePayload(id=row[0], job_ids=tuple(row[1]), completed=bool(row[2]), idle_since=row[3])
            for row in connection.execute(query)
        ]


def _digits(identifier: Any) -> sa.ColumnElement[str]:
    return sa.func.replace(sa.cast(identifier, sa.Text), "-", "")


def forget_payload(engine: sa.Engine, payload_id: uuid.UUID) -> None:
    """Delete the record of a payload that no job has; one that has some stays."""
    with transaction(engine) as session:
        nobodys = ~sa.exists().where(col(Job.payload_id) == Payload.id)
        session.execute(sa.delete(Payload).where(col(Payload.id) == payload_id, nobodys))


def stopped_payloads(engine: sa.Engine, since: datetime | None) -> list[uuid.UUID]:
    """Payloads with files of the jobs that stopped after `since` (with a time zone; None: of all that stopped)."""
    query = (
        sa.select(col(Payload.id))
        .join(Job, col(Job.payload_id) == Payload.id)
        .where(col(Payload.removed).is_(None))
        .group_by(col(Payload.id))
        .having(sa.func.bool_and(col(Job.state) == JobState.STOPPED))
    )
    if since is not None:
        query = query.having(sa.func.max(Job.stopped) > since)
    with statements(engine) as connection:
        return list(connection.execute(query).scalars())


def bare_jobs(engine: sa.Engine, before: datetime) -> list[uuid.UUID]:
    """Jobs that stopped before that moment (with a time zone) and whose payload's files are removed."""
    query = (
        sa.select(col(Job.id))
        .join(Payload, col(Payload.id) == Job.payload_id)
        .where(col(Job.stopped) < before, col(Payload.removed).is_not(None))
        .order_by(col(Job.stopped))
    )
    with statements(engine) as connection:
        return list(connection.execute(query).scalars())


def phases(engine: sa.Engine, job_ids: Iterable[str]) -> dict[str, JobPhase]:
    """Where these jobs stand; ids that are none, or no job's, are left out."""
    ids = [parsed for text in job_ids if (parsed := _uuid(text)) is not None]
    with transaction(engine) as session:
        return {str(job.id): job.phase for job in session.exec(select(Job).where(col(Job.id).in_(ids)))}


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
