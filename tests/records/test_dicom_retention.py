"""What is over for long enough is forgotten, and nothing else: whatever happened before, in any order."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pool_records import OWNER
from records.teller import Teller
from sqlmodel import col, select

from clara_flow.records import deliveries, inference, jobs, payloads
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records import dicom_groups as groups
from clara_flow.records import dicom_retention as retention
from clara_flow.records.database import reading
from clara_flow.records.dicom_groups import PlannedJob, job_id_of
from clara_flow.records.dicom_ingest import GroupingRule, Late
from clara_flow.records.dicom_models import (
    Association,
    Delivery,
    Group,
    GroupState,
    InferenceRequest,
    InferenceStatus,
    Instance,
    Submission,
)
from clara_flow.records.dicom_retention import Family
from clara_flow.records.models import Job
from clara_flow.records.state_machine import JobEvent

KEPT_S = 3600.0
LONG_AGO = timedelta(seconds=2 * KEPT_S)
TABLES = (
    "dicom_groups, dicom_instances, dicom_submissions, dicom_associations, dicom_journals, deliveries, delivery_items, "
    "inference_requests"
)
OVER = (GroupState.SUBMITTED, GroupState.DISCARDED)

MakeJob = Callable[..., Job]


@pytest.fixture(autouse=True)
def _no_rows(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "HISTORY", 0)
    with engine.begin() as connection:
        connection.execute(sa.text(f"TRUNCATE {TABLES} CASCADE"))


def rows(engine: sa.Engine, kind: Any) -> list[Any]:
    with reading(engine) as session:
        return list(session.exec(select(kind)))


def execute(engine: sa.Engine, statement: Any) -> None:
    with engine.begin() as connection:
        connection.execute(statement)


def age(engine: sa.Engine, group: Group, by: timedelta = LONG_AGO) -> None:
    """It ended so much earlier."""
    execute(engine, sa.update(Group).where(col(Group.id) == group.id).values(ended=col(Group.ended) - by))


def forget(engine: sa.Engine) -> int:
    """All families that are due; how many groups."""
    families = retention.expired_families(engine, KEPT_S, 1000)
    return sum(retention.forget_family(engine, family, KEPT_S) for family in families)


def a_group(engine: sa.Engine, study: str, *, calling: str = "MR", teller: Teller | None = None) -> Group:
    """An open one of two instances."""
    teller = teller or Teller(engine, journal=uuid.uuid4().hex)
    one = teller.open(calling_ae=calling)
    teller.tell(one, *(teller.store(one, uuid.uuid4().hex, study=study) for _ in range(2)), teller.close(one))
    return queries.groups_of_study(engine, study)[-1]


def submitted(engine: sa.Engine, make_job: MakeJob, study: str, *, removed: bool = True, **facts: Any) -> Group:
    """One whose job ended long ago."""
    group = a_group(engine, study, **facts)
    return submit(engine, make_job, group, removed=removed)


def submit(engine: sa.Engine, make_job: MakeJob, group: Group, *, removed: bool) -> Group:
    job = make_job(job_id=job_id_of(group.id, "seg"))
    jobs.begin_job(engine, job.id, OWNER)
    jobs.finish_job(engine, job.id, OWNER, JobEvent.FAULT)
    if removed:
        payloads.mark_removed(engine, job.payload_id)
    count = queries.get_group(engine, str(group.id)).instances
    groups.complete(engine, group.id, [PlannedJob("seg", "p")], instances=count, rule="test")
    groups.note_submitted(engine, group.id, "seg")
    done = groups.finish(engine, group.id)
    age(engine, done)
    return done


def test_a_group_goes_with_all_that_is_its_own(engine: sa.Engine, make_job: MakeJob) -> None:
    old = submitted(engine, make_job, "1.1")
    young = submitted(engine, make_job, "1.2")
    age(engine, young, -LONG_AGO)
    assert retention.forget_associations(engine, KEPT_S, 10) == 0  # instances of them are known
    assert forget(engine) == 1
    assert [group.id for group in rows(engine, Group)] == [young.id]
    assert {row.group_id for row in rows(engine, Instance)} == {young.id}
    assert {row.group_id for row in rows(engine, Submission)} == {young.id}
    assert retention.forget_associations(engine, KEPT_S, 10) == 1
    assert {row.id for row in rows(engine, Association)} == {row.association for row in rows(engine, Instance)}
    assert old.id not in {group.id for group in queries.list_groups(engine)}


def test_a_group_stays_for_as_long_as_the_files_of_its_jobs(engine: sa.Engine, make_job: MakeJob) -> None:
    group = submitted(engine, make_job, "1.1", removed=False)
    assert forget(engine) == 0
    payloads.mark_removed(engine, jobs.get_job(engine, job_id_of(group.id, "seg")).payload_id)
    assert forget(engine) == 1


@pytest.mark.parametrize("state", set(GroupState) - set(OVER))
def test_what_is_not_over_stays(engine: sa.Engine, state: GroupState) -> None:
    group = a_group(engine, "1.1")
    if state is not GroupState.OPEN:
        groups.complete(engine, group.id, [], instances=2, rule="test")
    if state is GroupState.FAILED:
        groups.fail(engine, group.id, "it cannot", retries=0, delay_s=0)
        age(engine, group)
    assert queries.get_group(engine, str(group.id)).state is state
    assert forget(engine) == 0


def test_a_family_goes_at_once_or_not_at_all(engine: sa.Engine, make_job: MakeJob) -> None:
    teller = Teller(engine, BRAIN=GroupingRule(late=Late.RERUN))
    first = submitted(engine, make_job, "1.1", teller=teller)
    second = a_group(engine, "1.1", teller=teller)
    assert (second.amends, second.instances) == (first.id, 4)
    assert forget(engine) == 0, "the second needs the files of the first one's payload"
    submit(engine, make_job, second, removed=True)
    assert forget(engine) == 2


def test_what_tells_what_to_expect_stays(engine: sa.Engine, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "HISTORY", 2)
    made = [submitted(engine, make_job, f"1.{number}") for number in range(4)]
    other = submitted(engine, make_job, "2.1", calling="CT")
    assert forget(engine) == 2
    assert {group.id for group in rows(engine, Group)} == {made[2].id, made[3].id, other.id}
    assert len(queries.earlier_shapes(engine, "BRAIN", "MR")) == 2


def test_what_comes_late_while_a_family_is_forgotten(engine: sa.Engine, make_job: MakeJob) -> None:
    """Either it amends what is there, or it is the first of its study; no instance is lost."""
    for number in range(10):
        study, teller = f"1.{number}", Teller(engine, journal=f"j{number}", BRAIN=GroupingRule(late=Late.RERUN))
        group = submitted(engine, make_job, study, teller=teller)
        family, start = Family(group.aetitle, group.key_digest), threading.Barrier(2)

        def come_late(study: str = study, teller: Teller = teller, start: threading.Barrier = start) -> None:
            start.wait()
            a_group(engine, study, teller=teller)

        late = threading.Thread(target=come_late)
        late.start()
        start.wait()
        gone = retention.forget_family(engine, family, KEPT_S)
        late.join()
        found = queries.groups_of_study(engine, study)
        assert [(one.amends, one.instances) for one in found if one.state is GroupState.OPEN] == [
            (None, 2) if gone else (group.id, 4)
        ]
        assert len(found) == (1 if gone else 2)


def test_deliveries_go_when_they_are_over_and_their_files_are_gone(engine: sa.Engine, make_job: MakeJob) -> None:
    kept, gone = make_job(), make_job()
    payloads.mark_removed(engine, gone.payload_id)

    def delivery(**facts: Any) -> uuid.UUID:
        (task,) = deliveries.register(engine, **{"agent": "Archive", "uris": ["input/a"]} | facts)
        return task.id

    due = [
        delivery(job_id=gone.id),
        delivery(job_id="elsewhere", payload_id=str(gone.payload_id).replace("-", "").upper()),
        delivery(job_id="nobody's"),
    ]
    stays = [delivery(job_id=kept.id), delivery(job_id="j", payload_id=kept.payload_id.hex)]
    for task in (*due, *stays):
        deliveries.fail(engine, task, False)
    young = delivery(job_id="nobody's")
    deliveries.succeed(engine, young)
    old = sa.update(Delivery).where(col(Delivery.id).in_([*due, *stays]))
    execute(engine, old.values(ended=datetime.now(UTC) - LONG_AGO))
    waits = delivery(job_id="nobody's")
    assert retention.forget_deliveries(engine, KEPT_S, 2) == 2
    assert retention.forget_deliveries(engine, KEPT_S, 2) == 1
    assert retention.forget_deliveries(engine, KEPT_S, 2) == 0
    assert {row.id for row in rows(engine, Delivery)} == {*stays, young, waits}


def test_requests_go_when_they_are_over_and_their_job_has_no_files(engine: sa.Engine, make_job: MakeJob) -> None:
    for name in ("waits", "young", "old", "with files"):
        inference.submit(engine, name, {"transactionID": name})
    for name in ("young", "old", "with files"):
        inference.complete(engine, name, InferenceStatus.SUCCESS)
    make_job(job_id=inference.find(engine, "with files").job_id)
    old = sa.update(InferenceRequest).where(col(InferenceRequest.transaction_id) != "young")
    execute(engine, old.values(updated=datetime.now(UTC) - LONG_AGO))
    assert retention.forget_requests(engine, KEPT_S, 10) == 1
    assert {row.transaction_id for row in rows(engine, InferenceRequest)} == {"waits", "young", "with files"}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_that_lives_is_forgotten(engine: sa.Engine, make_job: MakeJob, data: st.DataObject) -> None:
    """Any history of three studies, then a sweep: what went had been over, for long enough, without files."""
    with engine.begin() as connection:
        connection.execute(sa.text(f"TRUNCATE {TABLES} CASCADE"))
    teller = Teller(engine, BRAIN=GroupingRule(late=data.draw(st.sampled_from(Late))))
    ages: dict[uuid.UUID, bool] = {}
    for _ in range(data.draw(st.integers(1, 8))):
        group = a_group(engine, f"1.{data.draw(st.integers(0, 2))}", teller=teller)
        if group.state is not GroupState.OPEN:  # came late, and is ignored
            continue
        match data.draw(st.sampled_from(["open", "complete", "fail", "discard", "submit", "submit, remove"])):
            case "complete":
                groups.complete(engine, group.id, [], instances=group.instances, rule="test")
            case "fail":
                groups.complete(engine, group.id, [], instances=group.instances, rule="test")
                groups.fail(engine, group.id, "it cannot", retries=0, delay_s=0)
            case "discard":
                groups.discard(engine, group.id)
            case "submit" | "submit, remove" as how:
                submit(engine, make_job, group, removed=how != "submit")
                age(engine, group, -LONG_AGO)
    for group in rows(engine, Group):
        ages[group.id] = data.draw(st.booleans())
        if ages[group.id]:
            age(engine, group)
    before, instances = rows(engine, Group), rows(engine, Instance)
    with_files = {
        one.group_id
        for one in rows(engine, Submission)
        if not payloads.get_payload(engine, jobs.get_job(engine, one.job_id).payload_id).removed
    }
    forget(engine)
    left = {group.id for group in rows(engine, Group)}
    families: dict[str, list[Group]] = {}
    for group in before:
        families.setdefault(group.key_digest, []).append(group)
    for family in families.values():
        may_go = all(one.state in OVER and ages[one.id] and one.id not in with_files for one in family)
        assert {one.id in left for one in family} == {not may_go}
    kept = {row.id for row in rows(engine, Instance)}
    assert kept == {row.id for row in instances if row.group_id in left}
