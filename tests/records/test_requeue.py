"""Jobs that go back to the queue: asked to yield, orphaned, on a silent node; and what a runner may tell twice."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from pool_records import NODE, OWNER, admit, announce, dead_owner, heard, listening, owner_elsewhere, silence

from clara_flow.errors import InvalidTransition, StaleOwner
from clara_flow.records import jobs, leases
from clara_flow.records.models import Job
from clara_flow.records.owner import Owner
from clara_flow.records.state_machine import JobEvent, JobPhase, JobState, OperatorEvent, OperatorPhase, OperatorStatus

MakeJob = Callable[..., Job]
OPERATORS = ("done", "cached", "runs", "waits", "failed", "skipped", "untouched")


def begin(engine: sa.Engine, job: Job, owner: Owner = OWNER, *, node: str = NODE) -> Job:
    """Admit it to a node and begin it."""
    assert admit(engine, job, node=node) == {job.id}
    return jobs.begin_job(engine, job.id, owner, flow_run_id=uuid.uuid4())


def running(engine: sa.Engine) -> set[uuid.UUID]:
    return {job.id for job in jobs.list_jobs(engine, states=[JobState.RUNNING])}


def bring_into_every_phase(engine: sa.Engine, job: Job, owner: Owner = OWNER) -> None:
    for name in ("done", "runs", "failed"):
        jobs.operator_started(engine, job.id, name, owner, attempt=1, digest="ab", identity="host:1")
    jobs.operator_ended(engine, job.id, "done", owner, OperatorEvent.COMPLETE, attempt=1, exit_code=0, run_time_s=2.5)
    jobs.operator_ended(engine, job.id, "failed", owner, OperatorEvent.FAIL, attempt=1, message="no", exit_code=3)
    jobs.operator_ended(engine, job.id, "cached", owner, OperatorEvent.REUSE, digest="cd")
    jobs.operator_ended(engine, job.id, "skipped", owner, OperatorEvent.SKIP)
    jobs.operator_waits(engine, job.id, "waits", owner, message="a GPU")


# Back to the queue


def test_what_was_sealed_stays_and_the_rest_begins_anew(engine: sa.Engine, make_job: MakeJob) -> None:
    job = begin(engine, make_job(operators=OPERATORS))
    bring_into_every_phase(engine, job)
    before = {row.name: row for row in jobs.list_operators(engine, job.id)}
    back = jobs.requeue_job(engine, job.id, reason="a more urgent job needs its GPU", owner=OWNER)
    assert (back.phase, back.node, back.started, back.owner, back.flow_run_id) == (
        JobPhase.QUEUED,
        None,
        None,
        None,
        None,
    )
    assert (back.queued, back.requeues, back.losses) == (job.queued, 1, 0)
    assert back.messages == ["a more urgent job needs its GPU"]
    assert [line.split()[1] for line in back.story] == ["create", "start", "begin", "requeue"]
    rows = {row.name: row for row in jobs.list_operators(engine, job.id)}
    assert (rows["done"], rows["cached"]) == (before["done"], before["cached"])
    for name in OPERATORS[2:]:
        row = rows[name]
        assert (row.detail, row.started, row.stopped, row.exit_code, row.message) == ("Pending", None, None, None, "")
    assert [rows[name].attempt for name in OPERATORS] == [1, 0, 1, 0, 1, 0, 0]
    assert leases.load(engine) == []
    assert [entry.id for entry in jobs.queued(engine)] == [job.id]


def test_the_next_run_goes_on(engine: sa.Engine, make_job: MakeJob) -> None:
    job = begin(engine, make_job(operators=("done", "cached", "runs")))
    jobs.operator_started(engine, job.id, "done", OWNER, attempt=1)
    done = jobs.operator_ended(engine, job.id, "done", OWNER, OperatorEvent.COMPLETE, attempt=1, exit_code=0)
    cached = jobs.operator_ended(engine, job.id, "cached", OWNER, OperatorEvent.REUSE, digest="cd")
    jobs.operator_started(engine, job.id, "runs", OWNER, attempt=1)
    jobs.requeue_job(engine, job.id, reason="", owner=OWNER)

    next_owner = Owner.of_this_process()
    begin(engine, job, next_owner, node="node-2")
    for _ in range(2):  # told again, it changes nothing
        assert jobs.operator_ended(engine, job.id, "done", next_owner, OperatorEvent.REUSE, digest="x") == done
        assert jobs.operator_ended(engine, job.id, "cached", next_owner, OperatorEvent.REUSE, digest="x") == cached
        assert jobs.operator_started(engine, job.id, "runs", next_owner, attempt=2).attempt == 2
    jobs.operator_ended(engine, job.id, "runs", next_owner, OperatorEvent.COMPLETE, attempt=2)
    ended = jobs.finish_job(engine, job.id, next_owner, JobEvent.COMPLETE)
    assert (ended.phase, ended.node, ended.requeues) == (JobPhase.COMPLETED, "node-2", 1)


def test_what_cannot_be_used_any_more_runs_again(engine: sa.Engine, make_job: MakeJob) -> None:
    job = begin(engine, make_job(operators=("done", "cached")))
    jobs.operator_started(engine, job.id, "done", OWNER, attempt=1)
    jobs.operator_ended(engine, job.id, "done", OWNER, OperatorEvent.COMPLETE, attempt=1, exit_code=0)
    with pytest.raises(InvalidTransition):
        jobs.operator_started(engine, job.id, "done", OWNER, attempt=2)
    for _ in range(2):
        row = jobs.operator_reset(engine, job.id, "done", OWNER)
        assert (row.detail, row.started, row.exit_code, row.attempt) == (OperatorPhase.PENDING, None, None, 1)
    jobs.operator_started(engine, job.id, "done", OWNER, attempt=2)
    with pytest.raises(StaleOwner):
        jobs.operator_reset(engine, job.id, "cached", owner_elsewhere())


def test_a_runner_that_put_its_job_back_has_lost_it(engine: sa.Engine, make_job: MakeJob) -> None:
    job = begin(engine, make_job())
    once = jobs.requeue_job(engine, job.id, reason="preempted", owner=OWNER)
    assert jobs.requeue_job(engine, job.id, reason="preempted", owner=OWNER) == once  # told twice
    for write in (
        lambda: jobs.operator_waits(engine, job.id, "reader", OWNER),
        lambda: jobs.operator_started(engine, job.id, "reader", OWNER, attempt=1),
        lambda: jobs.finish_job(engine, job.id, OWNER, JobEvent.FAULT),
    ):
        with pytest.raises(StaleOwner):
            write()
    assert not jobs.is_owned(engine, job.id, OWNER)
    begin(engine, job, Owner.of_this_process())
    with pytest.raises(StaleOwner):
        jobs.requeue_job(engine, job.id, reason="preempted", owner=OWNER)
    assert jobs.get_job(engine, job.id).phase is JobPhase.RUNNING


def test_it_is_told_to_everybody(engine: sa.Engine, make_job: MakeJob, database_url: str) -> None:
    job = begin(engine, make_job(operators=("runs", "untouched")))
    jobs.operator_started(engine, job.id, "runs", OWNER, attempt=1)
    with listening(database_url, jobs.CHANNEL, jobs.NEWS, leases.CHANNEL) as listener:
        jobs.requeue_job(engine, job.id, reason="preempted", owner=OWNER)
        notices = heard(listener, 6)
    assert [facts["effect"] for channel, facts in notices if channel == jobs.CHANNEL] == [
        "stop-operators", "release", "offer"
    ]  # fmt: skip
    assert {facts["job"] for _, facts in notices} == {str(job.id)}
    assert [(facts["operator"], facts["state"]) for channel, facts in notices if channel == jobs.NEWS] == [
        ("", "queued"), ("runs", "Pending")
    ]  # fmt: skip
    assert notices[-1] == (leases.CHANNEL, {"released": str(job.id), "job": str(job.id)})


def test_a_cancel_is_not_forgotten_on_the_way_back(engine: sa.Engine, make_job: MakeJob) -> None:
    asked, orphan = begin(engine, make_job()), begin(engine, make_job(), dead_owner())
    for job in (asked, orphan):
        jobs.cancel_job(engine, job.id)
    assert jobs.requeue_job(engine, asked.id, reason="preempted", owner=OWNER).phase is JobPhase.CANCELED
    assert jobs.requeue_orphans(engine) == ([], [orphan.id])
    assert jobs.get_job(engine, orphan.id).phase is JobPhase.CANCELED
    assert leases.load(engine) == []


@pytest.mark.parametrize("event", [JobEvent.FAULT, JobEvent.CANCEL])
def test_what_is_over_stays_over(engine: sa.Engine, make_job: MakeJob, event: JobEvent) -> None:
    job = begin(engine, make_job())
    ended = jobs.finish_job(engine, job.id, OWNER, event)
    for owner in (None, OWNER):
        assert jobs.requeue_job(engine, job.id, reason="late", owner=owner) == ended
    waiting = make_job()
    assert jobs.requeue_job(engine, waiting.id, reason="it waits already") == waiting


def test_an_admission_is_taken_back(engine: sa.Engine, make_job: MakeJob) -> None:
    job = make_job()
    admit(engine, job, first="reader")
    back = jobs.requeue_job(engine, job.id, reason="its runner never began")
    assert (back.phase, back.node, back.requeues, back.losses) == (JobPhase.QUEUED, None, 1, 0)
    assert leases.load(engine) == []
    assert admit(engine, job, node="node-2") == {job.id}


def test_a_job_that_no_runner_survives_ends(engine: sa.Engine, make_job: MakeJob) -> None:
    job = make_job()
    for losses in range(1, 4):
        admit(engine, job)
        back = jobs.runner_crashed(engine, job.id, node=NODE, reason="signal 11", most_requeues=3)
        assert (back.phase, back.node, back.losses) == (JobPhase.QUEUED, None, losses)
    admit(engine, job)
    ended = jobs.runner_crashed(engine, job.id, node=NODE, reason="signal 11", most_requeues=3)
    assert ended.phase is JobPhase.FAULTED
    assert ended.messages[-2:] == [
        "signal 11", "it was queued again 3 times after its runner was lost, and not once more",
    ]  # fmt: skip
    assert leases.load(engine) == []


def test_a_crash_counts_only_for_what_waits_to_be_begun_there(engine: sa.Engine, make_job: MakeJob) -> None:
    begun, waits, elsewhere = begin(engine, make_job()), make_job(), make_job()
    admit(engine, elsewhere, node="node-2")
    for job in (begun, waits, elsewhere):
        before = jobs.get_job(engine, job.id)
        assert jobs.runner_crashed(engine, job.id, node=NODE, reason="signal 11") == before


# Orphans


def test_jobs_of_dead_runners_go_on_or_end_as_their_pipeline_says(engine: sa.Engine, make_job: MakeJob) -> None:
    announce(engine)
    resumes, evicted = (begin(engine, make_job(on_restart=how), dead_owner()) for how in ("resume", "evict"))
    alive, elsewhere = begin(engine, make_job()), begin(engine, make_job(), owner_elsewhere())
    waits, admitted = make_job(), make_job()
    admit(engine, admitted)
    assert jobs.requeue_orphans(engine) == ([resumes.id], [evicted.id])
    assert jobs.requeue_orphans(engine) == ([], [])
    assert jobs.get_job(engine, resumes.id).losses == 1
    assert jobs.get_job(engine, evicted.id).phase is JobPhase.EVICTED
    assert running(engine) == {alive.id, elsewhere.id}
    assert [entry.job_id for entry in leases.admitted(engine, NODE)] == [admitted.id]
    assert {entry.id for entry in jobs.queued(engine)} == {resumes.id, waits.id, admitted.id}
    assert jobs.waiting(engine) == {resumes.id, waits.id}


def test_a_silent_node_loses_its_jobs(engine: sa.Engine, make_job: MakeJob) -> None:
    announce(engine)
    announce(engine, "node-2")
    here, there, safe = (
        begin(engine, make_job(), owner, node=node)
        for owner, node in ((OWNER, NODE), (owner_elsewhere(), NODE), (owner_elsewhere(), "node-2"))
    )
    never_begun = make_job()
    admit(engine, never_begun)
    silence(engine)
    requeued, ended = jobs.requeue_orphans(engine)
    assert (set(requeued), ended) == ({there.id, never_begun.id}, [])
    assert jobs.get_job(engine, there.id).messages == [f"node {NODE} is silent"]
    # A runner of this host is looked at itself: its worker may only have been late.
    assert running(engine) == {here.id, safe.id}


def test_silence_while_the_database_was_down_does_not_count(engine: sa.Engine, make_job: MakeJob) -> None:
    announce(engine)
    begin(engine, make_job(), owner_elsewhere())
    with engine.begin() as connection:  # a node's time is a day here; PostgreSQL started after its last word
        old = "heartbeat = now() - interval '3 days', expires = now() - interval '2 days'"
        connection.execute(sa.text(f"UPDATE nodes SET {old}"))  # noqa: S608
    assert jobs.requeue_orphans(engine) == ([], [])
    silence(engine)
    assert len(jobs.requeue_orphans(engine)[0]) == 1


def test_a_job_that_is_lost_again_and_again_is_faulted(engine: sa.Engine, make_job: MakeJob) -> None:
    job = make_job()
    for losses in range(1, 4):
        begin(engine, job, dead_owner())
        assert jobs.requeue_orphans(engine, most_requeues=3) == ([job.id], [])
        assert jobs.get_job(engine, job.id).losses == losses
    begin(engine, job)
    jobs.requeue_job(engine, job.id, reason="preempted", owner=OWNER)  # no loss
    begin(engine, job, dead_owner())
    assert jobs.requeue_orphans(engine, most_requeues=3) == ([], [job.id])
    ended = jobs.get_job(engine, job.id)
    assert (ended.phase, ended.requeues) == (JobPhase.FAULTED, 4)
    assert "it was queued again 3 times after its runner was lost, and not once more" in ended.messages[-1]


def test_two_who_look_for_orphans_find_each_once(engine: sa.Engine, make_job: MakeJob) -> None:
    dead = dead_owner()
    orphans = {begin(engine, make_job(), dead).id for _ in range(12)}
    with ThreadPoolExecutor(4) as pool:
        found = [found for found, _ in pool.map(lambda _: jobs.requeue_orphans(engine), range(4))]
    assert sorted(job_id for ids in found for job_id in ids) == sorted(orphans)


def test_a_job_that_was_begun_anew_meanwhile_is_no_orphan(engine: sa.Engine, make_job: MakeJob) -> None:
    job = begin(engine, make_job(), dead_owner())
    new = Owner.of_this_process()

    def look(owner: Owner) -> bool:  # between the look and the change somebody else was quicker
        if owner.token == job.fence:
            jobs.requeue_job(engine, job.id, reason="quicker")
            begin(engine, job, new)
        return False

    assert jobs.requeue_orphans(engine, look) == ([], [])
    assert jobs.is_owned(engine, job.id, new)


# What a runner may tell twice


def test_beginning_twice_is_one_beginning(engine: sa.Engine, make_job: MakeJob) -> None:
    flow_run = uuid.uuid4()
    job = make_job(flow_run_id=flow_run)
    first = jobs.begin_job(engine, job.id, OWNER)
    assert first.flow_run_id == flow_run
    assert jobs.begin_job(engine, job.id, OWNER) == first
    with pytest.raises(InvalidTransition):
        jobs.begin_job(engine, job.id, Owner.of_this_process())
    jobs.finish_job(engine, job.id, OWNER, JobEvent.FAULT)
    with pytest.raises(InvalidTransition):
        jobs.begin_job(engine, job.id, OWNER)


def test_an_attempt_told_twice_is_one_attempt(engine: sa.Engine, running: Job) -> None:
    first = jobs.operator_started(engine, running.id, "reader", OWNER, attempt=1, digest="ab")
    assert jobs.operator_started(engine, running.id, "reader", OWNER, attempt=1, digest="ab") == first
    with pytest.raises(InvalidTransition, match="attempt 3 of operator 'reader' cannot begin: 1 were made"):
        jobs.operator_started(engine, running.id, "reader", OWNER, attempt=3)
    with pytest.raises(InvalidTransition, match="attempt 2 of operator 'reader' is not the last, 1"):
        jobs.operator_ended(engine, running.id, "reader", OWNER, OperatorEvent.LOSE, attempt=2)
    lost = jobs.operator_ended(engine, running.id, "reader", OWNER, OperatorEvent.LOSE, attempt=1, message="gone")
    assert jobs.operator_ended(engine, running.id, "reader", OWNER, OperatorEvent.LOSE, attempt=1) == lost
    with pytest.raises(InvalidTransition):
        jobs.operator_ended(engine, running.id, "reader", OWNER, OperatorEvent.COMPLETE, attempt=1)
    with pytest.raises(InvalidTransition):
        jobs.operator_started(engine, running.id, "reader", OWNER, attempt=1)  # its end is known
    assert jobs.operator_started(engine, running.id, "reader", OWNER, attempt=2).attempt == 2


def test_a_wait_may_change_its_reason(engine: sa.Engine, running: Job, database_url: str) -> None:
    with listening(database_url, jobs.NEWS) as listener:
        for message in ("a GPU", "a GPU", "its quota of a GPU, \x00\ud800 held by job 12"):
            row = jobs.operator_waits(engine, running.id, "reader", OWNER, message=message)
            assert row.detail is OperatorPhase.WAITING
        jobs.operator_started(engine, running.id, "reader", OWNER, attempt=1)
        jobs.operator_ended(engine, running.id, "reader", OWNER, OperatorEvent.FAIL, attempt=1, message="☤" * 9000)
        news = [facts for _, facts in heard(listener, 4)]
    assert [(facts["state"], facts["message"]) for facts in news] == [
        ("WaitingForResources", "a GPU"),
        ("WaitingForResources", "its quota of a GPU, ? held by job 12"),
        ("Running", ""),
        ("Failed", "☤" * 320),
    ]
    assert {(facts["job"], facts["operator"]) for facts in news} == {(str(running.id), "reader")}
    assert jobs.list_operators(engine, running.id)[0].message == "☤" * 9000


def test_an_operator_that_waits_is_skipped_when_its_job_ends(engine: sa.Engine, running: Job) -> None:
    jobs.operator_waits(engine, running.id, "reader", OWNER, message="a GPU")
    jobs.finish_job(engine, running.id, OWNER, JobEvent.EXPIRE)
    reader = jobs.list_operators(engine, running.id)[0]
    assert (reader.detail, reader.status) == (OperatorPhase.SKIPPED, OperatorStatus.PENDING)
    assert reader.message == "the job ended (terminated) while it waited"


# Stale orders


def test_a_runner_whose_job_went_to_another_node_or_back_to_the_queue_does_not_begin_it(
    engine: sa.Engine, make_job: MakeJob
) -> None:
    job = make_job()
    with pytest.raises(InvalidTransition, match="is not admitted to node here"):
        jobs.begin_job(engine, job.id, OWNER, node="here")
    assert admit(engine, job, node=NODE) == {job.id}
    with pytest.raises(InvalidTransition, match="is not admitted to node elsewhere"):
        jobs.begin_job(engine, job.id, OWNER, node="elsewhere")
    begun = jobs.begin_job(engine, job.id, OWNER, node=NODE)
    assert jobs.begin_job(engine, job.id, OWNER, node=NODE).story == begun.story
