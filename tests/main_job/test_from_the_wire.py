"""The demo, whole: a study comes by C-STORE, becomes a job by itself, and its segmentation arrives at a PACS."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pydicom
import pytest
from platform_fixture import CLARA_FLOW, command_environment, free_port, processes_below
from pydicom.uid import SegmentationStorage

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


def test_it_needs_neither_dcmtk_nor_orthanc(settings: Settings, tmp_path: Path) -> None:
    told = demo(settings, tmp_path / "results", PATH=without(tmp_path, "storescu", "Orthanc"))
    assert arrived(told) == (1, "a")
