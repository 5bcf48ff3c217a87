"""Ingest of journal lines and what becomes of groups, against a real PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records.teller import Teller
from sqlmodel import col, select

from clara_flow.errors import Conflict, InputError, NotFound, StaleOwner
from clara_flow.records import dicom_group_files as files
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records import dicom_groups as groups
from clara_flow.records import dicom_ingest
from clara_flow.records.database import reading
from clara_flow.records.dicom_groups import PlannedJob, job_id_of
from clara_flow.records.dicom_ingest import GroupingRule, Late
from clara_flow.records.dicom_lines import LONGEST_TEXT, digest, fitted
from clara_flow.records.dicom_models import Association, Group, GroupState, Instance
from clara_flow.records.doorbell import Doorbell

TABLES = "dicom_groups, dicom_instances, dicom_submissions, dicom_associations, dicom_journals"


@pytest.fixture(autouse=True)
def _no_rows(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(f"TRUNCATE {TABLES} CASCADE"))


@pytest.fixture
def teller(engine: sa.Engine) -> Teller:
    return Teller(engine)


def rows(engine: sa.Engine, kind: Any) -> Sequence[Any]:
    with reading(engine) as session:
        return session.exec(select(kind).order_by(col(kind.id))).all()


def uids(engine: sa.Engine, group_id: uuid.UUID) -> list[str]:
    return sorted(row.sop_instance_uid for row in groups.work_of(engine, group_id).instances)


def close(engine: sa.Engine, group: Group, *labels: str) -> Group:
    found = queries.get_group(engine, str(group.id))
    planned = [PlannedJob(label, "p") for label in labels]
    closed = groups.complete(engine, group.id, planned, instances=found.instances, rule="test")
    assert closed is not None
    return closed


def only(engine: sa.Engine, **facts: Any) -> Group:
    (group,) = [row for row in queries.list_groups(engine) if all(getattr(row, k) == v for k, v in facts.items())]
    return group


def test_instances_of_a_study_are_one_group(engine: sa.Engine, teller: Teller) -> None:
    one, two = teller.open(), teller.open()
    told = teller.tell(one, teller.store(one, "a"), teller.store(one, "b"), two, teller.store(two, "c"))
    assert told.settled == frozenset()
    told = teller.tell(teller.store(one, "d"), teller.store(one, "x", study="9.9"), teller.close(one))
    group = only(engine, study_uid="1.2")
    assert (group.state, group.instances, group.size_bytes) == (GroupState.OPEN, 4, 40)
    assert (group.aetitle, group.calling_ae, group.key_digest) == ("BRAIN", "MR", digest("1.2"))
    assert group.due is not None
    assert (group.due - group.last_arrival).total_seconds() == 5
    assert uids(engine, group.id) == ["a", "b", "c", "d"]
    assert told.settled == told.touched.keys() == {group.id, only(engine, study_uid="9.9").id}


def test_each_line_counts_once(engine: sa.Engine, teller: Teller) -> None:
    one = teller.open()
    teller.tell(one, teller.store(one, "a"))
    again = Teller(engine)
    with pytest.raises(StaleOwner, match="was read up to byte 2"):
        again.tell(one, teller.store(one, "b"))
    assert dicom_ingest.offsets(engine) == {"j": 2}
    assert only(engine).instances == 1


def test_a_transaction_that_fails_leaves_the_offset(engine: sa.Engine, teller: Teller) -> None:
    one = teller.open()
    teller.tell(one)
    with pytest.raises(sa.exc.SQLAlchemyError):
        teller.tell(teller.store(one, "a"), teller.store(one, "b", size_bytes=2**80))
    assert (rows(engine, Instance), dicom_ingest.offsets(engine)) == ([], {"j": 1})


@pytest.mark.parametrize("at_once", [True, False])
def test_a_duplicate_is_skipped_or_takes_the_place(engine: sa.Engine, at_once: bool) -> None:
    for overwrite in (False, True):
        teller = Teller(engine, f"j{overwrite}", BRAIN=GroupingRule(overwrite=overwrite))
        one, study = teller.open(), f"1.{int(overwrite)}"
        first, second = teller.store(one, "a", study), teller.store(one, "a", study, size_bytes=7)
        for lines in [(one, first, second)] if at_once else [(one,), (first,), (second,)]:
            teller.tell(*lines)
        group = only(engine, study_uid=study)
        (kept,) = groups.work_of(engine, group.id).instances
        assert (group.instances, group.size_bytes) == (1, kept.size_bytes)
        assert kept.path == (second if overwrite else first).path
        assert {row.path for row in rows(engine, Instance) if row.group_id == group.id} == {first.path, second.path}


def test_groups_of_another_attribute(engine: sa.Engine) -> None:
    teller = Teller(engine, BRAIN=GroupingRule(group_tag="00100020"))
    one = teller.open()
    teller.tell(
        one,
        teller.store(one, "a", "1.1", keys={"00100020": "p"}),
        teller.store(one, "b", "1.2", keys={"00100020": "p"}),
        teller.store(one, "c", "1.3"),
        teller.store(one, "d", "1.3"),
    )
    by_patient, by_study = only(engine, key_digest="p"), only(engine, key_digest=digest("1.3"))
    assert (by_patient.instances, by_patient.study_uid) == (2, "")
    assert by_study.instances == 2  # without the attribute: nothing acknowledged is dropped


def test_texts_that_no_column_takes(engine: sa.Engine, teller: Teller) -> None:
    one = teller.open(calling_ae="M\x00R")
    long = "9" * 5000
    teller.tell(
        one,
        teller.store(one, long + "1", study=long, attributes={"Modality": "M\x00R\ud800", "StudyDescription": long}),
        teller.store(one, long + "2", study=long),
    )
    group = only(engine)
    assert (group.instances, group.calling_ae, len(group.study_uid) <= LONGEST_TEXT) == (2, "MR", True)
    assert fitted("1.2") == "1.2"


def late(engine: sa.Engine, rule: Late) -> tuple[Teller, Group]:
    """A group of a and b that is closed, and c that comes late, with a again."""
    teller = Teller(engine, BRAIN=GroupingRule(late=rule))
    one = teller.open()
    teller.tell(one, teller.store(one, "a"), teller.store(one, "b"))
    group = close(engine, only(engine), "seg")
    teller.tell(teller.store(one, "c"), teller.store(one, "a", size_bytes=5))
    return teller, group


def test_late_instances_are_a_group_of_their_own(engine: sa.Engine) -> None:
    _, first = late(engine, Late.NEW)
    second = only(engine, state=GroupState.OPEN)
    assert (second.amends, uids(engine, second.id), uids(engine, first.id)) == (first.id, ["a", "c"], ["a", "b"])


def test_late_instances_make_the_whole_group_run_again(engine: sa.Engine) -> None:
    teller, first = late(engine, Late.RERUN)
    second = only(engine, state=GroupState.OPEN)
    assert (second.amends, second.instances, second.size_bytes) == (first.id, 3, 25)
    assert uids(engine, second.id) == ["a", "b", "c"]
    assert uids(engine, first.id) == ["a", "b"]
    one = teller.open()
    newer = teller.store(one, "b", size_bytes=1)
    teller.tell(one, newer, teller.store(one, "c", size_bytes=2))  # b was inherited, c was not
    sizes = {row.sop_instance_uid: row.size_bytes for row in groups.work_of(engine, second.id).instances}
    assert sizes == {"a": 5, "b": 1, "c": 10}


def test_late_instances_are_recorded_and_ignored(engine: sa.Engine) -> None:
    teller, first = late(engine, Late.IGNORE)
    ignored = only(engine, state=GroupState.DISCARDED)
    assert (ignored.amends, uids(engine, ignored.id)) == (first.id, ["a", "c"])
    one = teller.open()
    teller.tell(one, teller.store(one, "c"), teller.store(one, "d"))
    assert uids(engine, only(engine, state=GroupState.DISCARDED).id) == ["a", "c", "d"]
    assert len(queries.list_groups(engine)) == 2


def test_a_discarded_group_is_not_amended(engine: sa.Engine, teller: Teller) -> None:
    one = teller.open()
    teller.tell(one, teller.store(one, "a"))
    groups.discard(engine, only(engine).id)
    teller.tell(teller.store(one, "b"))
    assert only(engine, state=GroupState.OPEN).amends is None


def test_what_was_not_released_counts_once_it_was_sent_again(engine: sa.Engine, teller: Teller) -> None:
    one = teller.open(require_release=True)
    teller.tell(one, teller.store(one, "a"), teller.store(one, "b"))
    (facts,) = queries.facts_of(engine, [only(engine).id])
    assert (facts.open_associations, facts.unreleased) == (1, 2)
    told = teller.tell(teller.close(one, "aborted"))
    assert told.settled == {facts.id}
    two = teller.open(require_release=True)
    teller.tell(two, teller.store(two, "a"))
    (facts,) = queries.facts_of(engine, [facts.id])
    assert (facts.open_associations, facts.unreleased) == (1, 2)
    teller.tell(teller.close(two))
    (facts,) = queries.facts_of(engine, [facts.id])
    assert (facts.open_associations, facts.unreleased) == (0, 1)


def test_a_journal_whose_writer_is_gone(engine: sa.Engine, teller: Teller) -> None:
    one, echo, idle = teller.open(), teller.open(), teller.open()
    teller.tell(one, echo, idle, teller.store(one, "a"), teller.close(echo))
    assert {row.id for row in rows(engine, Association)} == {one.association, idle.association}
    told = dicom_ingest.lose_journal(engine, "j", offset=5)
    assert told.settled == {only(engine).id}
    assert [(row.id, row.how) for row in rows(engine, Association)] == [(one.association, "lost")]
    dicom_ingest.forget_journal(engine, "j")
    assert dicom_ingest.offsets(engine) == {}


def test_facts_of_a_group(engine: sa.Engine, teller: Teller) -> None:
    one = teller.open()
    t1 = {"Modality": "MR", "SeriesDescription": "T1", "NumberOfStudyRelatedInstances": "3 "}
    teller.tell(
        one,
        teller.store(one, "a", attributes={**t1, "NumberOfSeriesRelatedInstances": "2", "ImagesInAcquisition": "x"}),
        teller.store(one, "b", attributes={**t1, "NumberOfSeriesRelatedInstances": "9", "ImagesInAcquisition": "x"}),
        teller.store(one, "c", series_uid="7", attributes={"ImagesInAcquisition": "4"}),
    )
    (facts,) = queries.facts_of(engine, [only(engine).id])
    assert (facts.instances, facts.study_instances, facts.study_series) == (3, 3, None)
    by_count = {one.instances: one for one in facts.series}
    assert (by_count[2].related, by_count[2].acquisition, by_count[2].description) == (None, None, "T1")
    assert (by_count[1].related, by_count[1].acquisition) == (None, 4)


def test_a_complete_group_and_its_jobs_are_noted_together(engine: sa.Engine, teller: Teller) -> None:
    one = teller.open()
    teller.tell(one, teller.store(one, "a"))
    group = only(engine)
    assert groups.complete(engine, group.id, [], instances=2, rule="") is None  # it had changed
    close(engine, group, "b", "a")
    work = groups.work_of(engine, group.id)
    assert [(row.label, row.job_id) for row in work.submissions] == [(name, job_id_of(group.id, name)) for name in "ab"]
    assert groups.complete(engine, group.id, [], instances=1, rule="") is None
    (turn,) = groups.turns(engine)
    assert (turn.group_id, turn.aetitle, turn.wait_s) == (group.id, "BRAIN", 0)
    groups.note_submitted(engine, group.id, "a")
    groups.note_problem(engine, group.id, "b", "no such pipeline\x00")
    groups.fail(engine, group.id, "b: no", retries=1, delay_s=60)
    (turn,) = groups.turns(engine)
    assert turn.wait_s == pytest.approx(60, abs=5)
    assert groups.fail(engine, group.id, "b: no", retries=1, delay_s=60).state is GroupState.FAILED
    assert queries.counts(engine).failed == 1


def test_a_retry_plans_anew_what_was_not_made(engine: sa.Engine, teller: Teller) -> None:
    one = teller.open()
    teller.tell(one, teller.store(one, "a"))
    group = close(engine, only(engine), "a", "b")
    groups.note_submitted(engine, group.id, "a")
    groups.fail(engine, group.id, "no", retries=0, delay_s=0)
    bell = Doorbell(engine, [groups.CHANNEL])
    assert groups.retry(engine, group.id).state is GroupState.COMPLETE
    assert bell.wait(5) == [(groups.CHANNEL, {"group": str(group.id), "event": "retry"})]
    bell.close()
    work = groups.plan(engine, group.id, [PlannedJob("a", "other"), PlannedJob("b", "other")])
    assert [(row.label, row.pipeline, row.submitted is None) for row in work.submissions] == [
        ("a", "p", False), ("b", "other", True),
    ]  # fmt: skip
    groups.finish(engine, group.id)
    assert groups.finish(engine, group.id).state is GroupState.SUBMITTED
    with pytest.raises(Conflict, match="is SUBMITTED: it cannot be retried"):
        groups.retry(engine, group.id)
    with pytest.raises(Conflict):
        groups.discard(engine, group.id)
    with pytest.raises(NotFound):
        groups.retry(engine, uuid.uuid4())


def test_an_open_group_can_be_made_to_run(engine: sa.Engine, teller: Teller) -> None:
    one = teller.open()
    teller.tell(one, teller.store(one, "a"))
    assert groups.retry(engine, only(engine).id).state is GroupState.COMPLETE
    assert only(engine).rule == "somebody did not want to wait for more"


def test_references(engine: sa.Engine, teller: Teller) -> None:
    one = teller.open()
    teller.tell(one, *(teller.store(one, str(n), study=f"1.{n}") for n in range(20)))
    group = queries.list_groups(engine, limit=1)[0]
    assert queries.get_group(engine, str(group.id)[:13]).id == group.id
    with pytest.raises(InputError, match="several groups begin with"):
        queries.get_group(engine, next(digit for digit in "0123456789abcdef" if _many(engine, digit)))
    with pytest.raises(NotFound):
        queries.get_group(engine, uuid.uuid4().hex)
    with pytest.raises(InputError, match="is no group id"):
        queries.get_group(engine, "xyz")


def _many(engine: sa.Engine, digit: str) -> bool:
    return sum(row.id.hex.startswith(digit) for row in queries.list_groups(engine)) > 1


def test_files_that_no_group_needs_any_more(engine: sa.Engine) -> None:
    teller, first = late(engine, Late.RERUN)
    groups.note_submitted(engine, first.id, "seg")
    groups.finish(engine, first.id)
    second = only(engine, state=GroupState.OPEN)
    assert files.removable(engine, first.id) == []  # the second has them, too
    close(engine, second, "seg")
    groups.finish(engine, second.id)
    paths = {row.path for row in rows(engine, Instance)}
    assert set(files.removable(engine, second.id)) == paths
    (association,) = {row.association for row in rows(engine, Instance)}
    assert files.removable_of_association(engine, association) == (sorted(paths), [])
    del teller


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_journal_in_any_batches_gives_the_same(engine: sa.Engine, data: st.DataObject) -> None:
    """Every stored line is in exactly one group, once; each SOP Instance UID counts once in it."""
    with engine.begin() as connection:
        connection.execute(sa.text(f"TRUNCATE {TABLES} CASCADE"))
    rule = GroupingRule(overwrite=data.draw(st.booleans()), late=data.draw(st.sampled_from(Late)))
    teller = Teller(engine, BRAIN=rule)
    opened = [teller.open(require_release=data.draw(st.booleans())) for _ in range(3)]
    stored = [
        teller.store(opened[a], f"u{uid}", study=f"s{study}")
        for a, uid, study in data.draw(
            st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 1)), max_size=20)
        )
    ]
    lines = [*opened, *stored, *(teller.close(one, "aborted") for one in opened)]
    while lines:
        size = data.draw(st.integers(1, len(lines)))
        teller.tell(*lines[:size])
        lines = lines[size:]
        for group in queries.list_groups(engine, states=[GroupState.OPEN]):
            if data.draw(st.booleans()):
                close(engine, group)
    kept = rows(engine, Instance)
    counted: dict[str, int] = {}
    by_group = {group.id: group for group in queries.list_groups(engine)}
    for row in kept:
        if by_group[row.group_id].amends is None or rule.late is not Late.RERUN:
            counted[row.path] = counted.get(row.path, 0) + 1
    expected = {line.path for line in stored}
    assert {row.path for row in kept} == expected
    assert all(count == 1 for count in counted.values())
    for group in by_group.values():
        current = [row for row in kept if row.group_id == group.id and not row.superseded]
        assert (group.instances, group.size_bytes) == (len(current), sum(row.size_bytes for row in current))
        assert len({row.sop_instance_uid for row in current}) == len(current)
