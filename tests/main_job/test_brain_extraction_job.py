"""The main job, whole: a real head as DICOM goes in, a DICOM SEG comes out, by the command that users type."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from PIL import Image

from clara_flow.operators.imaging import sample_study
from clara_flow.operators.imaging.volume import Volume
from clara_flow.operators.imaging.volume_files import read_volume
from clara_flow.services.platform import PlatformHandle

CLARA_FLOW = Path(sys.executable).with_name("clara-flow")
GOLDEN = Path(__file__).parents[1] / "operators" / "data" / "deepbet_golden.npz"


@dataclass(frozen=True)
class Ran:
    """A completed run: what it printed as JSON, its results and its payload."""

    outcome: dict[str, Any]
    results: Path
    payload: Path

    @property
    def seg(self) -> Path:
        return next((self.results / "seg-writer" / "dicom").glob("*.dcm"))

    @property
    def mask(self) -> Volume:
        return read_volume(next((self.payload / "operators" / "brain" / "segmentation").glob("*.mhd")))


@pytest.fixture(scope="module")
def head() -> str:
    """Colin27 where Debian's package is installed, else the head that nilearn brings."""
    return sample_study.find_source("auto")[0]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, head: str) -> Path:
    """The demo's study."""
    folder = tmp_path_factory.mktemp("head") / "study"
    assert sample_study.main(["--output", str(folder), "--source", head]) == 0
    return folder


def run_main_job(platform: PlatformHandle, study: Path, folder: Path, *extra: str, **environment: str) -> Ran:
    settings = platform.settings
    mine = {"CLARA_FLOW_DATA_DIR": str(settings.data_dir), "CLARA_FLOW_PREFECT_PORT": str(settings.prefect_port)}
    command = [str(CLARA_FLOW), "run", "brain-extraction", "--input", str(study), "--output", str(folder)]
    done = subprocess.run(
        [*command, "--keep", "--json", *extra],
        env={**os.environ, **mine, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    return Ran(outcome, folder, settings.data_dir / "payloads" / outcome["payload_id"].replace("-", ""))


@pytest.fixture(scope="module")
def model_is_there(platform: PlatformHandle, brain_model: Path) -> None:
    """The network, made once per machine: the first run of a user fetches it by itself."""
    folder = platform.settings.data_dir / "models" / brain_model.name
    if not folder.exists():
        shutil.copytree(brain_model, folder)


@pytest.fixture(scope="module")
def process_run(
    platform: PlatformHandle, model_is_there: None, study: Path, tmp_path_factory: pytest.TempPathFactory
) -> Ran:
    return run_main_job(platform, study, tmp_path_factory.mktemp("process") / "results")


def test_every_operator_completes_and_the_results_are_there(process_run: Ran) -> None:
    assert {row["name"]: row["state"] for row in process_run.outcome["operators"]} == dict.fromkeys(
        ("reader", "brain", "seg-writer", "montage", "export"), "Completed"
    )
    delivery = process_run.outcome["deliveries"]["export"]
    assert delivery["agent"] == "ClaraSCU"
    assert delivery["uris"] == [f"operators/seg-writer/dicom/{process_run.seg.name}"]


def test_the_seg_covers_exactly_the_masks_voxels(process_run: Ran, study: Path) -> None:
    seg = hd.seg.segread(process_run.seg)
    source = pydicom.dcmread(next(study.iterdir()))
    assert source.FrameOfReferenceUID == seg.FrameOfReferenceUID
    assert source.StudyInstanceUID == seg.StudyInstanceUID
    mask = process_run.mask
    found = seg.get_volume(combine_segments=True)
    indices = np.argwhere(found.array)
    places = found.map_indices_to_reference(indices)  # (slice, row, column) -> LPS mm
    back = np.rint(mask.index_at(places)).astype(int)
    covered = np.zeros(mask.shape, bool)
    covered[tuple(back.T)] = True
    dice = 2 * (covered & (mask.array > 0)).sum() / (covered.sum() + (mask.array > 0).sum())
    assert dice == 1.0


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="Debian's dicom3tools is not installed")
def test_dciodvfy_reports_no_error(process_run: Ran) -> None:
    said = subprocess.run(["dciodvfy", str(process_run.seg)], capture_output=True, text=True, check=False).stderr
    assert "Segmentation" in said
    assert "Error" not in said


def test_the_brain_is_deepbets_own(process_run: Ran, head: str) -> None:
    golden = np.load(GOLDEN)
    shape = golden[f"{head}_shape"]
    bits = np.frombuffer(lzma.decompress(golden[f"{head}_mask"].tobytes()), np.uint8)
    theirs = np.unpackbits(bits)[: int(np.prod(shape))].reshape(shape)
    ours = process_run.mask.reoriented("SAR").array > 0
    assert ours.shape == theirs.shape
    assert abs(int(ours.sum()) - int(theirs.sum())) <= 0.02 * theirs.sum()
    assert 2 * (ours & (theirs > 0)).sum() / (ours.sum() + theirs.sum()) >= 0.99


def test_the_picture_shows_something(process_run: Ran) -> None:
    with Image.open(process_run.results / "montage" / "picture" / "montage.png") as picture:
        assert picture.width > 600
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    assert ((colours[:, 0] - colours[:, 1]) > 100).sum() > 500, "the mask's outline is drawn in colour"


@pytest.mark.docker
def test_docker_gives_the_same_bytes(
    platform: PlatformHandle,
    process_run: Ran,
    study: Path,
    docker_engine: str,
    operator_images: dict[str, str],
    tmp_path: Path,
) -> None:
    assert "brain-extraction" in operator_images
    ran = run_main_job(
        platform, study, tmp_path / "results", "--runtime", "docker", CLARA_FLOW_DOCKER_BASE_URL=docker_engine
    )

    def bytes_of(run: Ran, operator: str, *suffixes: str) -> dict[str, bytes]:
        folder = run.payload / "operators" / operator
        files = sorted(path for path in folder.rglob("*") if path.suffix in suffixes)
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    for operator in ("reader", "brain"):
        volumes = bytes_of(ran, operator, ".mhd", ".raw")
        assert len(volumes) == 2
        assert volumes == bytes_of(process_run, operator, ".mhd", ".raw")
    assert bytes_of(ran, "montage", ".png") == bytes_of(process_run, "montage", ".png")
    ours, theirs = pydicom.dcmread(ran.seg), pydicom.dcmread(process_run.seg)
    assert ours.PixelData == theirs.PixelData
