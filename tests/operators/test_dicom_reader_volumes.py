"""Volumes of the reader lie where DICOM says, with SimpleITK (GDCM) and highdicom as referees."""

from __future__ import annotations

import shutil
from pathlib import Path

import gdcm
import highdicom
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from operators.phantoms import ORIENTATIONS, Phantom, make_phantom
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import JPEGLosslessSV1, JPEGLSLossless, RLELossless, generate_uid

from clara_flow.operators.dicom_reader.report import Report
from clara_flow.operators.dicom_reader.study import read_study
from clara_flow.operators.imaging import Volume, read_volume


def rotation(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


ANY_ORIENTATION = st.one_of(st.sampled_from(ORIENTATIONS), st.integers(0, 2**32).map(rotation))
PHANTOMS = st.builds(
    make_phantom,
    orientation=ANY_ORIENTATION,
    shape=st.tuples(st.integers(2, 6), st.integers(2, 7), st.integers(2, 7)),
    spacing_mm=st.tuples(st.floats(0.5, 8), st.floats(0.2, 3), st.floats(0.2, 3)),
    origin=st.tuples(*[st.floats(-400, 400)] * 3),
    modality=st.sampled_from(["CT", "MR"]),
    dtype=st.sampled_from(["uint8", "int16", "uint16"]),
    slope=st.sampled_from([1.0, 2.0, 0.125]),
    intercept=st.sampled_from([0.0, -1024.0]),
    is_reversed=st.booleans(),
    is_shuffled=st.booleans(),
    seed=st.integers(0, 2**32),
)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory):
    """Make a pair of empty folders, for input and output."""

    def make() -> tuple[Path, Path]:
        base = tmp_path_factory.mktemp("study")
        (base / "in").mkdir()
        (base / "out").mkdir()
        return base / "in", base / "out"

    return make


def only_volume(report: Report, folder: Path) -> Volume:
    assert len(report.series) == 1
    assert report.warnings == ()
    return read_volume(folder / report.series[0].file)


def assert_is(volume: Volume, phantom: Phantom) -> None:
    np.testing.assert_array_equal(volume.array, phantom.volume.array)
    assert volume.same_grid(phantom.volume)
    for mark in phantom.marks:
        index = np.rint(volume.index_at(mark.position_mm)).astype(int)
        assert volume.array[tuple(index)] == mark.value
        np.testing.assert_allclose(volume.position_mm(index), mark.position_mm, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(phantom=PHANTOMS)
def test_every_orientation_and_order_gives_the_same_voxels_at_the_same_places(folders, phantom: Phantom) -> None:
    study, output = folders()
    phantom.write(study)
    report = read_study(study, output)
    volume = only_volume(report, output)
    assert_is(volume, phantom)
    assert report.series[0].file == f"{phantom.series_uid}.mhd"
    assert report.series[0].shape == volume.shape
    np.testing.assert_allclose(report.series[0].affine_lps, volume.affine_lps, atol=1e-9)
    sources = [source.sop_instance_uid for source in report.series[0].slices]
    assert sources == [dataset.SOPInstanceUID for dataset in phantom.datasets]
    for source, stored in zip(report.series[0].slices, phantom.stored, strict=True):
        assert np.array_equal(dcmread(study / source.file).pixel_array, stored)


@settings(max_examples=40, deadline=None)
@given(phantom=PHANTOMS)
def test_simpleitk_and_highdicom_agree(folders, phantom: Phantom) -> None:
    study, output = folders()
    paths = phantom.write(study)
    ours = only_volume(read_study(study, output), output)

    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(study)))
    assert np.array_equal(sitk.GetArrayFromImage(image), ours.array)
    theirs = highdicom.get_volume_from_series([dcmread(path) for path in paths])
    assert theirs.spatial_shape == ours.shape
    for index in np.ndindex(2, 2, 2):
        corner = [(size - 1) * end for size, end in zip(ours.shape, index, strict=True)]
        place = ours.position_mm(corner)
        itk = image.TransformContinuousIndexToPhysicalPoint([float(value) for value in corner[::-1]])
        np.testing.assert_allclose(place, itk, atol=2e-3)
        there = theirs.map_reference_to_indices(place[None], round_output=True)[0]
        np.testing.assert_allclose(theirs.map_indices_to_reference(there[None])[0], place, atol=2e-3)
        assert theirs.array[tuple(there)] == ours.array[tuple(corner)]


@pytest.mark.parametrize("modality", ["CT", "MR"])
@settings(max_examples=15, deadline=None)
@given(orientation=ANY_ORIENTATION, seed=st.integers(0, 2**32), is_shuffled=st.booleans())
def test_multi_frame_is_read_as_single_frame_is(
    folders, modality: str, orientation: str | np.ndarray, seed: int, is_shuffled: bool
) -> None:
    phantom = make_phantom(
        orientation=orientation, modality=modality, seed=seed, is_shuffled=is_shuffled, intercept=-7, enhanced=True
    )
    study, output = folders()
    (path,) = phantom.write(study)
    report = read_study(study, output)
    assert_is(only_volume(report, output), phantom)
    stored = dcmread(path).pixel_array
    for source, expected in zip(report.series[0].slices, phantom.stored, strict=True):
        assert np.array_equal(stored[source.frame - 1], expected)


def test_multi_frame_of_a_stranger(folders) -> None:
    """highdicom's conversion of a classic series: legacy converted enhanced CT (PS3.3 A.70)."""
    phantom = make_phantom(orientation="oblique", is_shuffled=True, slope=2, intercept=-1000)
    for dataset in phantom.datasets:
        dataset.PatientName = "Phantom^One"
    converted = highdicom.legacy.LegacyConvertedEnhancedCTImage(
        phantom.datasets, generate_uid(), 2, generate_uid(), 1, transfer_syntax_uid="1.2.840.10008.1.2.1"
    )
    study, output = folders()
    converted.save_as(study / "one")
    assert_is(only_volume(read_study(study, output), output), phantom)


@pytest.mark.parametrize("image_format", ["mhd", "nii", "nii.gz"])
def test_formats_agree(folders, image_format: str) -> None:
    phantom = make_phantom(orientation="oblique", intercept=-1000)
    study, output = folders()
    phantom.write(study)
    report = read_study(study, output, image_format=image_format)
    assert report.series[0].file == f"{phantom.series_uid}.{image_format}"
    assert_is(only_volume(report, output), phantom)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_pixels(folders, syntax: str) -> None:
    phantom = make_phantom(shape=(3, 16, 16), dtype="uint16")
    for dataset in phantom.datasets:
        dataset.compress(syntax, generate_instance_uid=False)
    study, output = folders()
    phantom.write(study)
    assert_is(only_volume(read_study(study, output), output), phantom)


def test_jpeg_lossless(folders) -> None:
    phantom = make_phantom(shape=(3, 16, 16), dtype="uint16")
    study, output = folders()
    for path in phantom.write(study):
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        assert dcmread(path).file_meta.TransferSyntaxUID == JPEGLosslessSV1
    assert_is(only_volume(read_study(study, output), output), phantom)


@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm"])
def test_one_image_in_several_encodings(folders, name: str) -> None:
    arrays = []
    for source in ("MR_small.dcm", name):
        study, output = folders()
        shutil.copy(get_testdata_file(source), study)
        arrays.append(only_volume(read_study(study, output), output).array)
    assert np.array_equal(*arrays)
    assert arrays[0].any()


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"])
def test_implicit_deflated_and_big_endian(folders, syntax: str) -> None:
    phantom = make_phantom()
    study, output = folders()
    for number, dataset in enumerate(phantom.datasets):
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax.endswith(".2.2"):
            dataset.PixelData = phantom.stored[number].astype(">i2").tobytes()
        dataset.save_as(
            study / f"{number}",
            enforce_file_format=True,
            implicit_vr=syntax == "1.2.840.10008.1.2",
            little_endian=not syntax.endswith(".2.2"),
        )
    assert_is(only_volume(read_study(study, output), output), phantom)


def test_files_without_preamble_in_nested_folders_with_odd_names(folders) -> None:
    phantom = make_phantom()
    study, output = folders()
    for number, dataset in enumerate(phantom.datasets):
        path = study / f"ser {number % 2}" / f"Ü{number}.TXT"
        path.parent.mkdir(exist_ok=True)
        del dataset.file_meta
        dataset.save_as(path, implicit_vr=True, little_endian=True)
    assert_is(only_volume(read_study(study, output), output), phantom)


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "dtype"),
    [
        ([0, 1000], 1, -1024, "int16"),
        ([0, 65535], 1, 0, "int32"),
        ([0, 32767], 1, 0, "int16"),
        ([0, 65535], 1, -32768, "int16"),
        ([0, 65535], 100000, 0, "float32"),
        ([0, 1000], 0.5, 0, "float32"),
    ],
)
def test_the_narrowest_dtype_that_holds_all_values(folders, stored, slope, intercept, dtype: str) -> None:
    array = np.zeros((3, 2, 2))
    array[2, 1] = stored  # only the last slice asks for more
    phantom = make_phantom(array=array, dtype="uint16", slope=slope, intercept=intercept)
    study, output = folders()
    phantom.write(study)
    volume = only_volume(read_study(study, output), output)
    assert volume.array.dtype == dtype
    np.testing.assert_allclose(volume.array, phantom.volume.array)


def test_every_slice_has_its_own_rescale(folders) -> None:
    phantom = make_phantom(shape=(3, 4, 4))
    for number, dataset in enumerate(phantom.datasets):
        dataset.RescaleSlope, dataset.RescaleIntercept = number + 1, -number
    study, output = folders()
    phantom.write(study)
    volume = only_volume(read_study(study, output), output)
    for number in range(3):
        assert np.array_equal(volume.array[number], phantom.stored[number] * (number + 1) - number)


def test_unused_high_bits_are_no_part_of_a_value(folders) -> None:
    phantom = make_phantom(shape=(2, 4, 4), dtype="uint16")
    for dataset, stored in zip(phantom.datasets, phantom.stored, strict=True):
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.PixelData = (stored | 0xF000).tobytes()  # an overlay of old times (PS3.5 8.1.1)
    study, output = folders()
    phantom.write(study)
    assert np.array_equal(only_volume(read_study(study, output), output).array, phantom.stored)


def test_inverted_display_does_not_change_values(folders) -> None:
    phantom = make_phantom()
    for dataset in phantom.datasets:
        dataset.PhotometricInterpretation = "MONOCHROME1"
    study, output = folders()
    phantom.write(study)
    assert_is(only_volume(read_study(study, output), output), phantom)


def test_the_same_study_gives_the_same_bytes(folders) -> None:
    study, one = folders()
    _, two = folders()
    make_phantom(is_shuffled=True).write(study)
    read_study(study, one)
    read_study(study, two)
    assert [p.name for p in sorted(one.iterdir())] == [p.name for p in sorted(two.iterdir())]
    assert [p.read_bytes() for p in sorted(one.iterdir())] == [p.read_bytes() for p in sorted(two.iterdir())]
