"""The checkers of the adapter's soak see what they are there for."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dicom_peers import RECEIVED, produced
from soak.dicom_soak import Facts, Ledger, check_groups, check_instances, check_pacs, find_spool

from clara_flow.records.dicom_models import Group, GroupState, Instance, Submission
from clara_flow.records.models import Job
from clara_flow.records.state_machine import JobStatus

UID = f"{RECEIVED}1"
NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def ledger() -> Ledger:
    """One instance, sent and answered once, whose result has arrived."""
    made = Ledger(content={UID: "digest"})
    made.sent[UID] = made.answered[UID] = 1
    made.has_arrived(produced(UID), "result")
    return made


def stored(group_id: uuid.UUID, *, path: str = "a/1.dcm", superseded: bool = False) -> Instance:
    return Instance(
        group_id=group_id, sop_instance_uid=UID, sop_class_uid="1", series_uid="2", study_uid="3", transfer_syntax="4",
        path=path, size_bytes=1, association=uuid.uuid4(), arrived=NOW, superseded=superseded,
    )  # fmt: skip


@pytest.fixture
def facts() -> Facts:
    """Its row, its group, its job."""
    group = Group(aetitle="A", key_digest="k", opened=NOW, last_arrival=NOW, state=GroupState.SUBMITTED)
    job = Job(id=uuid.uuid4(), status=JobStatus.HEALTHY)
    made = Submission(group_id=group.id, label="l", pipeline="p", job_id=job.id, submitted=NOW)
    return Facts([group], [made], [stored(group.id)], {job.id: job})


def wrongs(ledger: Ledger, facts: Facts) -> list[str]:
    return check_instances(ledger, facts) + check_groups(facts) + check_pacs(ledger, facts)


def test_nothing_is_wrong(ledger: Ledger, facts: Facts) -> None:
    assert wrongs(ledger, facts) == []


def test_an_instance_that_was_answered_and_is_nowhere(ledger: Ledger, facts: Facts) -> None:
    facts.instances.clear()
    assert f"instance {UID}: sent 1 times, answered 1 times, stored 0 times" in check_instances(ledger, facts)


def test_an_instance_in_two_groups_though_it_was_sent_once(ledger: Ledger, facts: Facts) -> None:
    facts.instances.append(stored(uuid.uuid4(), path="a/2.dcm"))
    assert f"instance {UID}: sent 1 times, and in 2 groups" in check_instances(ledger, facts)
    ledger.sent[UID] = 2
    assert check_instances(ledger, facts) == []


def test_a_line_that_was_read_twice(ledger: Ledger, facts: Facts) -> None:
    facts.instances.append(stored(facts.groups[0].id, superseded=True))
    ledger.sent[UID] = 2
    assert check_instances(ledger, facts) == ["the file a/1.dcm is 2 instances"]


def test_a_group_without_its_job_or_with_two(ledger: Ledger, facts: Facts) -> None:
    facts.submissions.append(facts.submissions[0])
    assert "has become 2 jobs" in check_groups(facts)[0]
    facts.submissions.clear()
    facts.groups[0].state = GroupState.FAILED
    assert [text.split()[2:5] for text in check_groups(facts)] == [["is", "FAILED:"], ["has", "become", "0"]]


def test_results_that_are_missing_foreign_or_not_always_the_same(ledger: Ledger, facts: Facts) -> None:
    ledger.has_arrived(produced(UID), "another")
    ledger.has_arrived("9.9", "x")
    assert check_pacs(ledger, facts) == ["9.9 is nobody's result", f"result {produced(UID)} came as 2 different ones"]
    ledger.arrived.clear()
    assert check_pacs(ledger, facts) == [f"result {produced(UID)} never arrived"]


def test_what_is_left_in_the_spool(tmp_path: Path) -> None:
    (tmp_path / "journals").mkdir()
    (tmp_path / "instances" / "a").mkdir(parents=True)
    assert find_spool(tmp_path, 1) == []
    (tmp_path / "instances" / "a" / "1.dcm").touch()
    for name in "ab":
        (tmp_path / "journals" / name).touch()
    assert find_spool(tmp_path, 1) == ["the spool still has instances/a/1.dcm", "there are 2 journals of 1 listeners"]
