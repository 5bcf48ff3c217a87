"""The demo, whole: a study comes by C-STORE, becomes a job by itself, and its segmentation arrives at a PACS."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import httpx
import pydicom
import pytest
import sqlalchemy as sa
from platform_fixture import CLARA_FLOW, command_environment, free_port, processes_below
from pydicom.uid import SegmentationStorage
from rich.console import Console
from waiting import eventually

from clara_flow.cli.demo_pacs import DemoPacs, Orthanc, OwnPacs, demo_pacs
from clara_flow.cli.main_job import platform_for
from clara_flow.cli.wire_job import run_wire_job
from clara_flow.deployments.trigger import House, resume_job
from clara_flow.deployments.watch import JobWatch
from clara_flow.infra.images.catalog import installed
from clara_flow.operators.imaging import sample_study
from clara_flow.records import delivery_queries
from clara_flow.records.database import connect
from clara_flow.records.dicom_models import Delivery, DeliveryState
from clara_flow.services.platform import take_down
from clara_flow.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path, brain_model: Path) -> Settings:
    """A fresh data folder that has the network already, and ports for everything."""
    made = load_settings(
        data_dir=tmp_path / "data", prefect_port=free_port(), dicom_port=free_port(), gateway_port=free_port()
    )
    shutil.copytree(brain_model, made.data_dir / "models" / brain_model.name)
    return made


def without(tmp_path: Path, *programs: str) -> str:
    """A search path on which these programs are not found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in Path(place).iterdir() if Path(place).is_dir() else ():
            if program.name not in programs and not (folder / program.name).exists():
                (folder / program.name).symlink_to(program)
    return str(folder)


def demo(settings: Settings, output: Path, **environment: str) -> str:
    """Run it to its end; what it told."""
    done = subprocess.run(
        [CLARA_FLOW, "demo", "--no-wait", "--output", str(output)],
        env=command_environment(settings, **environment),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def arrived(told: str) -> tuple[int, str]:
    match = re.search(r"Arrived:\s+(\d+) instance\(s\) at (\S+)", told)
    assert match is not None, told
    return int(match[1]), match[2]


def test_a_study_from_the_wire_comes_back_to_the_pacs(settings: Settings, tmp_path: Path) -> None:
    told = demo(settings, tmp_path / "results")
    has_orthanc = shutil.which("Orthanc", path="/usr/sbin:/usr/bin") is not None
    assert arrived(told) == (1, "Orthanc" if has_orthanc else "a")
    seg = pydicom.dcmread(next((tmp_path / "results" / "seg-writer").rglob("*.dcm")))
    assert seg.SOPClassUID == SegmentationStorage
    assert processes_below(settings.data_dir) == []
    assert not list((settings.data_dir / "spool" / "instances").rglob("*.dcm")), "the payload has them now"


def held(pacs: DemoPacs) -> int:
    """How many instances the PACS has."""
    if isinstance(pacs, Orthanc):
        return int(httpx.get(f"{pacs.page}/statistics").raise_for_status().json()["CountInstances"])
    assert isinstance(pacs, OwnPacs)
    return len(list(pacs.folder.glob("*.dcm")))


@pytest.fixture
def own_signals() -> Iterator[None]:
    """What this process does with signals, kept: a command that has its results ignores them until its end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_signals")
def test_a_study_sent_twice_gives_two_segmentations_and_a_job_that_goes_on_the_same(
    settings: Settings, tmp_path: Path
) -> None:
    """Another job makes another instance, in another series; whoever goes on with a job makes no new one."""
    study = tmp_path / "study"
    assert sample_study.main(["--output", str(study)]) == 0
    console = Console(stderr=True)
    with demo_pacs(tmp_path / "pacs") as pacs:
        try:
            made = [run_wire_job(settings, console, study, tmp_path / str(number), pacs) for number in (1, 2)]
            assert len({uid for one in made for uid in one.instances}) == held(pacs) == 2
            found = [pydicom.dcmread(next((tmp_path / n / "seg-writer").rglob("*.dcm"))) for n in ("1", "2")]
            assert [one.instances for one in made] == [[seg.SOPInstanceUID] for seg in found]
            assert len({seg.SeriesInstanceUID for seg in found}) == 2
            assert len({seg.StudyInstanceUID for seg in found}) == 1

            with platform_for(settings, console) as platform:
                engine = connect(platform.database_url)
                house = House(settings=settings, engine=engine, catalog=installed(settings.catalogs))
                again = resume_job(house, str(made[0].done.outcome.job.id), completed_too=True)
                outcome = JobWatch(house, again.id).follow()
                eventually(lambda: sent(engine, again.id), within_s=60)
                (row,) = sent(engine, again.id)
                engine.dispose()
            assert outcome.deliveries == made[0].done.outcome.deliveries
            assert {row.detail for row in outcome.operators} == {"Cached"}
            assert row.uris == outcome.deliveries["export"]["uris"]
            assert held(pacs) == 2
        finally:
            take_down(settings)


def sent(engine: sa.Engine, job_id: UUID) -> list[Delivery]:
    """The deliveries of a job, once all have succeeded."""
    rows = delivery_queries.list_deliveries(engine, job_id=str(job_id))
    return rows if all(row.state is DeliveryState.SUCCEEDED for row in rows) else []


def test_it_needs_neither_dcmtk_nor_orthanc(settings: Settings, tmp_path: Path) -> None:
    told = demo(settings, tmp_path / "results", PATH=without(tmp_path, "storescu", "Orthanc"))
    assert arrived(told) == (1, "a")
