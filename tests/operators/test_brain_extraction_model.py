"""The real model: made of the real package, compared with what deepbet gives on torch (data/README.md)."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from clara_flow.operators.brain_extraction import prepare_model
from clara_flow.operators.brain_extraction.extraction import Network, extract_brain
from clara_flow.operators.brain_extraction.model_folder import ModelUnusable, default_folder, read_record
from clara_flow.operators.brain_extraction.network import load_network, requested_threads
from clara_flow.operators.brain_extraction.prepare_model import PrepareError, prepare
from clara_flow.operators.imaging import Volume, read_volume, write_volume

GOLDEN = np.load(Path(__file__).parent / "data" / "deepbet_golden.npz")
COLIN27 = Path("/usr/share/mricron/templates/ch2.nii.gz")


def head_file(name: str) -> Path:
    """The head of that name on this machine; skips where its package is not installed."""
    if name == "colin27":
        if not COLIN27.is_file():
            pytest.skip("no Colin27 head: the Debian package mricron-data is not installed")
        return COLIN27
    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        pytest.skip("no MNI152 head: the package nilearn is not installed")
    data = Path(spec.origin).parent / "datasets" / "data"
    return data / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


def golden_mask(name: str) -> np.ndarray:
    """deepbet's own mask: bool (slice, row, column), towards S, A, R."""
    shape = tuple(GOLDEN[f"{name}_shape"])
    bits = np.frombuffer(lzma.decompress(GOLDEN[f"{name}_mask"].tobytes()), np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)


def wave(side: int) -> np.ndarray:
    """The test image of data/make_deepbet_golden.py."""
    x, y, z = np.meshgrid(*[np.arange(side, dtype=np.float64)] * 3, indexing="ij")
    return (0.449 + 0.226 * np.sin(x / 7) * np.cos(y / 5 + z / 3)).astype(np.float32)


@pytest.fixture(scope="module")
def networks(brain_model: Path) -> tuple[Network, Network]:
    box, brain = (load_network(brain_model / name, threads=2) for name in ("bbox_model.onnx", "model.onnx"))
    return box, brain


def run_operator(folder: Path, model: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The operator as the platform runs it, on `folder/in`."""
    (folder / "in").mkdir(exist_ok=True)
    manifest = {
        "job_id": "6f1c2b1e-7a53-4f0e-9a5e-0a4b6a0a9f11",
        "stage": "brain",
        "inputs": [{"from": "reader", "path": str(folder / "in")}],
        "outputs": [{"path": str(folder / "out")}],
        "report_dir": str(folder / "report"),
        "models": {"brain_extraction_deepbet": str(model)},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return subprocess.run(
        [sys.executable, "-m", "clara_flow.operators.brain_extraction"],
        env={"PATH": os.environ["PATH"], "CLARA_IO_MANIFEST": str(folder / "manifest.json"), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report" / "metrics.json").read_text())


@pytest.mark.parametrize(("name", "side"), [("bbox_model", 128), ("model", 256)])
def test_each_network_gives_what_torch_gives(brain_model: Path, name: str, side: int) -> None:
    probability = load_network(brain_model / f"{name}.onnx", threads=2)(wave(side))
    step = side // 16
    assert np.abs(probability[::step, ::step, ::step] - GOLDEN[f"{name}_wave"]).max() < 1e-3


@pytest.mark.parametrize("name", ["colin27", "mni152"])
def test_a_head_gives_deepbets_own_mask(name: str, networks: tuple[Network, Network]) -> None:
    path = head_file(name)
    expected = golden_mask(name)
    mask = extract_brain(read_volume(path), *networks) > 0
    assert mask.shape == expected.shape
    dice = 2 * np.count_nonzero(mask & expected) / (mask.sum() + expected.sum())
    assert dice >= 0.9999
    assert mask.sum() == pytest.approx(expected.sum(), rel=0.002)


def test_an_oblique_flipped_head_gives_the_same_mask_there(tmp_path: Path, brain_model: Path) -> None:
    volume = read_volume(head_file("colin27"))
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    oblique = Volume(volume.array, turn @ volume.affine_lps).reoriented("LIP")
    (tmp_path / "in").mkdir()
    write_volume(tmp_path / "in" / "1.2.840.99.7.1.mhd", oblique)
    done = run_operator(tmp_path, brain_model, CLARA_CPU="2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1.2.840.99.7.1" not in done.stdout
    mask = read_volume(tmp_path / "out" / "1.2.840.99.7.1.mhd")
    assert mask.array.dtype == np.uint8
    assert mask.same_grid(oblique)
    expected = golden_mask("colin27")
    assert np.count_nonzero((mask.reoriented("SAR").array > 0) != expected) < 1e-4 * expected.sum()
    (facts,) = metrics(tmp_path)["masks"]
    assert facts["is_plausible"]
    assert facts["mask"] == "1.2.840.99.7.1.mhd"
    assert facts["brain_voxels"] == np.count_nonzero(mask.array)
    assert facts["brain_ml"] == pytest.approx(facts["brain_voxels"] / 1000)
    assert metrics(tmp_path)["model"] == {"name": "brain_extraction_deepbet", "version": "1.0.2"}


def test_several_volumes_and_repeated_runs_give_the_same_bytes(tmp_path: Path, brain_model: Path) -> None:
    small = small_head()
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(small.array.T, np.diag([2.0, 2, 2, 1])), tmp_path / "in" / "a.nii.gz")
    write_volume(tmp_path / "in" / "b.mha", small)
    (tmp_path / "in" / "c.mhd").write_text("NDims = 3\n")
    write_volume(tmp_path / "in" / "a.mhd", small)
    first = run_operator(tmp_path, brain_model)
    assert first.returncode == 0, first.stdout + first.stderr
    masks = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(masks) == ["a.mhd", "a.raw", "b.mhd", "b.raw"]
    assert masks["a.raw"] == masks["b.raw"]
    assert {refused["volume"] for refused in metrics(tmp_path)["refused"]} == {"a.mhd", "c.mhd"}
    for name in ("a.nii.gz", "a.mhd"):
        (tmp_path / "in" / name).unlink()
    shutil.rmtree(tmp_path / "out")
    again = run_operator(tmp_path, brain_model)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        name: content for name, content in masks.items() if name.startswith("b")
    }


def test_a_brain_of_unlikely_size_is_told(tmp_path: Path, brain_model: Path) -> None:
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 99, (40, 40, 40), np.int16)
    write_volume(tmp_path / "in" / "noise.mhd", Volume(noise, np.eye(4)))
    done = run_operator(tmp_path, brain_model)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ml is unlikely; is this a T1-weighted MR of a whole head?" in done.stdout
    assert [facts["is_plausible"] for facts in metrics(tmp_path)["masks"]] == [False]


def small_head() -> Volume:
    """Every second voxel of a head: quick to read and write."""
    head = read_volume(head_file("colin27"))
    affine = head.affine_lps.copy()
    affine[:3, :3] *= 2
    return Volume(np.ascontiguousarray(head.array[::2, ::2, ::2]), affine)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (None, "no volume (.mhd, .mha, .nii, .nii.gz) in"),
        (np.ones((1, 64, 64), np.int16), "a 2-D image of shape"),
        (np.full((8, 8, 8), np.nan, np.float32), "not a number or infinite"),
    ],
)
def test_what_gives_no_mask_is_told_without_a_traceback(
    tmp_path: Path, brain_model: Path, array: np.ndarray | None, told: str
) -> None:
    (tmp_path / "in").mkdir()
    if array is not None:
        write_volume(tmp_path / "in" / "scan.mhd", Volume(array, np.eye(4)))
    done = run_operator(tmp_path, brain_model)
    assert done.returncode == 1
    assert told in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_model_says_how_to_make_it(tmp_path: Path) -> None:
    done = run_operator(tmp_path, tmp_path / "none")
    assert done.returncode == 1
    assert f"prepare_model --destination {tmp_path / 'none'}" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_wrong_cores_are_told(tmp_path: Path, brain_model: Path) -> None:
    done = run_operator(tmp_path, brain_model, CLARA_CPU="many")
    assert done.returncode == 1
    assert "CLARA_CPU must be a whole number of cores, found 'many'" in done.stdout


def test_threads_default_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLARA_CPU", raising=False)
    assert requested_threads() == 1
    monkeypatch.setenv("CLARA_CPU", "0")
    assert requested_threads() == 1
    monkeypatch.setenv("CLARA_CPU", "4")
    assert requested_threads() == 4


def test_the_stand_alone_folder_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert default_folder() == Path("/c/clara-flow/models/brain_extraction_deepbet")


def test_the_record_says_what_the_model_is(brain_model: Path) -> None:
    record = read_record(brain_model)
    assert record["licence"] == "MIT"
    assert "MIT License" in (brain_model / record["licence_file"]).read_text()
    assert record["source"] == {"package": "deepbet==1.0.2", "index": "PyPI", "sha256": prepare_model.WHEEL_SHA256}
    assert set(record["files"]) == {"model.onnx", "bbox_model.onnx", "LICENSE.deepbet.txt"}
    assert record["made"].endswith("Z")


def test_a_whole_model_is_left_as_it_is(brain_model: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in brain_model.iterdir()}
    told: list[tuple[float, str]] = []
    prepare(brain_model, wheel=Path("/no/such/wheel"), progress=lambda share, message: told.append((share, message)))
    assert told == [(1.0, "the model brain_extraction_deepbet is ready")]
    assert {path.name: path.stat().st_mtime_ns for path in brain_model.iterdir()} == before


@pytest.mark.parametrize("harm", ["cut", "gone", "record", "old"])
def test_a_damaged_model_is_seen(tmp_path: Path, brain_model: Path, harm: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(brain_model, folder)
    record = folder / "model.json"
    match harm:
        case "cut":
            (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-1])
        case "gone":
            (folder / "bbox_model.onnx").unlink()
        case "record":
            record.write_text("{}")
        case "old":
            record.write_text(record.read_text().replace('"version": "1.0.2"', '"version": "1.0.1"'))
    with pytest.raises(ModelUnusable, match=r"Make it with: python -m .*prepare_model --destination"):
        read_record(folder)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clara_flow.operators.brain_extraction.prepare_model", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_command_makes_the_same_files_again_and_tells_its_progress(tmp_path: Path, brain_model: Path) -> None:
    folder = tmp_path / "deep" / "model"
    done = command("--destination", str(folder))
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert [set(step) for step in steps] == [{"progress", "message"}] * len(steps)
    shares = [step["progress"] for step in steps]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert read_record(folder)["files"] == read_record(brain_model)["files"]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())


def test_another_file_than_the_published_wheel_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "deepbet-1.0.2-py3-none-any.whl"
    wheel.write_bytes(b"PK")
    done = command("--destination", str(tmp_path / "model"), "--wheel", str(wheel))
    assert done.returncode == 1
    assert "is not the published deepbet==1.0.2: its SHA-256 is" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "model").exists()


def test_a_missing_wheel_is_told(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="cannot be read: No such file"):
        prepare(tmp_path / "model", wheel=tmp_path / "none.whl", progress=lambda share, message: None)


def test_without_a_network_the_remedy_is_told(tmp_path: Path) -> None:
    closed = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0"}
    done = command("--destination", str(tmp_path / "model"), PIP_FIND_LINKS="", PIP_EXTRA_INDEX_URL="", **closed)
    assert done.returncode == 1
    assert "deepbet==1.0.2 cannot be fetched: ERROR" in done.stderr
    assert "--wheel FILE" in done.stderr


def test_a_folder_that_cannot_be_written_is_told(brain_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PrepareError, match="cannot be written to /proc/model"):
        prepare_model._write(Path("/proc/model"), {"model.onnx": b""})
