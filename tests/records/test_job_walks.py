"""Random walks over the records of a few jobs, by right and stale owners, on a real PostgreSQL.

Whatever is called in whatever order: every step is one of the state machines', a refused call changes nothing, nobody
writes who does not run the job, and nothing holds a lease that may not.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from pool_records import NODE, TTL_S, admission

from clara_flow.errors import InvalidTransition, StaleOwner
from clara_flow.records import jobs, leases
from clara_flow.records.leases import GrantRow, LeaseRow, LeaseState
from clara_flow.records.models import Job, JobOperator
from clara_flow.records.owner import Owner
from clara_flow.records.state_machine import (
    JOB_TRANSITIONS,
    OPERATOR_TRANSITIONS,
    JobEvent,
    JobPhase,
    JobState,
    OperatorEvent,
    OperatorPhase,
    OperatorStatus,
)

OPERATORS = ("reader", "segment", "writer")
ENDS = [event for event in OperatorEvent if event not in {OperatorEvent.WAIT, OperatorEvent.BEGIN, OperatorEvent.RESET}]
FINISHES = [JobEvent.COMPLETE, JobEvent.FAULT, JobEvent.CANCEL, JobEvent.EXPIRE]
JOB_STEPS = {(before, after) for (before, _), (after, _) in JOB_TRANSITIONS.items()}
OPERATOR_STEPS = {(before, after) for (before, _), after in OPERATOR_TRANSITIONS.items()}

operators = st.sampled_from(OPERATORS)
jobs_numbers = st.integers(0, 1)
# Which of a job's owners calls: mostly the last, else one of those before.
who = st.sampled_from([-1, -1, -1, -2, 0])


ACTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "start": {},
    "cancel": {},
    "admit": {"first": st.sampled_from([None, *OPERATORS])},
    "serve": {},
    "ask_to_yield": {},
    "begin": {"index": who, "is_new": st.booleans()},
    "ask": {"index": who, "operator": operators, "part": st.sampled_from(["", "gpu"])},
    "give_back": {"index": who, "operator": operators},
    "operator_waits": {"index": who, "operator": operators, "message": st.text(max_size=5)},
    "operator_started": {"index": who, "operator": operators, "later": st.sampled_from([0, 1, 1, 2])},
    "operator_ended": {
        "index": who,
        "operator": operators,
        "event": st.one_of(st.just(OperatorEvent.COMPLETE), st.sampled_from(ENDS)),
        "later": st.sampled_from([0, 0, None, 1]),
    },
    "finish": {"index": who, "event": st.sampled_from(FINISHES), "twice": st.booleans()},
    "yields": {"index": who},
    "take_back": {},
    "lose_runner": {"most": st.sampled_from([0, 2, 5])},
    "renew": {},
}


@dataclass(frozen=True)
class Stored:
    """Everything that is stored of one job."""

    job: Job
    operators: dict[str, JobOperator]
    leases: dict[uuid.UUID, LeaseRow]


class Walk(RuleBasedStateMachine):
    """A few jobs, and everybody who may call."""

    def __init__(self, engine: sa.Engine, make_job: Callable[..., Job]) -> None:
        super().__init__()
        self.engine, self.make_job = engine, make_job
        self.owners: dict[uuid.UUID, list[Owner]] = {}

    @initialize(evicted=st.booleans(), steps=st.tuples(st.integers(0, 9), st.integers(3, 9)))
    def begin_with(self, evicted: bool, steps: tuple[int, int]) -> None:
        for number, on_restart in enumerate(("resume", "evict" if evicted else "resume")):
            job = self.make_job(operators=OPERATORS, start=False, on_restart=on_restart)
            self.owners[job.id] = [Owner.of_this_process()]
            self.goes_well(number, steps[number], OPERATORS[number])

    @rule(number=jobs_numbers, steps=st.integers(1, 3), operator=operators)
    def goes_well(self, number: int, steps: int, operator: str) -> None:
        """The job makes some steps as the platform makes them, `operator` first."""
        job_id = list(self.owners)[number]
        for _ in range(steps):
            self.make_next_step(job_id, operator)

    @rule(
        number=jobs_numbers,
        action=st.sampled_from(sorted(ACTIONS)),
        data=st.data(),
    )
    def anybody_calls(self, number: int, action: str, data: st.DataObject) -> None:
        """A call that may be right or wrong, by whom it may be right or wrong."""
        arguments = {name: data.draw(strategy, name) for name, strategy in ACTIONS[action].items()}
        getattr(self, action)(list(self.owners)[number], **arguments)

    def make_next_step(self, job_id: uuid.UUID, operator: str) -> None:
        stored = self.stored(job_id)
        owners = self.owners[job_id]
        owner = next((owner for owner in owners if owner.token == stored.job.fence), owners[-1])
        left = [
            name for name in (operator, *OPERATORS) if stored.operators[name].status is not OperatorStatus.COMPLETED
        ]
        if stored.job.phase is JobPhase.CREATED:
            self.start(job_id)
        elif stored.job.phase is JobPhase.QUEUED and stored.job.node is None:
            self.admit(job_id, operator)
        elif stored.job.phase is JobPhase.QUEUED:
            self.begin(job_id, -1, True)
        elif stored.job.state is JobState.RUNNING and not left:
            jobs.finish_job(self.engine, job_id, owner, JobEvent.COMPLETE)
        elif stored.job.state is JobState.RUNNING:
            row = stored.operators[left[0]]
            if row.detail is OperatorPhase.RUNNING:
                jobs.operator_ended(self.engine, job_id, row.name, owner, OperatorEvent.COMPLETE, attempt=row.attempt)
            elif row.detail is OperatorPhase.SKIPPED:
                self.finish(job_id, -1, JobEvent.FAULT, False)
            elif not any(lease.operator == row.name for lease in stored.leases.values()):
                self.ask(job_id, -1, row.name, "")
            else:
                self.serve(job_id)
                jobs.operator_started(self.engine, job_id, row.name, owner, attempt=row.attempt + 1)

    def stored(self, job_id: uuid.UUID) -> Stored:
        return Stored(
            jobs.get_job(self.engine, job_id),
            {row.name: row for row in jobs.list_operators(self.engine, job_id)},
            {row.id: row for row in leases.load(self.engine, [job_id])},
        )

    def owner(self, job_id: uuid.UUID, index: int) -> Owner:
        owners = self.owners[job_id]
        return owners[max(index, -len(owners))]

    def call(self, job_id: uuid.UUID, function: Callable[..., Any], /, *arguments: Any, **facts: Any) -> Any:
        """Call it; a refused call has changed nothing, any other has made steps that exist. Returns its result."""
        before = self.stored(job_id)
        try:
            result = function(self.engine, *arguments, **facts)
        except (InvalidTransition, StaleOwner):
            assert self.stored(job_id) == before
            return None
        after = self.stored(job_id)
        if (before.job.phase, after.job.phase) not in JOB_STEPS:
            assert before.job.phase is after.job.phase
        for name, row in after.operators.items():
            was = before.operators[name]
            assert row.detail is was.detail or (was.detail, row.detail) in OPERATOR_STEPS
            assert row.attempt >= was.attempt
            if was.status is OperatorStatus.COMPLETED:
                assert row == was  # what is sealed stays
        return result

    def write(
        self, job_id: uuid.UUID, owner: Owner, function: Callable[..., Any], /, *arguments: Any, **facts: Any
    ) -> Any:
        """Call what only the owner of the running job may call."""
        before = self.stored(job_id)
        if before.job.state is JobState.RUNNING and before.job.fence == owner.token:
            return self.call(job_id, function, *arguments, **facts)
        with pytest.raises(StaleOwner):
            function(self.engine, *arguments, **facts)
        assert self.stored(job_id) == before
        return None

    # People and the dispatcher

    def start(self, job_id: uuid.UUID) -> None:
        self.call(job_id, jobs.start_job, job_id)

    def cancel(self, job_id: uuid.UUID) -> None:
        self.call(job_id, jobs.cancel_job, job_id)

    def admit(self, job_id: uuid.UUID, first: str | None) -> None:
        before = self.stored(job_id)
        rows = admission(before.job, first=first)
        given = self.call(job_id, leases.grant, rows, TTL_S)
        may = before.job.phase is JobPhase.QUEUED and before.job.node is None
        assert given == ({row.id for row in rows} if may else set())

    def serve(self, job_id: uuid.UUID) -> None:
        rows = self.stored(job_id).leases.values()
        grants = [
            GrantRow(id=row.id, job_id=job_id, operator=row.operator, amounts=row.amounts, node=NODE, limit_s=1)
            for row in rows
        ]
        given = self.call(job_id, leases.grant, grants, TTL_S)
        assert given == {row.id for row in rows if row.state is LeaseState.WAITING}

    def ask_to_yield(self, job_id: uuid.UUID) -> None:
        self.call(job_id, leases.mark_yielding, job_id)

    # Runners

    def begin(self, job_id: uuid.UUID, index: int, is_new: bool) -> None:
        before = self.stored(job_id).job
        if is_new and before.state is not JobState.RUNNING:
            self.owners[job_id].append(Owner.of_this_process())
        owner = self.owner(job_id, index)
        begun = self.call(job_id, jobs.begin_job, job_id, owner)
        again = before.state is JobState.RUNNING and before.fence == owner.token
        assert (begun is not None) == (before.phase is JobPhase.QUEUED or again)

    def ask(self, job_id: uuid.UUID, index: int, operator: str, part: str) -> None:
        owner = self.owner(job_id, index)
        facts = {"job_id": job_id, "operator": operator, "part": part, "amounts": {"gpu": 1}, "limit_s": 1}
        self.write(job_id, owner, leases.ask, owner=owner, **facts)

    def give_back(self, job_id: uuid.UUID, index: int, operator: str) -> None:
        before, owner = self.stored(job_id), self.owner(job_id, index)
        self.call(job_id, leases.release, job_id, operator, "", owner)
        gone = before.leases.keys() - self.stored(job_id).leases.keys()
        assert all(before.leases[lease_id].owner == owner.token for lease_id in gone)

    def operator_waits(self, job_id: uuid.UUID, index: int, operator: str, message: str) -> None:
        owner = self.owner(job_id, index)
        self.write(job_id, owner, jobs.operator_waits, job_id, operator, owner, message=message)

    def operator_started(self, job_id: uuid.UUID, index: int, operator: str, later: int) -> None:
        owner, attempt = self.owner(job_id, index), self.stored(job_id).operators[operator].attempt + later
        self.write(job_id, owner, jobs.operator_started, job_id, operator, owner, attempt=attempt)

    def operator_ended(
        self, job_id: uuid.UUID, index: int, operator: str, event: OperatorEvent, later: int | None
    ) -> None:
        owner = self.owner(job_id, index)
        attempt = None if later is None else self.stored(job_id).operators[operator].attempt + later
        ended = self.write(job_id, owner, jobs.operator_ended, job_id, operator, owner, event, attempt=attempt)
        if ended is not None:
            assert operator not in {row.operator for row in self.stored(job_id).leases.values()}

    def finish(self, job_id: uuid.UUID, index: int, event: JobEvent, twice: bool) -> None:
        before, owner = self.stored(job_id), self.owner(job_id, index)
        ended = self.call(job_id, jobs.finish_job, job_id, owner, event)
        if before.job.state is not JobState.RUNNING or before.job.fence != owner.token:
            assert self.stored(job_id) == before
        elif ended is not None and twice:
            assert jobs.finish_job(self.engine, job_id, owner, event) == ended

    def yields(self, job_id: uuid.UUID, index: int) -> None:
        before, owner = self.stored(job_id), self.owner(job_id, index)
        self.call(job_id, jobs.requeue_job, job_id, reason="yields", owner=owner)
        if before.job.state is not JobState.RUNNING or before.job.fence != owner.token:
            assert self.stored(job_id) == before

    # Housekeeping

    def take_back(self, job_id: uuid.UUID) -> None:
        self.call(job_id, jobs.requeue_job, job_id, reason="its runner is lost")

    def lose_runner(self, job_id: uuid.UUID, most: int) -> None:
        before = self.stored(job_id).job
        dead = before.fence
        found = self.call(
            job_id, jobs.requeue_orphans, lambda owner: owner.token != dead, most_requeues=most
        )  # what runs elsewhere is left alone
        assert [job_id] in found if before.state is JobState.RUNNING else found == ([], [])

    def renew(self, job_id: uuid.UUID) -> None:
        held = [row for row in leases.load(self.engine) if row.state is LeaseState.GRANTED]
        assert leases.renew(self.engine, NODE, TTL_S) == len(held)

    # What is always so

    @invariant()
    def nothing_is_as_it_may_not_be(self) -> None:
        for job_id in self.owners:
            stored = self.stored(job_id)
            job, rows = stored.job, stored.leases.values()
            if job.state is JobState.RUNNING:
                assert job.owner in self.owners[job_id]
                assert {row.owner for row in rows} <= {job.fence}
            else:
                assert not {OperatorPhase.RUNNING, OperatorPhase.WAITING} & {
                    row.detail for row in stored.operators.values()
                }
            if job.phase is JobPhase.QUEUED and job.node is not None:
                assert {(row.state, row.owner) for row in rows} == {(LeaseState.GRANTED, None)}
                assert job_id in stored.leases
            elif job.state is not JobState.RUNNING:
                assert not rows
            if job.phase is JobPhase.COMPLETED:
                assert {row.status for row in stored.operators.values()} == {OperatorStatus.COMPLETED}
            assert job.requeues == sum(line.endswith(" requeue") for line in job.story)
            assert job.losses <= job.requeues


def test_walks(engine: sa.Engine, make_job: Callable[..., Job]) -> None:
    without_shrinking = (Phase.explicit, Phase.reuse, Phase.generate)  # which would take minutes here
    run_state_machine_as_test(
        lambda: Walk(engine, make_job),
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            phases=without_shrinking,
            suppress_health_check=list(HealthCheck),
        ),
    )
