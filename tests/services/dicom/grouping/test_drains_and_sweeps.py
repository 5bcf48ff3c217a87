"""What Clara's adapter dropped or leaked: groups of a deleted AE title, files that became no job."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from dicom_spool import HandMade
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.records import dicom_config, jobs
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records.dicom_models import AeTitle, GroupState
from clara_flow.services.dicom.config_snapshot import SnapshotWriter
from clara_flow.services.dicom.grouping import grouper as grouping
from clara_flow.services.dicom.grouping.grouper import Grouper
from clara_flow.services.dicom.listener_config import ListenerConfigFile

Running = Callable[..., AbstractContextManager[Grouper]]
Add = Callable[..., AeTitle]


def states(house: House) -> list[GroupState]:
    return sorted(group.state for group in queries.list_groups(house.engine))


def test_a_deleted_ae_title_makes_its_jobs_and_is_gone_then(
    lone_house: House, spool: Path, journal: HandMade, add_aetitle: Add, running: Running, pipeline: str
) -> None:
    """What is under way when it is deleted, and what an association that is open brings after that."""
    add_aetitle("GOES", timeout="2", pipeline_a=pipeline, pipeline_b=pipeline)
    config = spool / "config.json"
    snapshots = SnapshotWriter(lone_house.engine, config, quiet_s=0)
    association = journal.open("GOES")
    journal.store(association, study="1.1")
    with running():
        eventually(lambda: states(lone_house) == [GroupState.OPEN])
        dicom_config.delete_aetitle(lone_house.engine, "GOES")
        snapshots.look()
        assert ListenerConfigFile(config).current().aetitles["GOES"].draining
        journal.store(association, study="1.1")
        journal.close(association)
        eventually(lambda: states(lone_house) == [GroupState.SUBMITTED], within_s=30)
    assert [job.metadata_["Instances"] for job in jobs.list_jobs(lone_house.engine)] == ["2", "2"]
    snapshots.look()
    assert dicom_config.list_aetitles(lone_house.engine) == []
    snapshots.look()
    assert ListenerConfigFile(config).current().aetitles == {}


def test_instances_that_become_no_job_leave_the_spool(
    lone_house: House,
    spool: Path,
    journal: HandMade,
    add_aetitle: Add,
    running: Running,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Late ones that are ignored, doubles that are skipped, ones without what is grouped by."""
    monkeypatch.setattr(grouping, "SWEEP_S", 0.2)
    add_aetitle(timeout="0", late="ignore", groupBy="0008,0050")
    association = journal.open()
    journal.store(association, uid="1.1")  # it has no such attribute, and is grouped by its study
    journal.store(association, uid="1.1")
    journal.close(association)
    with running():
        eventually(lambda: states(lone_house) == [GroupState.SUBMITTED], within_s=30)
        late = journal.open()
        journal.store(late, uid="1.2")
        journal.close(late)
        eventually(lambda: states(lone_house) == [GroupState.DISCARDED, GroupState.SUBMITTED], within_s=30)
        eventually(lambda: not list(spool.rglob("*.dcm")))
    (job,) = jobs.list_jobs(lone_house.engine)
    assert job.metadata_["Instances"] == "1"
