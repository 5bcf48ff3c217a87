"""Job and operator state machines: every pair by a table, every walk by hypothesis."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from clara_flow import errors
from clara_flow.errors import InvalidTransition
from clara_flow.records.state_machine import (
    ENDS_OF_RUNNING,
    JOB_TRANSITIONS,
    JobEffect,
    JobEvent,
    JobPhase,
    JobState,
    JobStatus,
    OperatorEvent,
    OperatorPhase,
    OperatorStatus,
    advance_job,
    advance_operator,
)

# Columns: start begin complete fault request-cancel cancel expire evict requeue. "-": not allowed.
JOB_TABLE = """
created     queued  -        -          faulted  canceled  -         -           -        -
queued      -       running  -          faulted  canceled  -         -           -        queued
running     -       -        completed  faulted  running   canceled  terminated  evicted  queued
completed   -       -        -          -        -         -         -           -        -
faulted     -       -        -          -        -         -         -           -        -
canceled    -       -        -          -        -         -         -           -        -
evicted     -       -        -          -        -         -         -           -        -
terminated  -       -        -          -        -         -         -           -        -
"""

# Columns: wait begin completed cached skipped failed out-of-memory timed-out cancelled lost output-missing reset.
FAILED = "Failed OutOfMemory TimedOut Cancelled Lost OutputMissing"
OPERATOR_TABLE = f"""
Pending              WaitingForResources  Running  -          Cached     Skipped  {FAILED}          -
WaitingForResources  -                    Running  -          Cached     Skipped  {FAILED}          Pending
Skipped              -                    -        -          -          -        -  -  -  -  -  -  Pending
Running              -                    -        Completed  -          -        {FAILED}          Pending
Completed            -                    -        -          Completed  -        -  -  -  -  -  -  Pending
Cached               -                    -        -          Cached     -        -  -  -  -  -  -  Pending
Failed               WaitingForResources  Running  -          -          -        -  -  -  -  -  -  Pending
OutOfMemory          WaitingForResources  Running  -          -          -        -  -  -  -  -  -  Pending
TimedOut             WaitingForResources  Running  -          -          -        -  -  -  -  -  -  Pending
Cancelled            WaitingForResources  Running  -          -          -        -  -  -  -  -  -  Pending
Lost                 WaitingForResources  Running  -          -          -        -  -  -  -  -  -  Pending
OutputMissing        WaitingForResources  Running  -          -          -        -  -  -  -  -  -  Pending
"""


def cells(table: str, events: list[str]) -> list[tuple[str, str, str]]:
    """(phase, event, expected phase) for every cell."""
    rows = [line.split() for line in table.strip().splitlines()]
    assert all(len(row) == len(events) + 1 for row in rows)
    return [(row[0], event, target) for row in rows for event, target in zip(events, row[1:], strict=True)]


JOB_CELLS = cells(JOB_TABLE, [event.value for event in JobEvent])
OPERATOR_CELLS = cells(OPERATOR_TABLE, [event.value for event in OperatorEvent])


def test_the_tables_cover_every_pair() -> None:
    assert {cell[:2] for cell in JOB_CELLS} == set(itertools.product(JobPhase, JobEvent))
    assert {cell[:2] for cell in OPERATOR_CELLS} == set(itertools.product(OperatorPhase, OperatorEvent))


@pytest.mark.parametrize(("phase", "event", "expected"), JOB_CELLS)
def test_job_pair(phase: str, event: str, expected: str) -> None:
    if expected == "-":
        with pytest.raises(InvalidTransition, match=f"job 7 is {phase}: it cannot {event}.*created, sung"):
            advance_job(JobPhase(phase), JobEvent(event), job="7", story=("created", "sung"))
    else:
        assert advance_job(JobPhase(phase), JobEvent(event))[0] == expected


@pytest.mark.parametrize(("phase", "event", "expected"), OPERATOR_CELLS)
def test_operator_pair(phase: str, event: str, expected: str) -> None:
    if expected == "-":
        with pytest.raises(InvalidTransition, match=f"operator 'reader' is {phase}"):
            advance_operator(OperatorPhase(phase), OperatorEvent(event), operator="reader")
    else:
        assert advance_operator(OperatorPhase(phase), OperatorEvent(event)) == expected


@pytest.mark.parametrize(
    ("phase", "event", "effects"),
    [
        (JobPhase.CREATED, JobEvent.START, (JobEffect.OFFER,)),
        (JobPhase.CREATED, JobEvent.FAULT, (JobEffect.RELEASE,)),
        (JobPhase.CREATED, JobEvent.REQUEST_CANCEL, (JobEffect.RELEASE,)),
        (JobPhase.QUEUED, JobEvent.BEGIN, ()),
        (JobPhase.QUEUED, JobEvent.FAULT, (JobEffect.RELEASE,)),
        (JobPhase.QUEUED, JobEvent.REQUEST_CANCEL, (JobEffect.RELEASE,)),
        (JobPhase.QUEUED, JobEvent.REQUEUE, (JobEffect.RELEASE, JobEffect.OFFER)),
        (JobPhase.RUNNING, JobEvent.REQUEST_CANCEL, (JobEffect.STOP_OPERATORS,)),
        (JobPhase.RUNNING, JobEvent.COMPLETE, (JobEffect.RELEASE,)),
        (JobPhase.RUNNING, JobEvent.FAULT, (JobEffect.RELEASE,)),
        (JobPhase.RUNNING, JobEvent.CANCEL, (JobEffect.RELEASE,)),
        (JobPhase.RUNNING, JobEvent.EXPIRE, (JobEffect.RELEASE,)),
        (JobPhase.RUNNING, JobEvent.EVICT, (JobEffect.STOP_OPERATORS, JobEffect.RELEASE)),
        (JobPhase.RUNNING, JobEvent.REQUEUE, (JobEffect.STOP_OPERATORS, JobEffect.RELEASE, JobEffect.OFFER)),
    ],
)
def test_effects(phase: JobPhase, event: JobEvent, effects: tuple[JobEffect, ...]) -> None:
    assert advance_job(phase, event)[1] == effects


# Platform API, jobs: the pairs that exist (UNKNOWN is reserved; RUNNING is never unhealthy).
API_PAIRS = {
    ("PENDING", "HEALTHY"),
    ("RUNNING", "HEALTHY"),
    ("STOPPED", "HEALTHY"),
    ("STOPPED", "FAULTED"),
    ("STOPPED", "CANCELED"),
    ("STOPPED", "EVICTED"),
    ("STOPPED", "TERMINATED"),
}


@pytest.mark.parametrize(("state", "status"), list(itertools.product(JobState, JobStatus)))
@pytest.mark.parametrize("queued", [False, True])
def test_every_pair_of_state_and_status_is_a_phase_or_refused(state: JobState, status: JobStatus, queued: bool) -> None:
    if (state, status) not in API_PAIRS:
        with pytest.raises(InvalidTransition, match=f"{state}/{status}"):
            JobPhase.of(state, status, queued=queued)
    else:
        phase = JobPhase.of(state, status, queued=queued)
        assert (phase.state, phase.status) == (state, status)
        assert (phase is JobPhase.QUEUED) <= queued
        assert (phase is JobPhase.CREATED) <= (not queued)


def test_every_operator_error_has_an_event_that_faults() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.OperatorError)
    ]
    assert len(kinds) >= 7
    for kind in kinds:
        phase = advance_operator(OperatorPhase.RUNNING, OperatorEvent(kind.outcome))
        assert phase.status is OperatorStatus.FAULTED


def test_every_end_of_a_running_job_but_success_ends_its_running_operators() -> None:
    ends = {
        event
        for (phase, event), (target, _) in JOB_TRANSITIONS.items()
        if phase is JobPhase.RUNNING and target.state is JobState.STOPPED
    }
    assert set(ENDS_OF_RUNNING) == ends - {JobEvent.COMPLETE}
    for event in ENDS_OF_RUNNING.values():
        assert advance_operator(OperatorPhase.RUNNING, event).status is OperatorStatus.FAULTED


class AnyJob(RuleBasedStateMachine):
    """A job that is told anything, at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = JobPhase.CREATED
        self.story: list[JobEvent] = []
        self.ended: JobPhase | None = None

    @rule(event=st.sampled_from(JobEvent))
    def happens(self, event: JobEvent) -> None:
        before = self.phase
        if (before, event) not in JOB_TRANSITIONS:
            with pytest.raises(InvalidTransition) as caught:
                advance_job(before, event, story=self.story)
            assert caught.value.story == tuple(self.story)
            return
        self.phase, effects = advance_job(before, event, story=self.story)
        self.story.append(event)
        if before.state is not JobState.STOPPED and self.phase.state is JobState.STOPPED:
            self.ended = self.phase
        ends = self.phase.state is JobState.STOPPED
        assert (JobEffect.RELEASE in effects) == (ends or event is JobEvent.REQUEUE)
        assert (JobEffect.OFFER in effects) == (self.phase is JobPhase.QUEUED)
        assert (JobEffect.STOP_OPERATORS in effects) == (
            event in {JobEvent.REQUEUE, JobEvent.EVICT, JobEvent.REQUEST_CANCEL} and before is JobPhase.RUNNING
        )

    @invariant()
    def stopped_is_final(self) -> None:
        assert (self.ended is not None) == (self.phase.state is JobState.STOPPED)
        assert self.ended in {None, self.phase}

    @invariant()
    def only_stopped_is_unhealthy(self) -> None:
        assert self.phase.status is JobStatus.HEALTHY or self.phase.state is JobState.STOPPED

    @invariant()
    def running_was_begun_since_it_was_queued(self) -> None:
        runs = [event for event in self.story if event in {JobEvent.START, JobEvent.REQUEUE, JobEvent.BEGIN}]
        assert runs[:1] in ([], [JobEvent.START])
        assert all(first is not JobEvent.BEGIN or then is JobEvent.REQUEUE for first, then in itertools.pairwise(runs))
        if self.phase.state is JobState.RUNNING or self.phase in {JobPhase.COMPLETED, JobPhase.TERMINATED}:
            assert runs[-1] is JobEvent.BEGIN


class AnyOperator(RuleBasedStateMachine):
    """An operator that is told anything, at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = OperatorPhase.PENDING
        self.attempts = 0

    @rule(event=st.sampled_from(OperatorEvent))
    def happens(self, event: OperatorEvent) -> None:
        before = self.phase
        try:
            self.phase = advance_operator(before, event)
        except InvalidTransition:
            assert self.phase is before
            return
        self.attempts += event is OperatorEvent.BEGIN
        if event is OperatorEvent.RESET:
            assert self.phase is OperatorPhase.PENDING
        elif before.status is OperatorStatus.COMPLETED:
            assert (event, self.phase) == (OperatorEvent.REUSE, before)
        else:
            assert before is not OperatorPhase.SKIPPED

    @invariant()
    def completed_ran_or_was_cached(self) -> None:
        if self.phase is OperatorPhase.COMPLETED:
            assert self.attempts > 0
        if self.phase is OperatorPhase.SKIPPED:
            assert self.phase.status is OperatorStatus.PENDING


TestAnyJob = AnyJob.TestCase
TestAnyOperator = AnyOperator.TestCase
