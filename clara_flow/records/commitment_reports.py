"""Reports of storage commitment that peers are owed: asked for, not acknowledged, to be told on another association.

Lines of journals make and settle them, within the transaction that takes the lines; whoever tells them claims one for
a while. What is told twice is told once: a report says what is so when it is told.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Session, col, select

from clara_flow.records.database import reading, transaction
from clara_flow.records.delivery_steps import clock
from clara_flow.records.dicom_lines import CommitmentAsked
from clara_flow.records.dicom_models import Association, CommitmentReport
from clara_flow.records.transitions import announce, storable

CHANNEL = "clara_flow_commitment"  # {}: something is owed now


@dataclass(frozen=True, slots=True)
class Owed:
    """A report that is not told yet, without what it is about; is_due: it may be told now."""

    id: uuid.UUID
    calling_ae: str
    peer: str
    destination: str
    message: str
    is_due: bool


def owe(session: Session, line: CommitmentAsked, association: Association) -> None:
    """A peer asked. A request that repeats the transaction UID of an earlier one takes its place."""
    asked = [[sop_class, list(instances)] for sop_class, instances in line.references.items()]
    this = col(CommitmentReport.id) == line.report
    more = sa.update(CommitmentReport).where(this)
    more = more.values(asked=col(CommitmentReport.asked).op("||")(sa.cast(asked, JSONB)), is_whole=line.is_last)
    if session.execute(more).rowcount:  # type: ignore[attr-defined]
        return
    earlier = sa.delete(CommitmentReport).where(
        col(CommitmentReport.calling_ae) == association.calling_ae,
        col(CommitmentReport.transaction_uid) == line.transaction_uid,
    )
    session.execute(earlier)
    row = CommitmentReport(
        id=line.report,
        association=line.association,
        calling_ae=association.calling_ae,
        called_ae=association.called_ae,
        peer=association.peer,
        transaction_uid=line.transaction_uid,
        asked=asked,
        is_whole=line.is_last,
        created=line.at,
    )
    session.add(row)
    session.flush()


def settle(session: Session, report: uuid.UUID) -> None:
    """The peer was told. No error when it is settled already."""
    session.execute(sa.delete(CommitmentReport).where(col(CommitmentReport.id) == report))


def release(session: Session, associations: Collection[uuid.UUID]) -> None:
    """These associations ended: what their peers were not told is due. A request that was never whole was never
    answered: it is forgotten."""
    theirs = col(CommitmentReport.association).in_(list(associations)), col(CommitmentReport.not_before).is_(None)
    session.execute(sa.delete(CommitmentReport).where(*theirs, ~col(CommitmentReport.is_whole)))
    due = sa.update(CommitmentReport).where(*theirs).values(not_before=sa.func.clock_timestamp())
    if session.execute(due).rowcount:  # type: ignore[attr-defined]
        announce(session, [(CHANNEL, {})])


def owed(engine: sa.Engine) -> list[Owed]:
    """All whose association is over, the oldest first. Raises ServiceError."""
    columns = (CommitmentReport.id, CommitmentReport.calling_ae, CommitmentReport.peer, CommitmentReport.destination,
               CommitmentReport.message)  # fmt: skip
    query = (
        sa.select(*map(col, columns), col(CommitmentReport.not_before) <= sa.func.clock_timestamp())
        .where(col(CommitmentReport.not_before).is_not(None))
        .order_by(col(CommitmentReport.created))
    )
    with reading(engine) as session:
        return [Owed(*row) for row in session.execute(query)]


def list_reports(engine: sa.Engine) -> list[CommitmentReport]:
    """All of them with everything, the oldest first. Raises ServiceError."""
    with reading(engine) as session:
        return list(session.exec(select(CommitmentReport).order_by(col(CommitmentReport.created))))


def direct(engine: sa.Engine, directions: Iterable[tuple[uuid.UUID, str, str]]) -> None:
    """Note which destination is which report's peer: report, name of the destination, message."""
    with transaction(engine) as session:
        for report, destination, message in directions:
            change = sa.update(CommitmentReport).where(col(CommitmentReport.id) == report)
            session.execute(change.values(destination=destination, message=message))


def claim(engine: sa.Engine, destination: str, claim_s: float) -> CommitmentReport | None:
    """One that is due for this destination: for `claim_s` seconds nobody else gets it. The least tried come first."""
    with transaction(engine) as session:
        query = (
            select(CommitmentReport)
            .where(
                col(CommitmentReport.destination) == destination,
                col(CommitmentReport.not_before) <= sa.func.clock_timestamp(),
            )
            .order_by(col(CommitmentReport.attempts), col(CommitmentReport.created))
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        row = session.exec(query).first()
        if row is not None:
            row.attempts += 1
            row.not_before = clock(session) + timedelta(seconds=claim_s)
        return row


def acknowledged(engine: sa.Engine, report: uuid.UUID) -> None:
    """It was told on an association of ours."""
    with transaction(engine) as session:
        settle(session, report)


def postpone(engine: sa.Engine, report: CommitmentReport, message: str, pause_s: float, *, with_others: bool) -> None:
    """It could not be told: it is not tried for `pause_s` seconds, nor, if so said, the others of its destination."""
    with transaction(engine) as session:
        until = clock(session) + timedelta(seconds=pause_s)
        this = sa.update(CommitmentReport).where(col(CommitmentReport.id) == report.id)
        session.execute(this.values(not_before=until, message=storable(message)))
        if with_others:
            others = sa.update(CommitmentReport).where(
                col(CommitmentReport.destination) == report.destination, col(CommitmentReport.not_before) < until
            )
            session.execute(others.values(not_before=until))


def drop(engine: sa.Engine, older_than_s: float) -> int:
    """Forget those that were asked for so long ago. Returns how many."""
    with transaction(engine) as session:
        oldest = sa.func.clock_timestamp() - timedelta(seconds=older_than_s)
        old = sa.delete(CommitmentReport).where(col(CommitmentReport.created) < oldest)
        return int(session.execute(old).rowcount)  # type: ignore[attr-defined]
