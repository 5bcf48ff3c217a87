"""What journals of the spool tell, into tables: every line exactly once.

A transaction takes some lines of one journal and moves the journal's offset with them, so that a process that ends
anywhere finds either both or neither. Whoever comes with another offset than the stored one is refused.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col

from clara_flow.errors import StaleOwner
from clara_flow.records.database import statements, transaction
from clara_flow.records.delivery_steps import clock
from clara_flow.records.dicom_intake import Intake
from clara_flow.records.dicom_lines import (
    Closed,
    CommitmentAsked,
    CommitmentTold,
    GroupingRule,
    Late,
    Line,
    Opened,
    Stepped,
    Stored,
)
from clara_flow.records.dicom_models import SpoolJournal

__all__ = [
    "Closed",
    "CommitmentAsked",
    "CommitmentTold",
    "GroupingRule",
    "Ingested",
    "Late",
    "Line",
    "Opened",
    "Stepped",
    "Stored",
    "forget_journal",
    "ingest",
    "lose_journal",
    "offsets",
]


@dataclass(frozen=True, slots=True)
class Ingested:
    """touched: groups that took an instance, with the names of their AE titles.
    settled: open groups that an association of theirs ended for.
    spoken_of: open groups of whose study a modality said something.
    """

    touched: Mapping[uuid.UUID, str] = field(default_factory=dict)
    settled: frozenset[uuid.UUID] = frozenset()
    spoken_of: frozenset[uuid.UUID] = frozenset()


def offsets(engine: sa.Engine) -> dict[str, int]:
    """How many bytes of each journal are in the tables."""
    with statements(engine) as connection:
        rows = connection.execute(sa.select(col(SpoolJournal.name), col(SpoolJournal.offset)))
        return {row[0]: row[1] for row in rows}


def ingest(
    engine: sa.Engine,
    journal: str,
    lines: Sequence[Line],
    *,
    offset: int,
    new_offset: int,
    rules: Mapping[str, GroupingRule],
) -> Ingested:
    """Take the lines of a journal between two offsets (bytes), in one transaction.

    rules   by the AE titles' names; one without a rule groups as `GroupingRule()` does.

    Raises StaleOwner when the journal was read on by somebody else; then nothing was taken.
    """
    with transaction(engine) as session:
        _lock(session, journal, offset)
        intake = Intake(session, journal, rules, clock(session))
        intake.take(lines)
        session.execute(_moved(journal, new_offset))
        return Ingested(intake.touched, frozenset(intake.settled), frozenset(intake.spoken_of))


def lose_journal(engine: sa.Engine, journal: str, *, offset: int) -> Ingested:
    """A journal whose writer is gone was read to its end, `offset`: what it left open was lost. Raises StaleOwner."""
    with transaction(engine) as session:
        _lock(session, journal, offset)
        intake = Intake(session, journal, {}, clock(session))
        intake.lose()
        return Ingested(settled=frozenset(intake.settled))


def forget_journal(engine: sa.Engine, journal: str) -> None:
    """The file is gone, durably: only then its offset may go."""
    with transaction(engine) as session:
        session.execute(sa.delete(SpoolJournal).where(col(SpoolJournal.name) == journal))


def _lock(session: Session, journal: str, offset: int) -> None:
    session.execute(insert(SpoolJournal).values(name=journal, offset=0).on_conflict_do_nothing())
    query = sa.select(col(SpoolJournal.offset)).where(col(SpoolJournal.name) == journal).with_for_update()
    stored = session.execute(query).scalar_one()
    if stored != offset:
        raise StaleOwner(f"journal {journal} was read up to byte {stored} by somebody else", journal=journal)


def _moved(journal: str, offset: int) -> sa.Update:
    return sa.update(SpoolJournal).where(col(SpoolJournal.name) == journal).values(offset=offset)
