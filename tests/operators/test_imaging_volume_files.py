"""Volumes and their files, with SimpleITK and nibabel as referees."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_flow.operators.imaging import GeometryError, Volume, VolumeFileError, find_volumes, read_volume, write_volume
from clara_flow.operators.imaging.geometry import affine_lps

SUFFIXES = [".mhd", ".mha", ".nii", ".nii.gz"]
DTYPES = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]


def rotation(seed: int) -> np.ndarray:
    """A random orthonormal (3, 3), of either handedness."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


def make_volume(seed: int, dtype: str = "int16") -> Volume:
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(1, 7, 3))
    array = random.integers(0, 100, shape).astype(dtype)
    return Volume(array, affine_lps(random.uniform(-300, 300, 3), rotation(seed), random.uniform(0.3, 5, 3)))


@pytest.mark.parametrize("module", ["geometry", "volume", "volume_files"])
def test_examples_in_docstrings_are_true(module: str) -> None:
    outcome = doctest.testmod(importlib.import_module(f"clara_flow.operators.imaging.{module}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from(DTYPES))
def test_simpleitk_reads_what_we_write(tmp_path_factory: pytest.TempPathFactory, suffix: str, seed: int, dtype: str):
    volume = make_volume(seed, dtype)
    path = tmp_path_factory.mktemp("volume") / f"1.2.3{suffix}"
    write_volume(path, volume)
    image = sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(image), volume.array)
    for index in [(0, 0, 0), tuple(size - 1 for size in volume.shape)]:
        theirs = image.TransformContinuousIndexToPhysicalPoint([float(i) for i in index[::-1]])
        np.testing.assert_allclose(theirs, volume.position_mm(index), atol=1e-3)
    again = read_volume(path)
    assert again.array.dtype == volume.array.dtype
    assert np.array_equal(again.array, volume.array)
    assert again.same_grid(volume)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), compressed=st.booleans())
def test_we_read_what_simpleitk_writes(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, seed: int, compressed: bool
) -> None:
    volume = make_volume(seed)
    image = sitk.GetImageFromArray(volume.array)
    image.SetSpacing(volume.spacing_mm[::-1].tolist())
    image.SetOrigin(volume.origin.tolist())
    direction_xyz = volume.direction[:, ::-1]
    if suffix.startswith(".nii") and np.linalg.det(direction_xyz) < 0:
        direction_xyz = direction_xyz * [1, 1, -1]
    image.SetDirection(direction_xyz.ravel().tolist())
    path = tmp_path_factory.mktemp("volume") / f"image{suffix}"
    sitk.WriteImage(image, str(path), useCompression=compressed)
    ours = read_volume(path)
    assert np.array_equal(ours.array, volume.array)
    last = [size - 1 for size in volume.shape]
    theirs = image.TransformContinuousIndexToPhysicalPoint([float(i) for i in last[::-1]])
    np.testing.assert_allclose(ours.position_mm(last), theirs, atol=1e-3)


def test_metaimage_geometry_survives_itk_bit_by_bit(tmp_path: Path) -> None:
    volume = make_volume(7)
    write_volume(tmp_path / "a.mhd", volume)
    image = sitk.ReadImage(str(tmp_path / "a.mhd"))
    assert image.GetOrigin() == tuple(volume.origin)
    assert image.GetSpacing() == tuple(volume.spacing_mm[::-1])
    assert image.GetDirection() == tuple(volume.direction[:, ::-1].ravel())


def test_nifti_is_ras_to_nibabel(tmp_path: Path) -> None:
    volume = Volume(np.zeros((2, 3, 4), np.int16), affine_lps([10, 20, 30], np.eye(3)[:, ::-1], [3, 2, 1]))
    write_volume(tmp_path / "a.nii.gz", volume)
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert image.shape == (4, 3, 2)
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.affine[:3, 3].tolist() == [-10, -20, 30]
    assert image.affine.tolist() == image.get_qform().tolist() == image.get_sform().tolist()


def test_scaled_nifti_gives_scaled_values(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    image.header.set_slope_inter(0.5, -1)
    nibabel.save(image, tmp_path / "scaled.nii")
    volume = read_volume(tmp_path / "scaled.nii")
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, np.arange(8).reshape(2, 2, 2).transpose() * 0.5 - 1)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_same_volume_same_bytes(tmp_path: Path, suffix: str) -> None:
    volume = make_volume(3)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_volume(tmp_path / folder / f"v{suffix}", volume)
    one, two = (sorted((tmp_path / folder).iterdir()) for folder in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_masks_of_bool_become_uint8_and_views_are_written_whole(tmp_path: Path, suffix: str) -> None:
    base = make_volume(11)
    mask = base.with_array(base.array > 50).reoriented("RAS")
    write_volume(tmp_path / f"mask{suffix}", mask)
    again = read_volume(tmp_path / f"mask{suffix}")
    assert again.array.dtype == np.uint8
    assert np.array_equal(again.array, mask.array)
    assert again.same_grid(mask)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), towards=st.sampled_from(["SPL", "SAR", "RAS", "PIR", "LSA"]))
def test_reorienting_moves_no_voxel_and_can_be_undone(seed: int, towards: str) -> None:
    volume = make_volume(seed)
    turned = volume.reoriented(towards)
    assert turned.axis_codes == towards
    index = np.argwhere(volume.array == volume.array.max())[0]
    moved = np.rint(turned.index_at(volume.position_mm(index))).astype(int)
    assert turned.array[tuple(moved)] == volume.array.max()
    np.testing.assert_allclose(turned.position_mm(moved), volume.position_mm(index), atol=1e-9)
    back = turned.reoriented(volume.axis_codes)
    assert back.same_grid(volume, tolerance_mm=1e-9)
    assert np.array_equal(back.array, volume.array)


def test_same_grid_sees_a_shift_and_a_shape() -> None:
    volume = make_volume(5)
    shifted = np.array(volume.affine_lps)
    shifted[0, 3] += 0.01
    assert volume.same_grid(Volume(volume.array, volume.affine_lps))
    assert not volume.same_grid(Volume(volume.array, shifted))
    assert volume.same_grid(Volume(volume.array, shifted), tolerance_mm=0.1)
    assert not volume.same_grid(Volume(np.zeros((9, 9, 9)), volume.affine_lps))


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.diag([1, 1, 0, 1]), np.full((4, 4), np.nan), np.eye(3)])
def test_impossible_affines_are_refused(affine: np.ndarray) -> None:
    with pytest.raises(GeometryError):
        Volume(np.zeros((2, 2, 2)), affine)


def test_sheared_grid_is_refused_by_metaimage_alone(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[2, 0] = 0.3
    volume = Volume(np.zeros((2, 2, 2), np.uint8), affine)
    with pytest.raises(VolumeFileError, match="sheared"):
        write_volume(tmp_path / "a.mhd", volume)
    write_volume(tmp_path / "a.nii", volume)
    assert read_volume(tmp_path / "a.nii").same_grid(volume)


HEADER = "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.mhd", b"\x00\xff" * 50, "not a MetaImage header"),
        ("a.mhd", b"", "not a MetaImage header"),
        ("a.mhd", b"ElementDataFile = x.raw\n", "lacks or garbles"),
        ("a.mhd", f"{HEADER}ElementDataFile = gone.raw\n".encode(), "gone.raw is missing"),
        ("a.mha", f"{HEADER}ElementDataFile = LOCAL\nabc".encode(), "3 of 8 elements"),
        (
            "a.mha",
            f"{HEADER}CompressedData = True\nElementDataFile = LOCAL\nabc".encode(),
            "compressed data are broken",
        ),
        ("a.mha", f"{HEADER}Offset = 1 2\nElementDataFile = LOCAL\n12345678".encode(), "Offset has 2 numbers"),
        ("a.mha", f"{HEADER}ElementNumberOfChannels = 3\nElementDataFile = LOCAL\n".encode(), "several channels"),
        ("a.mhd", f"{HEADER}ElementDataFile = LIST\na\nb\n".encode(), "lists of files"),
        ("a.nii", b"not nifti", "not a readable NIfTI"),
        ("a.nii.gz", b"\x1f\x8b broken", "not a readable NIfTI"),
        ("a.png", b"", "known endings"),
    ],
)
def test_broken_files_say_what_is_wrong(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VolumeFileError, match=says):
        read_volume(tmp_path / name)


def test_big_endian_and_two_axes_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.mha").write_bytes(
        b"NDims = 2\nDimSize = 2 1\nElementSpacing = 0.5 2\nElementByteOrderMSB = True\n"
        b"ElementType = MET_SHORT\nElementDataFile = LOCAL\n\x01\x00\x00\x02"
    )
    volume = read_volume(tmp_path / "a.mha")
    assert volume.array.tolist() == [[[256, 2]]]
    assert volume.spacing_mm.tolist() == [1, 2, 0.5]


def test_find_volumes_by_clara_s_order_of_endings(tmp_path: Path) -> None:
    for name in ["b.mhd", "b.raw", "a.mhd", "c.NII", "z.nii.gz", ".hidden.nii", "report.json"]:
        (tmp_path / name).touch()
    assert [path.name for path in find_volumes(tmp_path)] == ["z.nii.gz", "c.NII", "a.mhd", "b.mhd"]


def test_writing_an_unknown_ending_or_dtype_is_refused(tmp_path: Path) -> None:
    volume = make_volume(1)
    with pytest.raises(VolumeFileError, match="known endings"):
        write_volume(tmp_path / "a.png", volume)
    for name in ("a.mhd", "a.nii"):
        with pytest.raises(VolumeFileError, match="float16"):
            write_volume(tmp_path / name, volume.with_array(volume.array.astype(np.float16)))
    assert list(tmp_path.iterdir()) == []
