"""What must be repaired, decided without a clock, a database or a disk: facts in, repairs out.

Nobody needs these repairs while everybody lives: a job's end deletes its leases, its runner begins what was admitted.
They are for what a `kill -9`, a lost connection or a restored database leaves between two of those steps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from clara_flow.records.state_machine import JobPhase
from clara_flow.records.upkeep import Holder


@dataclass(frozen=True, slots=True)
class Readmit:
    """A job that was admitted and never begun goes back to the queue, to be admitted anew."""

    job_id: UUID
    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """Leases that nobody holds or waits for any more are deleted."""

    job_id: UUID
    leases: frozenset[UUID]
    reason: str


Repair = Readmit | Release


def repair_of(holder: Holder, *, begin_limit_s: float) -> Repair | None:
    """What must be done about a job's leases; None when they are as they should be.

    begin_limit_s   how long after its admission a job may be without a runner.
    """
    everything = frozenset(lease.id for lease in holder.leases)
    if not everything:
        return None
    if holder.phase is JobPhase.RUNNING:
        strangers = frozenset(lease.id for lease in holder.leases if lease.owner != holder.fence)
        return Release(holder.id, strangers, "of an earlier runner") if strangers else None
    if holder.phase is not JobPhase.QUEUED:
        return Release(holder.id, everything, f"the job is {holder.phase}")
    admission = next((lease for lease in holder.leases if not lease.operator and lease.held_s is not None), None)
    if admission is None:
        return Release(holder.id, everything, "the job waits to be admitted")
    if admission.held_s is not None and admission.held_s > begin_limit_s:
        return Readmit(holder.id, f"no runner began it within {begin_limit_s:g} s of its admission")
    strangers = frozenset(lease.id for lease in holder.leases if lease.owner is not None)
    return Release(holder.id, strangers, "of an earlier runner") if strangers else None


@dataclass(frozen=True, slots=True)
class FoundFolder:
    """A payload's folder, and when something in it last changed (UTC)."""

    id: UUID
    touched: datetime


def unrecorded(folders: Iterable[FoundFolder], known: Collection[UUID], *, before: datetime) -> list[UUID]:
    """Payload folders without a record that nobody has touched since `before`: their maker died before it wrote one.

    When not a single folder is known, these records are not this store's (another database was set, or an empty one
    was put in its place): then none is named.
    """
    found = list(folders)
    if not any(folder.id in known for folder in found):
        return []
    return [folder.id for folder in found if folder.id not in known and folder.touched < before]
