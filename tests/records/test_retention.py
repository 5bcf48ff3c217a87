"""What housekeeping, history and watchers ask the records of jobs."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from pool_records import OWNER, admit, heard, listening

from clara_flow.errors import InputError
from clara_flow.records import jobs, leases, payloads, pipelines
from clara_flow.records.models import Job, Payload
from clara_flow.records.state_machine import JobEvent

MakeJob = Callable[..., Job]


def stop(engine: sa.Engine, job: Job) -> Job:
    jobs.begin_job(engine, job.id, OWNER)
    return jobs.finish_job(engine, job.id, OWNER, JobEvent.FAULT)


def test_records_are_deleted_with_all_that_is_theirs(engine: sa.Engine, make_job: MakeJob) -> None:
    kept, gone = stop(engine, make_job()), stop(engine, make_job())
    sharing = stop(engine, make_job(payload_id=kept.payload_id))
    resuming, waiting = make_job(resumes=gone.id), make_job()
    admit(engine, waiting)
    for job in (kept, gone):
        payloads.mark_removed(engine, job.payload_id)
    deleted = jobs.delete_records(engine, [gone.id, sharing.id, waiting.id, uuid.uuid4()])
    assert set(deleted) == {gone.id, sharing.id}
    assert {job.id for job in jobs.list_jobs(engine)} == {kept.id, resuming.id, waiting.id}
    assert jobs.get_job(engine, resuming.id).resumes is None
    with engine.connect() as connection:
        rows = set(connection.execute(sa.select(Payload.id)).scalars())
        operators = set(connection.execute(sa.text("SELECT DISTINCT job_id FROM job_operators")).scalars())
    assert gone.payload_id not in rows
    assert {kept.payload_id, resuming.payload_id, waiting.payload_id} <= rows
    assert operators == {kept.id, resuming.id, waiting.id}
    assert [row.job_id for row in leases.load(engine)] == [waiting.id]
    assert jobs.delete_records(engine, [gone.id]) == []


def test_a_payload_that_still_has_files_keeps_its_record(engine: sa.Engine, make_job: MakeJob) -> None:
    job = stop(engine, make_job())
    jobs.delete_records(engine, [job.id])
    assert payloads.get_payload(engine, job.payload_id).removed is None


# History and news


def test_history_that_is_due(engine: sa.Engine, make_job: MakeJob) -> None:
    first, second, runs = stop(engine, make_job()), stop(engine, make_job()), make_job()
    jobs.begin_job(engine, runs.id, OWNER)
    for job in (second, first, runs):
        jobs.mark_history_due(engine, job.id)
    assert [job.id for job in jobs.history_due(engine)] == [first.id, second.id]  # what runs tells its own
    assert [job.id for job in jobs.history_due(engine, limit=1)] == [first.id]
    jobs.mark_history_due(engine, first.id, due=False)
    assert [job.id for job in jobs.history_due(engine)] == [second.id]


def test_history_is_due_from_the_begin_on(engine: sa.Engine, make_job: MakeJob) -> None:
    job = make_job()
    assert not job.history_due
    assert jobs.begin_job(engine, job.id, OWNER).history_due


def test_the_flow_run_that_shows_a_job(engine: sa.Engine, make_job: MakeJob) -> None:
    job, flow_run, other = make_job(), uuid.uuid4(), uuid.uuid4()
    jobs.note_flow_run(engine, job.id, flow_run)
    assert jobs.begin_job(engine, job.id, OWNER).flow_run_id == flow_run
    assert jobs.begin_job(engine, job.id, OWNER, flow_run_id=other).flow_run_id == other
    jobs.note_flow_run(engine, job.id, None)
    assert jobs.get_job(engine, job.id).flow_run_id is None


def test_names_and_news(engine: sa.Engine, make_job: MakeJob, database_url: str) -> None:
    job = make_job(name="head")
    assert jobs.names(engine, [job.id, uuid.uuid4()]) == {job.id: "head"}
    assert jobs.names(engine, []) == {}
    with listening(database_url, jobs.NEWS) as listener:
        jobs.tell_news(engine, job.id, model="brain", done=0.5, message="downloads")
        jobs.begin_job(engine, job.id, OWNER)
        jobs.cancel_job(engine, job.id)
        jobs.finish_job(engine, job.id, OWNER, JobEvent.CANCEL, messages=["on request"])
        news = [facts for _, facts in heard(listener, 3)]
    base = {"job": str(job.id)}
    assert news == [
        {**base, "model": "brain", "done": 0.5, "message": "downloads"},
        {**base, "operator": "", "state": "running", "message": ""},
        {**base, "operator": "", "state": "canceled", "message": "on request"},
    ]


@pytest.mark.parametrize("start", [False, True])
def test_the_end_of_a_job_that_waited_is_heard(
    engine: sa.Engine, make_job: MakeJob, start: bool, database_url: str
) -> None:
    job = make_job(start=start)
    with listening(database_url, jobs.CHANNEL) as listener:
        jobs.cancel_job(engine, job.id)
        assert heard(listener, 1) == [(jobs.CHANNEL, {"job": str(job.id), "effect": "release"})]


# Deployments


def test_a_deployment_runs_the_pipeline_that_was_registered_last(engine: sa.Engine) -> None:
    old, new = (pipelines.create_pipeline(engine, name="a", definition=text, plan={}) for text in ("1", "2"))
    deployment = uuid.uuid4()
    for pipeline in (old, new, new, old):
        pipelines.note_deployment(engine, pipeline.id, deployment)
        assert pipelines.of_deployment(engine, deployment).id == pipeline.id
    assert pipelines.get_pipeline(engine, new.id).deployment_id is None
    for other in (uuid.uuid4(), None):
        with pytest.raises(InputError, match="runs no pipeline of ours"):
            pipelines.of_deployment(engine, other)


# What the pool asks


def test_the_queue_is_first_come_first(engine: sa.Engine, make_job: MakeJob) -> None:
    demand = {"job": {"jobs": 1}, "first": ["reader", {"cpu": 1}], "needs": [{"cpu": 1}], "limit_s": 600.0}
    created = make_job(start=False)
    first = make_job(tenant="radiology", demand=demand, preemptible=True, priority="HIGHER", name="head")
    second, begun = make_job(), make_job()
    jobs.begin_job(engine, begun.id, OWNER)
    jobs.start_job(engine, created.id)
    entries = jobs.queued(engine)
    assert [entry.id for entry in entries] == [first.id, second.id, created.id]
    entry = entries[0]
    assert (entry.name, entry.tenant, entry.priority, entry.preemptible) == ("head", "radiology", "HIGHER", True)
    assert (entry.demand, entry.queued, entry.node) == (demand, first.queued, None)
    assert [entry.id for entry in jobs.queued(engine, [begun.id, second.id])] == [second.id]
    assert jobs.queued(engine, set()) == []
