"""What leaves the spool and the tables in the end, and what never does, beside a grouper that works."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from dicom_spool import HandMade
from sqlmodel import col
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records import dicom_retention, jobs, payloads
from clara_flow.records.dicom_models import AeTitle, Group, GroupState
from clara_flow.records.owner import Owner
from clara_flow.records.state_machine import JobEvent
from clara_flow.services.dicom.grouping.files import Files
from clara_flow.services.dicom.grouping.grouper import Grouper
from clara_flow.services.dicom.heartbeats import read_all
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.retention import NAME, Retention

Running = Callable[..., AbstractContextManager[Grouper]]
Add = Callable[..., AeTitle]

ME = Owner.of_this_process()
DAY_S = 86_400.0


def send(journal: HandMade, study: str, aetitle: str = "BRAIN") -> uuid.UUID:
    """One association with two instances of a study."""
    association = journal.open(aetitle)
    for _ in range(2):
        journal.store(association, study=study)
    journal.close(association)
    return association


def states(house: House) -> list[GroupState]:
    return sorted(group.state for group in queries.list_groups(house.engine))


def names(spool: Path) -> set[str]:
    """The associations with files in the spool."""
    return {path.parent.name for path in spool.rglob("*.dcm")}


def end_job(house: House) -> None:
    """The only job ends, and its files go."""
    (job,) = jobs.list_jobs(house.engine)
    jobs.begin_job(house.engine, job.id, ME)
    jobs.finish_job(house.engine, job.id, ME, JobEvent.FAULT)
    house.store.remove(job.payload_id)
    payloads.mark_removed(house.engine, job.payload_id)


def age(house: House, state: GroupState) -> None:
    """All groups in that state ended long ago."""
    long_ago = timedelta(seconds=house.settings.dicom_record_retention_s + 1)
    with house.engine.begin() as connection:
        old = sa.update(Group).where(col(Group.state) == state).values(ended=col(Group.ended) - long_ago)
        connection.execute(old)


@pytest.fixture
def _no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_retention, "HISTORY", 0)


@pytest.mark.usefixtures("_no_history")
def test_a_study_is_forgotten_and_may_come_again(
    lone_house: House, journal: HandMade, spool: Path, add_aetitle: Add, running: Running
) -> None:
    add_aetitle("BRAIN", timeout="0", late="ignore")
    add_aetitle("WAITS", timeout="600")
    retention = Retention(lone_house)
    with running():
        waits = send(journal, "1.1", "WAITS")
        send(journal, "1.2")
        eventually(lambda: states(lone_house) == [GroupState.OPEN, GroupState.SUBMITTED], within_s=30)
        late = send(journal, "1.2")  # its files stay until the next sweep
        eventually(lambda: GroupState.DISCARDED in states(lone_house))
        eventually(lambda: names(spool) == {str(waits), str(late)})
        for state in (GroupState.SUBMITTED, GroupState.DISCARDED):
            age(lone_house, state)
        assert retention.sweep() == {}, "its job has files"
        end_job(lone_house)
        assert retention.sweep() == {"groups": 2}
        assert names(spool) == {str(waits)}
        assert states(lone_house) == [GroupState.OPEN]
        send(journal, "1.2")
        eventually(lambda: states(lone_house) == [GroupState.OPEN, GroupState.SUBMITTED], within_s=30)
    assert len(jobs.list_jobs(lone_house.engine)) == 2


@pytest.mark.usefixtures("_no_history")
def test_for_ever_is_for_ever(
    lone_house: House, journal: HandMade, spool: Path, add_aetitle: Add, running: Running
) -> None:
    add_aetitle("BRAIN", timeout="0")
    send(journal, "1.2")
    with running():
        eventually(lambda: states(lone_house) == [GroupState.SUBMITTED], within_s=30)
    end_job(lone_house)
    age(lone_house, GroupState.SUBMITTED)
    settings = lone_house.settings.model_copy(update={"dicom_record_retention_s": 0})
    for_ever = Retention(House(settings=settings, engine=lone_house.engine, catalog=lone_house.catalog))
    assert for_ever.sweep() == {}
    assert states(lone_house) == [GroupState.SUBMITTED]
    assert Retention(lone_house).sweep() == {"groups": 1}


@pytest.mark.usefixtures("_no_history")
def test_the_loop_tells_what_it_forgot(
    lone_house: House, journal: HandMade, add_aetitle: Add, running: Running
) -> None:
    add_aetitle("BRAIN", timeout="0")
    send(journal, "1.2")
    with running():
        eventually(lambda: states(lone_house) == [GroupState.SUBMITTED], within_s=30)
    end_job(lone_house)
    age(lone_house, GroupState.SUBMITTED)
    stop = threading.Event()
    thread = threading.Thread(target=Retention(lone_house).run, args=(stop,))
    thread.start()
    try:
        beats = Places.of(lone_house.settings).heartbeats
        eventually(lambda: any(beat.name == NAME for beat in read_all(beats)))
        eventually(lambda: states(lone_house) == [])
    finally:
        stop.set()
        thread.join()


def test_what_a_power_cut_left_goes_after_a_day_and_nothing_else(
    lone_house: House, journal: HandMade, spool: Path, add_aetitle: Add, running: Running
) -> None:
    def unknown(age_s: float) -> Path:
        """A file of an association that no journal and no table knows."""
        file = spool / "instances" / str(uuid.uuid4()) / "1.dcm"
        file.parent.mkdir()
        file.write_bytes(b"no line tells of it")
        os.utime(file.parent, (time.time() - age_s,) * 2)
        return file

    files = Files(lone_house, spool)
    unknown(2 * DAY_S)
    assert files.sweep() == 0, "the tables know no file here: it may be another installation's spool"
    add_aetitle("WAITS", timeout="600")
    with running():
        waits = send(journal, "1.1", "WAITS")
        eventually(lambda: states(lone_house) == [GroupState.OPEN])
    files.sweep()
    old, young = unknown(2 * DAY_S), unknown(DAY_S / 2)
    unread = send(journal, "1.2", "WAITS")  # nobody has read its lines
    for association in (waits, unread):
        os.utime(spool / "instances" / str(association), (time.time() - 2 * DAY_S,) * 2)
    assert files.sweep() == 1
    assert names(spool) == {str(waits), str(unread), young.parent.name}
    assert not old.exists()
