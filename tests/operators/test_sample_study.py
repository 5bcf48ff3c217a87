"""The sample study: a standard-conforming MR series that is the head it was made from."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from clara_flow.operators.imaging import sample_study
from clara_flow.operators.imaging.volume_files import read_volume


@pytest.fixture(scope="session")
def small_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head-shaped blob on 20 x 24 x 16 voxels of 2 mm, RAS."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (20, 24, 16)), indexing="ij"))
    blob = (np.clip(1 - (grid**2).sum(0), 0, None) * 200 + np.arange(20)[:, None, None]).astype(np.uint8)
    path = tmp_path_factory.mktemp("head") / "small.nii.gz"
    nib.Nifti1Image(blob, np.array([[2, 0, 0, -19], [0, 2, 0, -23], [0, 0, 2, -15], [0, 0, 0, 1.0]])).to_filename(path)
    return path


@pytest.mark.parametrize("orientation", sample_study.ORIENTATIONS)
def test_it_reads_back_as_its_source(small_head: Path, tmp_path: Path, orientation: str) -> None:
    study = tmp_path / "study"
    arguments = ["--output", str(study), "--source", str(small_head), "--orientation", orientation]
    assert sample_study.main(arguments) == 0
    source = sample_study.oriented(read_volume(small_head), orientation)
    files = sorted(study.iterdir())
    image = sitk.ReadImage([str(path) for path in files])
    assert np.array_equal(sitk.GetArrayFromImage(image), source.array)
    for index in ([0, 0, 0], [3, 5, 7], [s - 1 for s in source.shape]):
        there = image.TransformIndexToPhysicalPoint([index[2], index[1], index[0]])
        assert np.allclose(there, source.position_mm(index), atol=1e-3)


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="Debian's dicom3tools is not installed")
@pytest.mark.parametrize("orientation", sample_study.ORIENTATIONS)
def test_dciodvfy_finds_no_error(small_head: Path, tmp_path: Path, orientation: str) -> None:
    head = read_volume(small_head)
    for path in sample_study.make_study(head, tmp_path / "study", name="small", orientation=orientation)[:2]:
        said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
        assert "MRImage" in said
        assert "Error" not in said


def test_the_same_call_makes_the_same_bytes_and_leaves_a_whole_study_alone(small_head: Path, tmp_path: Path) -> None:
    head = read_volume(small_head)
    one = sample_study.make_study(head, tmp_path / "one", name="small", orientation="axial")
    two = sample_study.make_study(head, tmp_path / "two", name="small", orientation="axial")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    before = [path.stat().st_mtime_ns for path in one]
    assert sample_study.make_study(head, tmp_path / "one", name="small", orientation="axial") == one
    assert [path.stat().st_mtime_ns for path in one] == before
    assert len({pydicom.dcmread(path).SOPInstanceUID for path in one}) == len(one)


def test_a_folder_with_other_files_is_not_touched(
    small_head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("ten years of work")
    assert sample_study.main(["--output", str(tmp_path), "--source", str(small_head)]) == 1
    assert "holds other files" in capsys.readouterr().err
    assert precious.read_text() == "ten years of work"


def test_another_orientation_with_as_many_slices_is_not_taken_for_this_one(small_head: Path, tmp_path: Path) -> None:
    head = read_volume(small_head)
    paths = sample_study.make_study(head, tmp_path / "study", name="small", orientation="axial")
    before = [path.read_bytes() for path in paths]
    with pytest.raises(FileExistsError, match="holds other files"):
        sample_study.make_study(head, tmp_path / "study", name="small", orientation="oblique")
    assert [path.read_bytes() for path in paths] == before


def test_a_missing_head_names_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample_study.main(["--output", str(tmp_path / "x"), "--source", str(tmp_path / "none.nii")]) == 1
    assert "install Debian's mricron-data" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_mni152_comes_with_nilearn() -> None:
    name, path = sample_study.find_source("mni152")
    assert name == "mni152"
    assert read_volume(path).shape == (189, 233, 197)
