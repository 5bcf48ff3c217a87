"""Every pair of a job's phase and a kind of lease has its repair; rules of folders without a record."""

from __future__ import annotations

import itertools
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_flow.infra.pool.reconcile import FoundFolder, Readmit, Release, repair_of, unrecorded
from clara_flow.records.state_machine import JobPhase
from clara_flow.records.upkeep import HeldLease, Holder

FENCE, STRANGER = uuid.uuid4(), uuid.uuid4()
LIMIT_S = 60.0
NOW = datetime(2026, 1, 2, tzinfo=UTC)

LEASES = {
    "the job's, fresh": HeldLease(id=uuid.uuid4(), operator="", owner=None, held_s=1.0),
    "the job's, old": HeldLease(id=uuid.uuid4(), operator="", owner=None, held_s=61.0),
    "the job's, its runner's": HeldLease(id=uuid.uuid4(), operator="", owner=FENCE, held_s=500.0),
    "first operator's": HeldLease(id=uuid.uuid4(), operator="a", owner=None, held_s=1.0),
    "its runner's": HeldLease(id=uuid.uuid4(), operator="a", owner=FENCE, held_s=1.0),
    "its runner asks": HeldLease(id=uuid.uuid4(), operator="a", owner=FENCE, held_s=None),
    "earlier runner's": HeldLease(id=uuid.uuid4(), operator="a", owner=STRANGER, held_s=1.0),
    "earlier runner asks": HeldLease(id=uuid.uuid4(), operator="a", owner=STRANGER, held_s=None),
}
# Beside a fresh admission, which lets a queued job be.
FINE = {
    JobPhase.QUEUED: {"the job's, fresh", "first operator's"},
    JobPhase.RUNNING: {"the job's, its runner's", "its runner's", "its runner asks"},
}
OF_A_QUEUED_JOB_ALONE = {
    "the job's, fresh": None,
    "the job's, old": Readmit,
    "the job's, its runner's": Readmit,
    **dict.fromkeys(set(LEASES) - {"the job's, fresh", "the job's, old", "the job's, its runner's"}, Release),
}


def holder(phase: JobPhase, *names: str) -> Holder:
    fence = FENCE if phase is JobPhase.RUNNING else None
    return Holder(id=uuid.uuid4(), phase=phase, fence=fence, leases=tuple(LEASES[name] for name in names))


@pytest.mark.parametrize("phase", JobPhase)
def test_a_job_without_leases_needs_nothing(phase: JobPhase) -> None:
    assert repair_of(holder(phase), begin_limit_s=LIMIT_S) is None


@pytest.mark.parametrize(
    ("phase", "name"),
    [pair for pair in itertools.product(JobPhase, LEASES) if pair[0] is not JobPhase.QUEUED],
)
def test_one_lease_of_a_job_that_does_not_wait(phase: JobPhase, name: str) -> None:
    repair = repair_of(holder(phase, name), begin_limit_s=LIMIT_S)
    if name in FINE.get(phase, set()):
        assert repair is None
    else:
        assert isinstance(repair, Release)
        assert repair.leases == {LEASES[name].id}
        assert repair.reason


@pytest.mark.parametrize("name", LEASES)
def test_one_lease_of_a_queued_job(name: str) -> None:
    repair = repair_of(holder(JobPhase.QUEUED, name), begin_limit_s=LIMIT_S)
    expected = OF_A_QUEUED_JOB_ALONE[name]
    assert repair is None if expected is None else isinstance(repair, expected)


@pytest.mark.parametrize(
    ("phase", "name"), [pair for pair in itertools.product(FINE, LEASES) if not pair[1].startswith("the job's")]
)
def test_beside_leases_that_are_right_only_the_wrong_one_goes(phase: JobPhase, name: str) -> None:
    repair = repair_of(holder(phase, *sorted(FINE[phase] - {name}), name), begin_limit_s=LIMIT_S)
    if name in FINE[phase]:
        assert repair is None
    else:
        assert isinstance(repair, Release)
        assert repair.leases == {LEASES[name].id}


@given(st.sampled_from(JobPhase), st.lists(st.sampled_from(sorted(LEASES)), unique=True))
def test_a_repair_leaves_nothing_to_repair(phase: JobPhase, names: list[str]) -> None:
    before = holder(phase, *names)
    repair = repair_of(before, begin_limit_s=LIMIT_S)
    if isinstance(repair, Readmit):
        return  # the records delete all of its leases with that step
    gone = repair.leases if repair else frozenset()
    kept = tuple(lease for lease in before.leases if lease.id not in gone)
    after = Holder(id=before.id, phase=phase, fence=before.fence, leases=kept)
    assert repair_of(after, begin_limit_s=LIMIT_S) is None
    assert len(kept) < len(before.leases) or repair is None


def test_folders_without_a_record_go_when_they_are_old() -> None:
    known, young, old = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    found = [
        FoundFolder(known, NOW - timedelta(days=9)),
        FoundFolder(young, NOW - timedelta(hours=1)),
        FoundFolder(old, NOW - timedelta(days=2)),
    ]
    assert unrecorded(found, {known}, before=NOW - timedelta(days=1)) == [old]


def test_records_of_another_store_remove_nothing() -> None:
    found = [FoundFolder(uuid.uuid4(), NOW - timedelta(days=2)) for _ in range(3)]
    assert unrecorded(found, set(), before=NOW) == []
    assert unrecorded(found, {uuid.uuid4()}, before=NOW) == []
