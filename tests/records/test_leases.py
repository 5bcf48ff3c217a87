"""Leases against a real PostgreSQL: asked for, granted, renewed, released; each in one transaction."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from pool_records import NODE, OWNER, TTL_S, admission, admit, heard, listening, owner_elsewhere

from clara_flow.errors import InputError, StaleOwner
from clara_flow.records import jobs, leases
from clara_flow.records.leases import GrantRow, LeaseRow, LeaseState
from clara_flow.records.models import Job
from clara_flow.records.owner import Owner
from clara_flow.records.state_machine import JobEvent, JobPriority, OperatorEvent

MakeJob = Callable[..., Job]


def ask(engine: sa.Engine, job: Job, operator: str = "segment", owner: Owner = OWNER, **more: object) -> LeaseRow:
    facts = {"amounts": {"gpu": 1}, "limit_s": 600.0, **more}
    return leases.ask(engine, job_id=job.id, operator=operator, owner=owner, **facts)  # type: ignore[arg-type]


def serve(
    engine: sa.Engine, *rows: LeaseRow, node: str = NODE, devices: tuple[str, ...] = ("GPU-2",)
) -> set[uuid.UUID]:
    grants = [
        GrantRow(
            id=row.id, job_id=row.job_id, operator=row.operator, part=row.part, amounts=row.amounts, node=node,
            devices=devices, limit_s=row.limit_s,
        )
        for row in rows
    ]  # fmt: skip
    return leases.grant(engine, grants, TTL_S)


# Admission of queued jobs


def test_an_admitted_job_has_its_lease_and_that_of_its_first_operator(engine: sa.Engine, make_job: MakeJob) -> None:
    job = make_job(tenant="radiology")
    grants = admission(job, first="reader")
    assert leases.grant(engine, grants, TTL_S) == {grant.id for grant in grants}
    own, first = sorted(leases.load(engine, [job.id]), key=lambda row: row.operator)
    assert (own.id, own.operator, own.amounts, own.limit_s) == (job.id, "", {"jobs": 1}, float("inf"))
    assert (own.state, own.node, own.owner, own.devices, own.part) == (LeaseState.GRANTED, NODE, None, [], "")
    assert (first.operator, first.amounts, first.devices, first.priority) == ("reader", {"gpu": 1}, ["GPU-1"], 3)
    assert (first.limit_s, first.expected_s) == (60, 2.5)
    assert own.granted is not None
    assert own.expires is not None
    assert (own.expires - own.granted).total_seconds() == TTL_S
    assert [(entry.job_id, entry.granted) for entry in leases.admitted(engine, NODE)] == [(job.id, own.granted)]
    assert leases.admitted(engine, "node-2") == []
    assert [queued.node for queued in jobs.queued(engine, [job.id])] == [NODE]


def test_a_job_is_admitted_once(engine: sa.Engine, make_job: MakeJob) -> None:
    job = make_job()
    with ThreadPoolExecutor(4) as pool:
        given = list(pool.map(lambda number: admit(engine, job, node=f"node-{number}"), range(4)))
    assert sorted(map(len, given)) == [0, 0, 0, 1]
    assert jobs.get_job(engine, job.id).node == f"node-{given.index({job.id})}"


@pytest.mark.parametrize("end", [jobs.cancel_job, lambda engine, job: jobs.fault_job(engine, job, messages=["no"])])
def test_a_job_that_ended_meanwhile_is_not_admitted(
    engine: sa.Engine, make_job: MakeJob, end: Callable[[sa.Engine, uuid.UUID], Job]
) -> None:
    gone, waiting, created = make_job(), make_job(), make_job(start=False)
    end(engine, gone.id)
    grants = [*admission(gone, first="reader"), *admission(waiting), *admission(created)]
    assert leases.grant(engine, grants, TTL_S) == {waiting.id}
    assert {row.job_id for row in leases.load(engine)} == {waiting.id}
    assert jobs.get_job(engine, gone.id).node is None
    end(engine, waiting.id)
    assert leases.load(engine) == []
    assert leases.admitted(engine, NODE) == []


def test_the_runner_that_begins_owns_the_leases(engine: sa.Engine, make_job: MakeJob) -> None:
    job = make_job()
    admit(engine, job, first="reader")
    for _ in range(2):
        jobs.begin_job(engine, job.id, OWNER)
        assert {row.owner for row in leases.load(engine)} == {OWNER.token}
        assert leases.admitted(engine, NODE) == []
    assert ask(engine, job, "reader").devices == ["GPU-1"]
    assert jobs.get_job(engine, job.id).node == NODE


def test_grants_are_heard(engine: sa.Engine, make_job: MakeJob, database_url: str) -> None:
    job = make_job()
    with listening(database_url, leases.GRANTS) as listener:
        admit(engine, job, first="reader")
        jobs.begin_job(engine, job.id, OWNER)
        waits = ask(engine, job)
        serve(engine, waits)
        own, first, served = (facts for _, facts in heard(listener, 3))
    base = {"job": str(job.id), "part": "", "node": NODE}
    assert own == {**base, "lease": str(job.id), "operator": "", "owner": None, "devices": []}
    assert {name: first[name] for name in ("operator", "owner", "devices")} == {
        "operator": "reader", "owner": None, "devices": ["GPU-1"]
    }  # fmt: skip
    assert served == {
        **base, "lease": str(waits.id), "operator": "segment", "owner": OWNER.token.hex, "devices": ["GPU-2"]
    }  # fmt: skip


# Operators of running jobs


@pytest.fixture
def begun(engine: sa.Engine, make_job: MakeJob) -> Job:
    """A running job on a node."""
    job = make_job(tenant="radiology", priority=JobPriority.HIGHER, preemptible=True)
    admit(engine, job)
    return jobs.begin_job(engine, job.id, OWNER)


def test_asking_is_asking_once(engine: sa.Engine, begun: Job, database_url: str) -> None:
    with listening(database_url, leases.CHANNEL) as listener:
        first = ask(engine, begun, expected_s=5.0, early=True)
        assert ask(engine, begun, amounts={"gpu": 9}) == first
        other = ask(engine, begun, part="gpu")
        notices = heard(listener, 2)
    assert notices == [
        (leases.CHANNEL, {"asked": str(row.id), "job": str(begun.id)}) for row in (first, other)
    ]  # the second asking was none
    assert (first.state, first.tenant, first.priority, first.preemptible) == ("WAITING", "radiology", 3, True)
    assert (first.node, first.owner, first.granted, first.devices) == (NODE, OWNER.token, None, [])
    assert (first.amounts, first.limit_s, first.expected_s, first.early) == ({"gpu": 1}, 600, 5, True)
    assert (other.part, other.early, other.asked >= first.asked) == ("gpu", False, True)
    assert serve(engine, first) == {first.id}
    assert serve(engine, first) == set()
    again = ask(engine, begun)
    assert (again.id, again.state, again.devices, again.node) == (first.id, LeaseState.GRANTED, ["GPU-2"], NODE)
    assert again.asked == first.asked


@pytest.mark.parametrize("priority", list(JobPriority))
def test_priorities_are_numbers(engine: sa.Engine, make_job: MakeJob, priority: JobPriority) -> None:
    job = jobs.begin_job(engine, make_job(priority=priority).id, OWNER)
    assert ask(engine, job).priority == list(JobPriority).index(priority) + 1


def test_only_the_owner_of_a_running_job_asks(engine: sa.Engine, begun: Job, make_job: MakeJob) -> None:
    with pytest.raises(StaleOwner, match="does not belong to process"):
        ask(engine, begun, owner=owner_elsewhere())
    with pytest.raises(StaleOwner, match="does not belong to process"):
        ask(engine, make_job())
    with pytest.raises(InputError, match="there is no job"):
        leases.ask(engine, job_id=uuid.uuid4(), operator="x", owner=OWNER, amounts={}, limit_s=1)
    jobs.finish_job(engine, begun.id, OWNER, JobEvent.FAULT)
    with pytest.raises(StaleOwner, match="is over"):
        ask(engine, begun)
    assert leases.load(engine) == []


def test_giving_back_is_heard_once_and_only_from_the_owner(engine: sa.Engine, begun: Job, database_url: str) -> None:
    row, other = ask(engine, begun), ask(engine, begun, "reader")
    with listening(database_url, leases.CHANNEL) as listener:
        leases.release(engine, begun.id, "segment", "", owner_elsewhere())
        leases.release(engine, begun.id, "segment", "gpu", OWNER)
        assert row in leases.load(engine)
        for _ in range(2):
            leases.release(engine, begun.id, "segment", "", OWNER)
        leases.release(engine, begun.id, "reader", "", OWNER)
        assert heard(listener, 2) == [(leases.CHANNEL, {"released": str(begun.id), "job": str(begun.id)})] * 2
    assert {lease.id for lease in leases.load(engine)} == {begun.id}
    assert serve(engine, row, other) == set()  # too late


@pytest.mark.parametrize("event", [OperatorEvent.COMPLETE, OperatorEvent.LOSE, OperatorEvent.TIME_OUT])
def test_the_end_of_an_operator_releases_it(
    engine: sa.Engine, begun: Job, event: OperatorEvent, database_url: str
) -> None:
    row, rest, sibling = ask(engine, begun), ask(engine, begun, part="gpu"), ask(engine, begun, "reader")
    serve(engine, row, rest)
    jobs.operator_started(engine, begun.id, "segment", OWNER, attempt=1)
    with listening(database_url, leases.CHANNEL) as listener:
        for _ in range(2):
            jobs.operator_ended(engine, begun.id, "segment", OWNER, event, attempt=1)
        leases.release(engine, begun.id, "reader", "", OWNER)
        assert len(heard(listener, 2)) == 2
    assert {lease.id for lease in leases.load(engine)} == {begun.id}
    assert sibling.id not in {lease.id for lease in leases.load(engine)}


@pytest.mark.parametrize("end", ["finish", "requeue", "lost"])
def test_the_end_of_a_run_releases_everything(engine: sa.Engine, begun: Job, end: str, database_url: str) -> None:
    serve(engine, ask(engine, begun))
    ask(engine, begun, "reader")
    with listening(database_url, leases.CHANNEL) as listener:
        if end == "finish":
            jobs.finish_job(engine, begun.id, OWNER, JobEvent.EXPIRE)
        elif end == "requeue":
            jobs.requeue_job(engine, begun.id, reason="preempted", owner=OWNER)
        else:
            jobs.requeue_orphans(engine, lambda owner: False, most_requeues=0)
        assert heard(listener, 1) == [(leases.CHANNEL, {"released": str(begun.id), "job": str(begun.id)})]
    assert leases.load(engine) == []


def test_many_at_once_never_lock_each_other_out(engine: sa.Engine, make_job: MakeJob) -> None:
    """Runners ask and end, grants come in batches, the node renews, reasons are told: all at the same rows."""
    names = [f"op-{number}" for number in range(6)]
    pause = threading.Event()
    begun = []
    for _ in range(6):
        job = make_job(operators=names)
        admit(engine, job)
        owner = Owner.of_this_process()
        begun.append((jobs.begin_job(engine, job.id, owner), owner))

    def run(job: Job, owner: Owner) -> None:
        def operator(name: str) -> None:
            while ask(engine, job, name, owner).state is not LeaseState.GRANTED:
                pause.wait(0.01)  # else the askers leave no connection to who serves them
            jobs.operator_started(engine, job.id, name, owner, attempt=1)
            jobs.operator_ended(engine, job.id, name, owner, OperatorEvent.COMPLETE, attempt=1)

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(operator, names))
        jobs.finish_job(engine, job.id, owner, JobEvent.COMPLETE)

    with ThreadPoolExecutor(len(begun)) as pool:
        runs = [pool.submit(run, job, owner) for job, owner in begun]
        while not all(future.done() for future in runs):
            waiting = [row for row in leases.load(engine) if row.state is LeaseState.WAITING]
            leases.tell_reasons(engine, {row.id: "a GPU" for row in waiting[::2]})
            serve(engine, *reversed(waiting))
            leases.renew(engine, NODE, TTL_S)
        for future in runs:
            future.result()
    assert leases.load(engine) == []
    assert {job.phase for job in jobs.list_jobs(engine)} == {"completed"}


# Renewal


def test_what_is_held_is_renewed(engine: sa.Engine, make_job: MakeJob) -> None:
    job, other = make_job(), make_job()
    admit(engine, job)
    admit(engine, other, node="node-2")
    jobs.begin_job(engine, job.id, OWNER)
    ask(engine, job)
    before = {(row.job_id, row.operator): row.expires for row in leases.load(engine)}
    assert leases.renew(engine, NODE, 2 * TTL_S) == 1
    after = {(row.job_id, row.operator): row.expires for row in leases.load(engine)}
    assert (after[job.id, ""] - before[job.id, ""]).total_seconds() >= TTL_S
    assert after[other.id, ""] == before[other.id, ""]
    assert after[job.id, "segment"] is None  # it waits


# What is told


def test_a_job_is_asked_to_yield_once(engine: sa.Engine, begun: Job, database_url: str) -> None:
    with listening(database_url, leases.GRANTS) as listener:
        leases.mark_yielding(engine, begun.id)
        leases.mark_yielding(engine, begun.id)
        serve(engine, ask(engine, begun))
        notices = [facts for _, facts in heard(listener, 2)]
    assert notices[0] == {"yield": str(begun.id), "owner": OWNER.token.hex}
    assert notices[1]["operator"] == "segment"
    assert [row.yielding for row in leases.load(engine) if row.operator == ""] == [True]


def test_reasons_are_told_when_they_change(engine: sa.Engine, begun: Job, database_url: str) -> None:
    row = ask(engine, begun)
    long = "☤\x00" * 3000
    with listening(database_url, leases.GRANTS) as listener:
        for reason in ("a GPU", "a GPU", long):
            leases.tell_reasons(engine, {row.id: reason, uuid.uuid4(): "gone", begun.id: "held, not asked for"})
        first, second = (facts for _, facts in heard(listener, 2))
    assert first == {
        "lease": str(row.id), "job": str(begun.id), "operator": "segment", "part": "", "owner": OWNER.token.hex,
        "reason": "a GPU",
    }  # fmt: skip
    assert second["reason"] == "☤" * 320
    assert ask(engine, begun).reason == "☤" * 3000
    serve(engine, row)
    assert ask(engine, begun).reason == ""


def test_rows_of_the_ledgers_leases() -> None:
    @dataclass(frozen=True)
    class Amounts:
        def as_json(self) -> dict[str, int]:
            return {"cpu": 2}

    @dataclass(frozen=True, kw_only=True)
    class Lease:
        id: uuid.UUID
        job_id: uuid.UUID
        operator: str = "reader"
        tenant: str = "default"
        priority: int = 4
        amounts: Amounts = Amounts()
        node: str = NODE
        devices: tuple[str, ...] = ("GPU-1",)
        limit_s: float = float("inf")
        expected_s: float | None = None
        preemptible: bool = True

    ids = {"id": uuid.uuid4(), "job_id": uuid.uuid4()}
    row = GrantRow.of(Lease(**ids))
    assert row == GrantRow(
        **ids, operator="reader", priority=4, amounts={"cpu": 2}, node=NODE,
        devices=("GPU-1",), limit_s=float("inf"), preemptible=True,
    )  # fmt: skip


# What the database itself refuses


@pytest.mark.parametrize(
    "change",
    [
        "state = 'GRANTED'",  # nowhere
        "devices = '[\"GPU-1\"]'",  # though it waits
        "owner = NULL",
        "operator = ''",  # a job's lease is never asked for
        "part = 'cpu'",
        "priority = 0",
        "state = 'SINGING'",
        "job_id = gen_random_uuid()",
    ],
)
def test_the_table_refuses_what_no_lease_can_be(engine: sa.Engine, begun: Job, change: str) -> None:
    ask(engine, begun)
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE leases SET {change} WHERE operator <> ''"))  # noqa: S608
