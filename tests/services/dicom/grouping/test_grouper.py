"""From hand-made journals to jobs, with a real PostgreSQL: the scenarios of Clara's specification (4.2), and more."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa
from dicom_spool import HandMade
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from sqlmodel import col
from tiny.pipelines import scripted, write_definition
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.errors import StorageError
from clara_flow.records import dicom_config, dicom_ingest, jobs, pipelines
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records import dicom_groups as records
from clara_flow.records.dicom_models import AeTitle, Group, GroupState, Instance
from clara_flow.records.models import Job
from clara_flow.records.state_machine import JobPriority
from clara_flow.services.dicom.grouping import grouper, submit
from clara_flow.services.dicom.grouping.explain import explain
from clara_flow.services.dicom.grouping.grouper import Grouper
from clara_flow.services.dicom.heartbeats import read_all
from clara_flow.services.dicom.places import Places

Running = Callable[..., AbstractContextManager[Grouper]]
Add = Callable[..., AeTitle]

MADE = {"Trigger": "dicom", "AETitle": "BRAIN", "Source": "BRAIN (ae-title)", "Instances": "3"}
SUBMITTED, OPEN, FAILED, DISCARDED = (
    GroupState.SUBMITTED,
    GroupState.OPEN,
    GroupState.FAILED,
    GroupState.DISCARDED,
)


def states(house: House) -> list[GroupState]:
    """Of all groups, sorted."""
    return sorted(group.state for group in queries.list_groups(house.engine))


def groups(house: House, state: GroupState) -> list[Group]:
    return queries.list_groups(house.engine, states=[state])


def all_jobs(house: House) -> list[Job]:
    return jobs.list_jobs(house.engine)


def inputs(house: House, job: Job) -> set[str]:
    """SOP Instance UIDs of a job's input."""
    names = [file.name for file in house.store.folder(job.payload_id).input_manifest().files]
    assert all(name.count("/") == 1 for name in names)
    return {name.partition("/")[2].removesuffix(".dcm") for name in names}


def send(journal: HandMade, study: str, count: int = 2, **facts: Any) -> set[str]:
    """One association with instances of one study."""
    how = facts.pop("how", "released")
    opened = {name: facts.pop(name) for name in ("aetitle", "calling", "require_release") if name in facts}
    association = journal.open(**opened)
    uids = {journal.store(association, study=study, **facts) for _ in range(count)}
    journal.close(association, how)
    return uids


def expire(house: House) -> None:
    """As if the timeouts of all open groups had passed while no process ran."""
    with house.engine.begin() as connection:
        connection.execute(sa.update(Group).values(due=sa.func.now() - sa.text("interval '1 s'")))


def test_a_study_becomes_a_job_of_its_files(
    lone_house: House, journal: HandMade, spool: Path, add_aetitle: Add, running: Running
) -> None:
    add_aetitle(timeout="0")
    uids = send(journal, "1.2", 3, Modality="MR")
    with running():
        eventually(lambda: states(lone_house) == [SUBMITTED], within_s=30)
        eventually(lambda: not list(spool.rglob("*.dcm")))
        beats = Places.of(lone_house.settings).heartbeats
        eventually(lambda: [beat.facts["queue_depth"] for beat in read_all(beats)] == [0])
    (job,) = all_jobs(lone_house)
    assert inputs(lone_house, job) == uids
    assert (job.tenant, job.priority) == ("BRAIN", JobPriority.NORMAL)
    assert job.name.startswith("brain-seg-20")
    assert job.metadata_ == MADE


def test_scenario_a_several_associations_three_pipelines(
    lone_house: House, journal: HandMade, pipeline: str, add_aetitle: Add, running: Running
) -> None:
    add_aetitle(timeout="60", pipeline_a=pipeline, pipeline_b=pipeline, pipeline_c=pipeline)
    uids: set[str] = set()
    for _ in range(2):  # the process ends between the associations, and the clock goes on
        uids |= send(journal, "1.2", 3)
        with running():
            eventually(lambda: dicom_ingest.offsets(lone_house.engine) == {journal.name: journal.path.stat().st_size})
        assert states(lone_house) == [OPEN]
    expire(lone_house)
    with running():
        eventually(lambda: states(lone_house) == [SUBMITTED], within_s=30)
    assert len(all_jobs(lone_house)) == 3
    assert all(inputs(lone_house, job) == uids for job in all_jobs(lone_house))
    assert len({job.name.split("-")[1] for job in all_jobs(lone_house)}) == 3


def test_scenario_b_three_studies_on_one_association(
    lone_house: House, journal: HandMade, add_aetitle: Add, running: Running
) -> None:
    add_aetitle(timeout="0")
    association = journal.open()
    studies = [{journal.store(association, study=f"1.{n}") for _ in range(2)} for n in range(3)]
    journal.close(association)
    with running():
        eventually(lambda: states(lone_house) == [SUBMITTED] * 3, within_s=30)
    assert sorted(sorted(inputs(lone_house, job)) for job in all_jobs(lone_house)) == sorted(map(sorted, studies))


def test_scenario_c_an_association_for_each_instance(
    lone_house: House, journal: HandMade, add_aetitle: Add, running: Running
) -> None:
    add_aetitle(timeout="1.5")
    uids: set[str] = set()
    with running():
        for count in range(1, 5):
            uids |= send(journal, "1.2", 1)
            eventually(lambda count=count: [g.instances for g in groups(lone_house, OPEN)] == [count], every_s=0.01)
        eventually(lambda: states(lone_house) == [SUBMITTED], within_s=30)
    (job,) = all_jobs(lone_house)
    assert inputs(lone_house, job) == uids


def test_what_is_expected_is_not_waited_for_once_it_came(
    lone_house: House, journal: HandMade, add_aetitle: Add, running: Running
) -> None:
    add_aetitle(timeout="600")
    with running():
        send(journal, "1.2", 2, NumberOfStudyRelatedInstances="4")
        eventually(lambda: states(lone_house) == [OPEN])
        send(journal, "1.2", 2, NumberOfStudyRelatedInstances="4")
        eventually(lambda: states(lone_house) == [SUBMITTED], within_s=30)
    (group,) = groups(lone_house, SUBMITTED)
    assert (group.expected, group.rule) == (4, "all 4 expected instances came (attributes of the study)")


def test_history_tells_what_to_expect(lone_house: House, journal: HandMade, add_aetitle: Add, running: Running) -> None:
    add_aetitle(timeout="600", expect="history")
    with running():
        for number in range(3):
            send(journal, f"1.{number}", 3, Modality="MR", SeriesDescription="T1")
            eventually(lambda number=number: len(queries.list_groups(lone_house.engine)) == number + 1)
            (group,) = groups(lone_house, OPEN)
            assert explain(lone_house.engine, f"1.{number}")[0].why == "waits for 600 s of silence"
            records.retry(lone_house.engine, group.id)
            eventually(lambda number=number: states(lone_house) == [SUBMITTED] * (number + 1), within_s=30)
        send(journal, "1.9", 3, Modality="MR", SeriesDescription="T1")
        eventually(lambda: states(lone_house) == [SUBMITTED] * 4, within_s=30)
    last = queries.list_groups(lone_house.engine, limit=1)[0]
    assert last.rule == "all 3 expected instances came (3 earlier ones like it)"


def test_an_aborted_association_waits_for_being_sent_again(
    lone_house: House, journal: HandMade, add_aetitle: Add, running: Running
) -> None:
    add_aetitle(timeout="0")
    association = journal.open(require_release=True)
    uids = {journal.store(association) for _ in range(2)}
    journal.close(association, "aborted")
    with running():
        eventually(lambda: states(lone_house) == [OPEN])
        (told,) = explain(lone_house.engine, "1.2.3")
        assert told.why == "waits for 2 instances of an aborted association to be sent again"
        again = journal.open(require_release=True)
        for uid in uids:
            journal.store(again, uid=uid)
        journal.close(again)
        eventually(lambda: states(lone_house) == [SUBMITTED], within_s=30)
    (job,) = all_jobs(lone_house)
    assert inputs(lone_house, job) == uids


def test_a_listener_that_dies_loses_its_associations(
    lone_house: House, spool: Path, add_aetitle: Add, running: Running
) -> None:
    add_aetitle(timeout="0")
    journal = HandMade(spool)
    association = journal.open()
    uid = journal.store(association)
    journal.write_raw(b'{"kind":"stored","asso')
    with running():
        eventually(lambda: states(lone_house) == [OPEN])
        journal.end()
        eventually(lambda: states(lone_house) == [SUBMITTED], within_s=30)
        eventually(lambda: not journal.path.exists())
        eventually(lambda: dicom_ingest.offsets(lone_house.engine) == {})
    assert inputs(lone_house, all_jobs(lone_house)[0]) == {uid}


def test_late_instances_run_again_with_the_earlier_ones(
    lone_house: House, journal: HandMade, spool: Path, add_aetitle: Add, running: Running
) -> None:
    add_aetitle(timeout="0", late="rerun")
    with running():
        first = send(journal, "1.2", 2)
        eventually(lambda: states(lone_house) == [SUBMITTED], within_s=30)
        eventually(lambda: not list(spool.rglob("*.dcm")))  # now only the payload has them
        second = send(journal, "1.2", 1)
        eventually(lambda: states(lone_house) == [SUBMITTED] * 2, within_s=30)
    assert sorted(len(inputs(lone_house, job)) for job in all_jobs(lone_house)) == [2, 3]
    assert max((inputs(lone_house, job) for job in all_jobs(lone_house)), key=len) == first | second


def test_a_rerun_whose_earlier_files_are_gone_says_so(
    lone_house: House, journal: HandMade, add_aetitle: Add, running: Running
) -> None:
    add_aetitle(timeout="0", late="rerun", jobRetryDelay="0")
    with running():
        send(journal, "1.2", 2)
        eventually(lambda: states(lone_house) == [SUBMITTED], within_s=30)
        lone_house.store.remove(all_jobs(lone_house)[0].payload_id)
        send(journal, "1.2", 1)
        eventually(lambda: states(lone_house) == [FAILED, SUBMITTED], within_s=30)
    assert groups(lone_house, FAILED)[0].message == "2 of 3 instances are kept no more; let the study be sent again"


def test_a_pipeline_that_is_not_there_blocks_nobody(
    lone_house: House, journal: HandMade, pipeline: str, add_aetitle: Add, running: Running, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.yaml"
    add_aetitle("BAD", timeout="0", pipeline_good=pipeline, pipeline_missing=str(missing), jobRetryDelay="0")
    add_aetitle("FINE", timeout="0")
    with running():
        for number in range(5):
            send(journal, f"1.{number}", 1, aetitle="BAD")
        send(journal, "2.1", 1, aetitle="FINE")
        eventually(lambda: states(lone_house) == [FAILED] * 5 + [SUBMITTED], within_s=60)
        assert len(all_jobs(lone_house)) == 6  # the good pipeline ran once for each group
        group = groups(lone_house, FAILED)[0]
        assert (group.attempts, "missing: " in group.message) == (4, True)
        assert "missing.yaml does not exist" in group.message
        write_definition(missing, scripted("b"))
        records.retry(lone_house.engine, group.id)
        eventually(lambda: states(lone_house) == [FAILED] * 4 + [SUBMITTED] * 2, within_s=30)
    assert len(all_jobs(lone_house)) == 7


def test_a_full_disk_counts_for_nothing(
    lone_house: House, spool: Path, journal: HandMade, add_aetitle: Add, running: Running,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(submit, "POSTPONED_S", 0.05)
    add_aetitle(timeout="0")
    send(journal, "1.2", 1)
    settings = lone_house.settings.model_copy(update={"storage_limit_percent": 0, "dicom_submit_retries": 0})
    full = House(settings=settings, engine=lone_house.engine, catalog=lone_house.catalog)
    with running(full):
        eventually(
            lambda: any("new jobs are refused" in g.message for g in queries.list_groups(full.engine)), within_s=30
        )
        assert states(lone_house) == [GroupState.COMPLETE]
        assert queries.list_groups(lone_house.engine)[0].attempts == 0
    with running():
        eventually(lambda: states(lone_house) == [SUBMITTED], within_s=30)


def test_rules_choose_and_none_discards(
    lone_house: House, journal: HandMade, spool: Path, pipeline: str, add_aetitle: Add, running: Running
) -> None:
    add_aetitle(
        timeout="0", pipeline_mr=pipeline, pipeline_ct=pipeline, rule_mr='Modality == "MR"', rule_ct='Modality == "CT"'
    )
    with running():
        send(journal, "1.1", 1, Modality="MR")
        send(journal, "1.2", 1, Modality="XA")
        eventually(lambda: states(lone_house) == [DISCARDED, SUBMITTED], within_s=30)
        eventually(lambda: not list(spool.rglob("*.dcm")))
    (job,) = all_jobs(lone_house)
    assert "-mr-" in job.name
    (told,) = explain(lone_house.engine, "1.1")
    assert [(choice.label, choice.rule, choice.chosen) for choice in told.choices] == [
        ("ct", 'Modality == "CT"', False), ("mr", 'Modality == "MR"', True),
    ]  # fmt: skip
    assert [(made.label, made.job_id, made.state) for made in told.jobs] == [("mr", str(job.id), "PENDING/HEALTHY")]
    assert explain(lone_house.engine, "1.2")[0].why == submit.NO_RULE


def test_a_discarded_group_leaves_nothing(
    lone_house: House, journal: HandMade, spool: Path, add_aetitle: Add, running: Running
) -> None:
    add_aetitle(timeout="600")
    with running():
        send(journal, "1.2", 2)
        eventually(lambda: states(lone_house) == [OPEN])
        records.discard(lone_house.engine, groups(lone_house, OPEN)[0].id, "by mistake")
        eventually(lambda: not list(spool.rglob("*.dcm")))
    assert all_jobs(lone_house) == []


def test_what_a_submission_that_broke_off_left_is_swept_soon(
    lone_house: House, journal: HandMade, spool: Path, add_aetitle: Add, running: Running,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(grouper, "SWEEP_SOON_S", 0.2)
    add_aetitle("BRAIN", timeout="0")
    add_aetitle("LATER", timeout="600")
    with running() as one:
        kept = send(journal, "1.1", 2, aetitle="LATER")
        eventually(lambda: states(lone_house) == [OPEN])
        remove, times = one.files.remove, []

        def break_off(group_id: uuid.UUID) -> int:
            times.append(group_id)
            raise StorageError("as if the process had ended here")

        monkeypatch.setattr(one.files, "remove", break_off)
        uids = send(journal, "1.2", 3)
        eventually(lambda: states(lone_house) == [OPEN, SUBMITTED], within_s=30)
        eventually(lambda: len(list(spool.rglob("*.dcm"))) == 2, within_s=30)
        assert times == [groups(lone_house, SUBMITTED)[0].id]
        monkeypatch.setattr(one.files, "remove", remove)
        records.retry(lone_house.engine, groups(lone_house, OPEN)[0].id)  # its files are whole
        eventually(lambda: states(lone_house) == [SUBMITTED] * 2, within_s=30)
    assert {frozenset(inputs(lone_house, job)) for job in all_jobs(lone_house)} == {frozenset(uids), frozenset(kept)}


def test_the_more_urgent_first(
    lone_house: House, journal: HandMade, add_aetitle: Add, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clara_flow.services.dicom.grouping.submissions.AT_ONCE", 1)
    for name, priority in (("LOW", "lower"), ("NOW", "immediate"), ("HIGH", "higher")):
        add_aetitle(name, timeout="0", priority=priority)
        for number in range(2):
            send(journal, f"{name}.{number}", 1, aetitle=name)
    with running():
        eventually(lambda: states(lone_house) == [SUBMITTED] * 6, within_s=60)
    made = sorted(all_jobs(lone_house), key=lambda job: job.created)
    assert [job.tenant for job in made] == ["NOW", "NOW", "HIGH", "HIGH", "LOW", "LOW"]
    assert {job.priority for job in made} == {JobPriority.IMMEDIATE, JobPriority.HIGHER, JobPriority.LOWER}


def test_an_ae_title_that_is_unknown_waits_for_people(
    lone_house: House, journal: HandMade, add_aetitle: Add, running: Running
) -> None:
    add_aetitle("GONE", timeout="0")
    with running():
        send(journal, "1.1", 1, aetitle="GONE")
        eventually(lambda: states(lone_house) == [SUBMITTED], within_s=30)
        with lone_house.engine.begin() as connection:
            connection.execute(sa.delete(AeTitle))
            connection.execute(sa.text(f"SELECT pg_notify('{dicom_config.CHANNEL}', '{{}}')"))
        association = journal.open("GONE")
        journal.store(association, study="1.2")
        journal.close(association)
        eventually(lambda: len(queries.list_groups(lone_house.engine)) == 2)
        open_group = next(g for g in queries.list_groups(lone_house.engine) if g.state is not SUBMITTED)
        if open_group.state is OPEN:
            records.retry(lone_house.engine, open_group.id)
        eventually(lambda: states(lone_house) == [FAILED, SUBMITTED], within_s=30)
        assert "'GONE' is not there any more" in groups(lone_house, FAILED)[0].message
        add_aetitle("GONE", timeout="0")
        records.retry(lone_house.engine, groups(lone_house, FAILED)[0].id)
        eventually(lambda: states(lone_house) == [SUBMITTED] * 2, within_s=30)


def test_a_registered_pipeline_by_its_id(
    lone_house: House, journal: HandMade, pipeline: str, add_aetitle: Add, running: Running
) -> None:
    add_aetitle("PATH", timeout="0")
    with running():
        send(journal, "1.1", 1, aetitle="PATH")
        eventually(lambda: states(lone_house) == [SUBMITTED], within_s=30)
        pipeline_id = all_jobs(lone_house)[0].pipeline_id
        add_aetitle("ID", timeout="0", pipeline_x=pipeline_id.hex)
        send(journal, "1.2", 1, aetitle="ID")
        eventually(lambda: states(lone_house) == [SUBMITTED] * 2, within_s=30)
    assert {job.pipeline_id for job in all_jobs(lone_house)} == {pipeline_id}
    assert pipelines.get_pipeline(lone_house.engine, pipeline_id).name == "tiny"


def test_attributes_as_metadata(
    lone_house: House, journal: HandMade, add_aetitle: Add, running: Running
) -> None:  # fmt: skip
    add_aetitle(timeout="0")
    source = Path(str(get_testdata_file("CT_small.dcm")))
    association = journal.open()
    journal.store(association, content=source.read_bytes())
    other = pydicom.dcmread(source)
    other.SeriesDescription = "second"
    other.save_as(changed := journal.root / "changed.dcm")
    journal.store(association, content=changed.read_bytes())
    journal.store(association, content=b"no DICOM at all")
    journal.close(association)
    settings = lone_house.settings.model_copy(
        update={"dicom_metadata": True, "dicom_metadata_tags": ("0008,0060", "0008,103E", "0010,4000")}
    )
    with running(House(settings=settings, engine=lone_house.engine, catalog=lone_house.catalog)):
        eventually(lambda: states(lone_house) == [SUBMITTED], within_s=30)
    metadata = all_jobs(lone_house)[0].metadata_
    assert metadata.pop("00080060") == "CT"
    assert metadata == {**MADE, "0008103E": "second"}


def test_names_in_the_payload_are_safe(
    lone_house: House, journal: HandMade, add_aetitle: Add, running: Running
) -> None:
    add_aetitle(timeout="0")
    association = journal.open()
    for uid in ("../../etc/passwd", "..", "1.2/../..", "/", "\x00", "9" * 500, "1.2", "1.2\\x", "ü"):
        journal.store(association, uid=uid, series=f"../{uid}")
    journal.close(association)
    with running():
        eventually(lambda: states(lone_house) == [SUBMITTED], within_s=30)
    names = [
        file.name
        for file in lone_house.store.folder(all_jobs(lone_house)[0].payload_id).input_manifest().files
    ]  # fmt: skip
    assert len(names) == len(set(names)) == 9
    assert all(set(name) <= set("0123456789./dcm-") and ".." not in name and len(name) < 80 for name in names)


def test_a_line_that_cannot_be_kept_keeps_no_other(
    lone_house: House, journal: HandMade, add_aetitle: Add, running: Running
) -> None:
    add_aetitle(timeout="0")
    association = journal.open()
    uids = {journal.store(association)}
    path = f'"path":"instances/{association}/1.dcm","size":'
    line = journal.path.read_bytes().splitlines(keepends=True)[-1]
    journal.write_raw(line.replace(path.encode(), path.encode() + b"9" * 40))
    uids.add(journal.store(association))
    journal.close(association)
    with running():
        eventually(lambda: states(lone_house) == [SUBMITTED], within_s=30)
    assert inputs(lone_house, all_jobs(lone_house)[0]) == uids


def test_a_job_soon_follows_the_last_line(
    lone_house: House, journal: HandMade, add_aetitle: Add, running: Running
) -> None:
    """What it took is printed (`-s`); the limit only tells a hang from a slow machine."""
    add_aetitle(timeout="0")
    took = []
    with running():
        send(journal, "0", 3)
        eventually(lambda: len(all_jobs(lone_house)) == 1, within_s=30)
        for number in range(9):
            send(journal, f"1.{number}", 3)
            began = datetime.now(UTC)
            eventually(lambda number=number: len(all_jobs(lone_house)) == number + 2, within_s=30)
            took.append((max(job.created for job in all_jobs(lone_house)) - began).total_seconds())
    print("journal line to job, median:", sorted(took)[4])
    assert sorted(took)[4] < 5


@pytest.mark.parametrize("count", [300])
def test_many_instances(lone_house: House, journal: HandMade, add_aetitle: Add, running: Running, count: int) -> None:
    add_aetitle(timeout="0")
    associations = [journal.open() for _ in range(4)]
    uids = {journal.store(associations[n % 4], uid=generate_uid()) for n in range(count)}
    for association in associations:
        journal.close(association)
    began = time.monotonic()
    with running():
        eventually(lambda: states(lone_house) == [SUBMITTED], within_s=60)
    print("seconds for", count, time.monotonic() - began)
    assert inputs(lone_house, all_jobs(lone_house)[0]) == uids
    with lone_house.engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count(col(Instance.id)))).scalar_one() == count
