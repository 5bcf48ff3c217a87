"""The phantoms are DICOM: what the readers and writers are tested with must not be wrong itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from operators.phantoms import ORIENTATIONS, make_phantom
from pydicom import dcmread


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="Debian's dicom3tools is not installed")
@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_dciodvfy_finds_no_error(tmp_path: Path, modality: str, orientation: str) -> None:
    path = make_phantom(modality=modality, orientation=orientation).write(tmp_path)[0]
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
    assert f"{modality}Image" in said
    assert "Error" not in said


@pytest.mark.parametrize("enhanced", [False, True])
def test_the_same_call_makes_the_same_bytes(tmp_path: Path, enhanced: bool) -> None:
    one, two = (make_phantom(seed=5, enhanced=enhanced).write(tmp_path / name) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_marks_are_brighter_than_all_else_and_where_they_say() -> None:
    phantom = make_phantom(orientation="oblique", slope=2, intercept=-5)
    rest = phantom.volume.array.copy()
    for mark in phantom.marks:
        np.testing.assert_allclose(phantom.volume.index_at(mark.position_mm), mark.index, atol=1e-9)
        rest[mark.index] = 0
    assert len(phantom.marks) == 3
    assert rest.max() < min(mark.value for mark in phantom.marks)


def test_shuffling_leaves_neither_names_nor_numbers_in_order(tmp_path: Path) -> None:
    phantom = make_phantom(shape=(9, 2, 2), is_shuffled=True)
    numbers = [dcmread(path).InstanceNumber for path in phantom.write(tmp_path)]
    assert sorted(numbers) == list(range(1, 10))
    assert numbers != sorted(numbers)
    assert list(phantom.file_names) != sorted(phantom.file_names)
