"""A disk that is full, at every stage behind the spool, then has room again: all goes on by itself, nothing is lost.

The spool's own stages (an instance, its line, the end of an association) are in spool/test_spool_disk_full.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa
from postgres_fixture import empty_database_url  # noqa: F401
from pydicom.data import get_testdata_file
from services.dicom.export.export_world import World
from services.dicom.export.peers import scp
from services.dicom.study_house import Study
from small_disk import MIB, fill, small_disk
from waiting import eventually

from clara_flow.records import database, dicom_config, jobs
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records.dicom_models import AeTitle, DeliveryState, GroupState
from clara_flow.services.dicom.config_snapshot import SnapshotWriter
from clara_flow.services.dicom.grouping import submit
from clara_flow.services.dicom.listener_config import ListenerConfigFile
from clara_flow.services.dicom.loops import Loop, Loops
from clara_flow.services.dicom.places import Places


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[sa.Engine]:  # noqa: F811
    database.migrate(empty_database_url)
    engine = database.connect(empty_database_url, pool_size=20)
    yield engine
    engine.dispose()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small") as folder:
        yield folder


@pytest.fixture
def study(engine: sa.Engine, disk: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Everything of it is on the small disk."""
    monkeypatch.setattr(submit, "POSTPONED_S", 0.2)
    return Study(engine, disk)


@pytest.mark.parametrize(("deidentify", "leave"), [("", 0), ("", 4096), ("basic", 0), ("basic", 16_384)])
def test_a_group_becomes_its_job_when_there_is_room_again(
    study: Study, disk: Path, deidentify: str, leave: int
) -> None:
    content = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    study.add_aetitle(timeout="0", deidentify=deidentify)
    study.send(content)
    ballast = fill(disk, leave=leave)
    with study.grouping():
        eventually(lambda: any(group.message for group in queries.list_groups(study.engine)), within_s=60)
        (group,) = queries.list_groups(study.engine)
        assert (group.state, group.attempts) == (GroupState.COMPLETE, 0), group.message
        assert jobs.list_jobs(study.engine) == []
        ballast.unlink()
        eventually(study.is_done, within_s=60)
        eventually(lambda: not list(study.spool.rglob("*.dcm")), within_s=60)
    (job,) = jobs.list_jobs(study.engine)
    payload = study.house.store.folder(job.payload_id)
    (file,) = payload.input_manifest().files
    kept = payload.input / file.name
    assert pydicom.dcmread(kept).PixelData == pydicom.dcmread(get_testdata_file("CT_small.dcm")).PixelData  # type: ignore[arg-type]
    assert deidentify or kept.read_bytes() == content
    assert [folder.id for folder in study.house.store.folders()] == [job.payload_id]


def test_results_go_out_while_the_disk_is_full(engine: sa.Engine, disk: Path) -> None:
    world = World(engine, disk / "data")
    with scp() as peer:
        world.destination("PACS", peer.port)
        tasks = [world.register("PACS", *world.images(3))[0] for _ in range(3)]
        ballast = fill(disk)
        with world.exporting():
            assert [world.ended(task).state for task in tasks] == [DeliveryState.SUCCEEDED] * 3
            ballast.unlink()
            (after,) = world.register("PACS", *world.images(1))
            assert world.ended(after).state is DeliveryState.SUCCEEDED
    assert len(peer.received) == 10


def test_listeners_learn_what_changed_when_there_is_room_again(engine: sa.Engine, disk: Path) -> None:
    places = Places(spool=disk / "spool", work=disk / "work")
    places.spool.mkdir()
    told, stop = ListenerConfigFile(places.listener_config), threading.Event()
    loops = Loops(stop)
    loops.start(Loop("snapshot", SnapshotWriter(engine, places.listener_config, quiet_s=1).run))
    try:
        eventually(places.listener_config.exists)
        ballast = fill(disk)
        before = told.current()
        row = AeTitle(name="BRAIN", ae_title="BRAIN", processor_settings={"pipeline-a": "p"})
        dicom_config.add_aetitle(engine, row)
        eventually(lambda: any(thread.name == "snapshot" for thread in threading.enumerate()))
        assert told.current() == before
        ballast.unlink()
        eventually(lambda: list(told.current().aetitles) == ["BRAIN"], within_s=60)
    finally:
        stop.set()
        assert loops.join() == []
    assert disk.stat().st_size < 8 * MIB
