"""Records of jobs against a real PostgreSQL: life, fencing, operators, questions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import sqlalchemy as sa
from pool_records import OWNER, PLAN, dead_owner, owner_elsewhere

from clara_flow.errors import InputError, InvalidTransition, StaleOwner
from clara_flow.records import jobs, payloads, pipelines
from clara_flow.records.models import Job, PayloadKind
from clara_flow.records.owner import Owner, process_start
from clara_flow.records.state_machine import (
    JobEvent,
    JobPhase,
    JobPriority,
    JobState,
    JobStatus,
    OperatorEvent,
    OperatorPhase,
    OperatorStatus,
)


def complete_operators(engine: sa.Engine, job: Job) -> None:
    for row in jobs.list_operators(engine, job.id):
        jobs.operator_started(engine, job.id, row.name, OWNER)
        jobs.operator_ended(engine, job.id, row.name, OWNER, OperatorEvent.COMPLETE, exit_code=0)


# Pipelines and payloads


def test_the_same_pipeline_is_one_record(engine: sa.Engine) -> None:
    first = pipelines.create_pipeline(engine, name="a", definition="d", plan=PLAN, source="first.yaml")
    again = pipelines.create_pipeline(engine, name="a", definition="d", plan=dict(reversed(PLAN.items())), source="2")
    other = pipelines.create_pipeline(engine, name="b", definition="d", plan=PLAN)
    assert again == first
    assert other.id != first.id
    assert pipelines.get_pipeline(engine, first.id).plan == PLAN


def test_the_same_pipeline_from_many_threads_is_one_record(engine: sa.Engine) -> None:
    def create(_: int) -> uuid.UUID:
        return pipelines.create_pipeline(engine, name="a", definition="d", plan=PLAN).id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(create, range(24)))) == 1


def test_payload_records(engine: sa.Engine) -> None:
    payload_id = uuid.uuid4()
    payloads.create_payload(
        engine, kind=PayloadKind.REUSABLE, payload_id=payload_id, input_digest="ab", input_files=2, input_bytes=2**40
    )
    payloads.mark_removed(engine, payload_id)
    removed = payloads.get_payload(engine, payload_id)
    payloads.mark_removed(engine, payload_id)
    assert payloads.get_payload(engine, payload_id).removed == removed.removed is not None
    assert (removed.kind, removed.input_bytes) == (PayloadKind.REUSABLE, 2**40)


@pytest.mark.parametrize("ask", [pipelines.get_pipeline, payloads.get_payload, payloads.mark_removed, jobs.start_job])
def test_what_does_not_exist_is_said(engine: sa.Engine, ask: Callable[[sa.Engine, uuid.UUID], object]) -> None:
    with pytest.raises(InputError, match="there is no"):
        ask(engine, uuid.uuid4())


# The life of a job


def test_a_whole_life(engine: sa.Engine, make_job: Callable[..., Job]) -> None:
    job = make_job(start=False, arguments={"THRESHOLD": "0.5"}, priority=JobPriority.HIGHER)
    assert (job.phase, job.state, job.status, job.queued) == (JobPhase.CREATED, "PENDING", "HEALTHY", None)
    job = jobs.start_job(engine, job.id)
    assert (job.phase, job.state, job.started) == (JobPhase.QUEUED, JobState.PENDING, None)
    flow_run = uuid.uuid4()
    job = jobs.begin_job(engine, job.id, OWNER, flow_run_id=flow_run)
    assert (job.state, job.status, job.stopped) == (JobState.RUNNING, JobStatus.HEALTHY, None)
    assert (job.owner, job.flow_run_id) == (OWNER, flow_run)
    assert jobs.is_owned(engine, job.id, OWNER)
    complete_operators(engine, job)
    jobs.finish_job(engine, job.id, OWNER, JobEvent.COMPLETE, messages=["2 files"])
    stored = jobs.get_job(engine, job.id)
    assert (stored.state, stored.status) == (JobState.STOPPED, JobStatus.HEALTHY)
    assert (stored.messages, stored.arguments, stored.priority) == (["2 files"], {"THRESHOLD": "0.5"}, "HIGHER")
    assert [line.split()[1] for line in stored.story] == ["create", "start", "begin", "complete"]
    assert stored.created < stored.queued < stored.started < stored.stopped
    assert not jobs.is_owned(engine, job.id, OWNER)


@pytest.mark.parametrize(
    ("event", "status", "detail"),
    [
        (JobEvent.FAULT, JobStatus.FAULTED, OperatorPhase.LOST),
        (JobEvent.CANCEL, JobStatus.CANCELED, OperatorPhase.CANCELLED),
        (JobEvent.EXPIRE, JobStatus.TERMINATED, OperatorPhase.TIMED_OUT),
    ],
)
def test_a_job_that_ends_early_ends_its_operators(
    engine: sa.Engine, running: Job, event: JobEvent, status: JobStatus, detail: OperatorPhase
) -> None:
    jobs.operator_started(engine, running.id, "reader", OWNER)
    job = jobs.finish_job(engine, running.id, OWNER, event)
    reader, segment = jobs.list_operators(engine, job.id)
    assert (job.state, job.status) == (JobState.STOPPED, status)
    assert (reader.status, reader.detail, reader.stopped is None) == (OperatorStatus.FAULTED, detail, False)
    assert reader.run_time_s is not None
    assert (segment.status, segment.started, segment.stopped) == (OperatorStatus.PENDING, None, None)


def test_the_same_end_twice_is_one_end(engine: sa.Engine, running: Job) -> None:
    first = jobs.finish_job(engine, running.id, OWNER, JobEvent.FAULT, messages=["why"])
    assert jobs.finish_job(engine, running.id, OWNER, JobEvent.FAULT, messages=["why"]) == first
    with pytest.raises(StaleOwner, match="is over"):
        jobs.finish_job(engine, running.id, OWNER, JobEvent.CANCEL)


def test_a_job_completes_only_when_its_operators_did(engine: sa.Engine, running: Job) -> None:
    with pytest.raises(InvalidTransition, match="reader, segment did not"):
        jobs.finish_job(engine, running.id, OWNER, JobEvent.COMPLETE)
    assert jobs.get_job(engine, running.id).state is JobState.RUNNING


def test_a_second_start_is_refused_with_the_story(engine: sa.Engine, make_job: Callable[..., Job]) -> None:
    with pytest.raises(InvalidTransition, match=r"it cannot start\. Its story: .* create, .* start"):
        jobs.start_job(engine, make_job().id)


def test_one_of_many_runners_gets_the_job(engine: sa.Engine, make_job: Callable[..., Job]) -> None:
    job = make_job()
    owners = [Owner.of_this_process() for _ in range(8)]

    def begin(owner: Owner) -> bool:
        try:
            jobs.begin_job(engine, job.id, owner)
        except InvalidTransition:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(begin, owners))
    assert sum(won) == 1
    assert jobs.get_job(engine, job.id).owner == owners[won.index(True)]


def test_a_refused_job_faults_without_having_begun(engine: sa.Engine, make_job: Callable[..., Job]) -> None:
    job = jobs.fault_job(engine, make_job().id, messages=["it can never fit"])
    assert (job.state, job.status, job.started, job.messages) == ("STOPPED", "FAULTED", None, ["it can never fit"])


def test_only_its_owner_faults_a_running_job(engine: sa.Engine, running: Job) -> None:
    with pytest.raises(InvalidTransition, match="only its owner"):
        jobs.fault_job(engine, running.id, messages=["no"])


def test_a_job_needs_what_it_refers_to(engine: sa.Engine, make_job: Callable[..., Job]) -> None:
    with pytest.raises(InputError, match=r"cannot be created: .*resumes"):
        make_job(resumes=uuid.uuid4())
    first = make_job()
    assert make_job(resumes=first.id).resumes == first.id


# Cancelling


@pytest.mark.parametrize("start", [False, True])
def test_cancel_of_a_pending_job_is_at_once(engine: sa.Engine, make_job: Callable[..., Job], start: bool) -> None:
    job = jobs.cancel_job(engine, make_job(start=start).id, reason="wrong patient side")
    assert (job.state, job.status, job.started) == (JobState.STOPPED, JobStatus.CANCELED, None)
    assert job.messages == ["wrong patient side"]


def test_cancel_of_a_running_job_asks_its_runner(engine: sa.Engine, running: Job, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as listener:
        listener.execute(f"LISTEN {jobs.CHANNEL}")
        job = jobs.cancel_job(engine, running.id)
        heard = next(listener.notifies(timeout=10))
    assert json.loads(heard.payload) == {"job": str(running.id), "effect": "stop-operators"}
    assert (job.state, job.cancel_requested is None) == (JobState.RUNNING, False)
    assert jobs.finish_job(engine, running.id, OWNER, JobEvent.CANCEL).status is JobStatus.CANCELED


def test_cancel_of_a_stopped_job_changes_nothing(engine: sa.Engine, running: Job) -> None:
    ended = jobs.finish_job(engine, running.id, OWNER, JobEvent.FAULT)
    assert jobs.cancel_job(engine, running.id, reason="late") == ended


# Fencing and orphans


def test_a_stranger_cannot_write(engine: sa.Engine, running: Job) -> None:
    stranger = replace(OWNER, token=uuid.uuid4())
    before = jobs.get_job(engine, running.id)
    for write in (
        lambda: jobs.operator_waits(engine, running.id, "reader", stranger),
        lambda: jobs.operator_started(engine, running.id, "reader", stranger),
        lambda: jobs.operator_ended(engine, running.id, "reader", stranger, OperatorEvent.SKIP),
        lambda: jobs.finish_job(engine, running.id, stranger, JobEvent.FAULT),
    ):
        with pytest.raises(StaleOwner, match="does not belong to process"):
            write()
    assert jobs.get_job(engine, running.id) == before
    assert not jobs.is_owned(engine, running.id, stranger)


def test_jobs_of_dead_owners_are_evicted_and_fenced(engine: sa.Engine, make_job: Callable[..., Job]) -> None:
    dead, elsewhere = dead_owner(), owner_elsewhere()
    reused_pid = replace(OWNER, process_start="another boot:1", token=uuid.uuid4())
    owners = [dead, reused_pid, elsewhere, OWNER]
    begun = [jobs.begin_job(engine, make_job(on_restart="evict").id, owner) for owner in owners]
    waiting = make_job()
    jobs.operator_started(engine, begun[0].id, "reader", dead)

    requeued, evicted = jobs.requeue_orphans(engine)
    assert (requeued, set(evicted)) == ([], {begun[0].id, begun[1].id})
    assert jobs.requeue_orphans(engine) == ([], [])
    assert [jobs.get_job(engine, job.id).status for job in begun] == ["EVICTED", "EVICTED", "HEALTHY", "HEALTHY"]
    assert jobs.get_job(engine, waiting.id).state is JobState.PENDING
    assert jobs.list_operators(engine, begun[0].id)[0].detail is OperatorPhase.LOST
    with pytest.raises(StaleOwner, match="is over"):
        jobs.operator_ended(engine, begun[0].id, "reader", dead, OperatorEvent.COMPLETE)
    with pytest.raises(StaleOwner, match="is over"):
        jobs.finish_job(engine, begun[0].id, dead, JobEvent.COMPLETE)
    assert jobs.requeue_orphans(engine, lambda owner: owner.host != "another-host") == ([], [begun[2].id])


def test_who_is_alive() -> None:
    assert Owner.of_this_process().is_alive()
    assert Owner.of_this_process().token != Owner.of_this_process().token
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = replace(OWNER, pid=child.pid, process_start=process_start(child.pid))
    assert owner.is_alive()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie until it is waited for
    assert not owner.is_alive()
    child.communicate()
    assert not owner.is_alive()


# Operators


def test_an_operator_on_its_way(engine: sa.Engine, running: Job) -> None:
    jobs.operator_waits(engine, running.id, "reader", OWNER)
    jobs.operator_started(engine, running.id, "reader", OWNER, waited_s=1.5, digest="ab", identity="host:1")
    failed = jobs.operator_ended(
        engine, running.id, "reader", OWNER, OperatorEvent("out-of-memory"), message="limit 64 MiB", exit_code=137
    )
    assert (failed.status, failed.detail, failed.exit_code) == ("FAULTED", "OutOfMemory", 137)
    jobs.operator_started(engine, running.id, "reader", OWNER, waited_s=0, digest="ab", identity="host:2")
    jobs.operator_ended(
        engine, running.id, "reader", OWNER, OperatorEvent.COMPLETE,
        exit_code=0, run_time_s=2.5, peak_memory_bytes=3 * 2**32,
    )  # fmt: skip
    jobs.operator_ended(engine, running.id, "segment", OWNER, OperatorEvent.REUSE, digest="cd")
    reader, segment = jobs.list_operators(engine, running.id)
    assert (reader.status, reader.detail, reader.attempt, reader.message) == ("COMPLETED", "Completed", 2, "")
    assert (reader.run_time_s, reader.peak_memory_bytes, reader.identity) == (2.5, 3 * 2**32, "host:2")
    assert (segment.status, segment.detail, segment.attempt, segment.digest) == ("COMPLETED", "Cached", 0, "cd")
    assert segment.started is None
    assert jobs.finish_job(engine, running.id, OWNER, JobEvent.COMPLETE).status is JobStatus.HEALTHY


def test_a_skipped_operator_stays_pending_without_times(engine: sa.Engine, running: Job) -> None:
    row = jobs.operator_ended(engine, running.id, "segment", OWNER, OperatorEvent.SKIP, message="reader failed")
    assert (row.status, row.detail, row.started, row.stopped) == ("PENDING", "Skipped", None, None)


def test_siblings_may_write_at_once(engine: sa.Engine, make_job: Callable[..., Job]) -> None:
    names = [f"op-{number}" for number in range(12)]
    job = jobs.begin_job(engine, make_job(operators=names).id, OWNER)

    def run(name: str) -> None:
        jobs.operator_started(engine, job.id, name, OWNER)
        jobs.operator_ended(engine, job.id, name, OWNER, OperatorEvent.COMPLETE)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, names))
    assert [row.name for row in jobs.list_operators(engine, job.id)] == names
    assert jobs.finish_job(engine, job.id, OWNER, JobEvent.COMPLETE).phase is JobPhase.COMPLETED


def test_an_unknown_operator_is_named(engine: sa.Engine, running: Job) -> None:
    with pytest.raises(InputError, match="has no operator 'writer'"):
        jobs.operator_waits(engine, running.id, "writer", OWNER)


# Questions


def test_get_job_by_the_beginning_of_its_id(engine: sa.Engine, make_job: Callable[..., Job]) -> None:
    made = [make_job(name=f"job-{number}") for number in range(20)]
    for job in made:
        assert jobs.get_job(engine, str(job.id)) == jobs.get_job(engine, job.id.hex.upper()) == job
        assert jobs.get_job(engine, str(job.id)[:20]) == job
    letters = [job.id.hex[0] for job in made]
    shared = next(letter for letter in letters if letters.count(letter) > 1)  # 20 ids, 16 letters
    with pytest.raises(InputError, match=rf"several jobs begin with {shared}: .*\(job-\d+\).*Give more") as caught:
        jobs.get_job(engine, shared)
    assert str(caught.value).count("(job-") == min(letters.count(shared), jobs.SHOWN_HITS)


@pytest.mark.parametrize("reference", ["", "-", "%", "liver", "x' OR 1=1", "_", 33 * "a"])
def test_what_is_no_id_is_said(engine: sa.Engine, reference: str) -> None:
    with pytest.raises(InputError, match="is no job id"):
        jobs.get_job(engine, reference)


def test_no_job_begins_so(engine: sa.Engine) -> None:
    with pytest.raises(InputError, match="there is no job abc"):
        jobs.get_job(engine, "abc")


def test_list_jobs_filters_and_orders(engine: sa.Engine, make_job: Callable[..., Job]) -> None:
    first, second, third = (make_job(name=name) for name in ("first", "second", "third"))
    other = pipelines.create_pipeline(engine, name="other", definition="", plan={})
    fourth = make_job(name="fourth", pipeline_id=other.id)
    jobs.cancel_job(engine, second.id)
    jobs.begin_job(engine, third.id, OWNER)

    def names(**filters: object) -> list[str]:
        return [job.name for job in jobs.list_jobs(engine, **filters)]  # type: ignore[arg-type]

    assert names() == ["fourth", "third", "second", "first"]
    assert names(limit=1) == ["fourth"]
    assert names(states=[JobState.PENDING]) == ["fourth", "first"]
    assert names(states=[JobState.PENDING, JobState.RUNNING], pipeline_ids=[first.pipeline_id]) == ["third", "first"]
    assert names(statuses=[JobStatus.CANCELED]) == ["second"]
    assert names(created_after=second.created) == ["fourth", "third"]
    assert names(completed_before=datetime.now(UTC) + timedelta(minutes=1)) == ["second"]
    assert names(completed_before=second.created) == []
    assert fourth.pipeline_id == other.id


# What the database itself refuses


@pytest.mark.parametrize(
    "change",
    [
        "state = 'STOPPED'",  # without a time
        "stopped = now()",  # without the state
        "state = 'RUNNING'",  # without an owner
        "status = 'FAULTED'",  # though it goes on
        "state = 'SINGING'",
        "priority = 'HIGHEST'",
    ],
)
def test_the_tables_refuse_what_no_job_can_be(engine: sa.Engine, make_job: Callable[..., Job], change: str) -> None:
    make_job()
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE jobs SET {change}"))  # noqa: S608
