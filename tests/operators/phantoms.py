"""Invented DICOM series whose voxels and places are known: for tests of what reads or writes DICOM.

    phantom = make_phantom(orientation="coronal", modality="MR", seed=3)
    paths = phantom.write(folder)

Everything follows from the arguments: the same call makes the same bytes. A test that wants a fault changes
`phantom.datasets` before it writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

from clara_flow.operators.imaging import Volume
from clara_flow.operators.imaging.geometry import affine_lps

# Columns of a direction are the LPS unit vectors of the slice, row and column axis; slice = column x row (PS3.3
# C.7.6.2.1.1: rows run along the column axis), so a phantom's slices are in the order of DICOM's normal.
_COLUMN_AND_ROW_AXES = {
    "axial": ([1, 0, 0], [0, 1, 0]),
    "sagittal": ([0, 1, 0], [0, 0, -1]),
    "coronal": ([1, 0, 0], [0, 0, -1]),
    "oblique": ([0.8, 0.6, 0.0], [-0.48, 0.64, 0.6]),
}
ORIENTATIONS = tuple(_COLUMN_AND_ROW_AXES)
_CLASSES = {
    ("CT", False): CTImageStorage,
    ("MR", False): MRImageStorage,
    ("CT", True): EnhancedCTImageStorage,
    ("MR", True): EnhancedMRImageStorage,
}


@dataclass(frozen=True)
class Mark:
    """A voxel brighter than all others: its (slice, row, column) index, place in LPS mm, and value after rescale."""

    index: tuple[int, int, int]
    position_mm: tuple[float, float, float]
    value: float


@dataclass(frozen=True, eq=False)
class Phantom:
    """A series, not yet written.

    volume      what a reader must find: values after rescale, slices in the order of DICOM's normal.
    stored      stored pixel values, (slices, rows, columns).
    datasets    one per slice, in the order of `volume`; a single one when enhanced. Change them for faults.
    file_names  name of each dataset's file.
    """

    volume: Volume
    stored: np.ndarray
    marks: tuple[Mark, ...]
    datasets: list[Dataset]
    file_names: tuple[str, ...]
    study_uid: UID
    series_uid: UID
    frame_of_reference_uid: UID

    def write(self, folder: Path) -> list[Path]:
        """Write the Part 10 files, one per dataset, and return their paths in the order of the datasets."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / name for name in self.file_names[: len(self.datasets)]]
        for path, dataset in zip(paths, self.datasets, strict=True):
            dataset.save_as(path, enforce_file_format=True)
        return paths


def direction_of(orientation: str | np.ndarray) -> np.ndarray:
    """(3, 3) direction of a named orientation, or of a rotation matrix whose last two columns are kept.

    The columns are the unit vectors of slice, row and column axis; the slice axis is made DICOM's normal.
    """
    if isinstance(orientation, str):
        column, row = (np.array(axis, np.float64) for axis in _COLUMN_AND_ROW_AXES[orientation])
    else:
        row, column = orientation[:, 1], orientation[:, 2]
    return np.stack([np.cross(column, row), row, column], axis=1)


def make_phantom(
    *,
    orientation: str | np.ndarray = "axial",
    shape: tuple[int, int, int] = (5, 7, 6),
    spacing_mm: tuple[float, float, float] = (2.5, 0.8, 0.6),
    origin: Sequence[float] = (-21.5, 13.25, -100.0),
    modality: str = "CT",
    dtype: str = "int16",
    slope: float = 1.0,
    intercept: float = 0.0,
    array: np.ndarray | None = None,
    is_reversed: bool = False,
    is_shuffled: bool = False,
    enhanced: bool = False,
    patient_id: str = "PHANTOM",
    study_uid: str | None = None,
    series_uid: str | None = None,
    frame_of_reference_uid: str | None = None,
    series_number: int = 1,
    description: str = "phantom",
    seed: int = 0,
) -> Phantom:
    """Make a CT or MR series.

    orientation     one of ORIENTATIONS, or a (3, 3) rotation: columns are the slice, row and column axis.
    shape           (slices, rows, columns); spacing_mm along the same axes.
    origin          LPS millimetres of the centre of voxel (0, 0, 0).
    dtype           of stored values: uint8, int16 or uint16.
    array           stored values instead of noise with three marks.
    is_reversed     instance numbers and file names run against the normal.
    is_shuffled     instance numbers and file names are each in a random order.
    enhanced        one multi-frame instance; `is_reversed` and `is_shuffled` act on its frames.
    """
    random = np.random.default_rng(seed)
    part = {
        name: UID(given) if given else generate_uid(entropy_srcs=["clara-flow phantom", name, str(seed)])
        for name, given in (("study", study_uid), ("series", series_uid), ("frame", frame_of_reference_uid))
    }
    stored = _noise_with_marks(random, shape, dtype) if array is None else array.astype(dtype)
    volume = Volume(
        stored * np.float64(slope) + intercept if (slope, intercept) != (1, 0) else stored,
        affine_lps(origin, direction_of(orientation), spacing_mm),
    )
    marks = tuple(
        Mark(index, tuple(volume.position_mm(index).tolist()), float(volume.array[index]))
        for index in _brightest(stored)
    )
    slices = stored.shape[0]
    numbers = np.arange(slices, 0, -1) if is_reversed else np.arange(1, slices + 1)
    names = numbers
    if is_shuffled:
        numbers, names = random.permutation(numbers), random.permutation(numbers)
    common = _common(modality, enhanced, part, patient_id, series_number, description)
    _describe_pixels(common, stored)
    if enhanced:
        datasets = [_enhanced(common, volume, stored, np.argsort(numbers), (slope, intercept))]
    else:
        datasets = [_slice(common, volume, stored, i, int(numbers[i]), (slope, intercept)) for i in range(slices)]
    return Phantom(
        volume,
        stored,
        marks,
        datasets,
        tuple(f"IM{name:04d}.dcm" for name in names),
        part["study"],
        part["series"],
        part["frame"],
    )


def _noise_with_marks(random: np.random.Generator, shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    low = -50 if dtype == "int16" else 0
    stored = random.integers(low, 100, shape).astype(dtype)
    places = random.choice(stored.size, size=min(3, stored.size), replace=False)
    stored.flat[places] = [200, 210, 220][: len(places)]
    return stored


def _brightest(stored: np.ndarray) -> list[tuple[int, int, int]]:
    order = np.argsort(stored, axis=None, kind="stable")[::-1][:3]
    return [tuple(int(i) for i in np.unravel_index(place, stored.shape)) for place in order]


def _common(
    modality: str, enhanced: bool, part: dict[str, UID], patient_id: str, series_number: int, description: str
) -> Dataset:
    """What all instances of the series share: patient, study, series, equipment."""
    dataset = Dataset()
    dataset.SOPClassUID = _CLASSES[modality, enhanced]
    dataset.PatientName, dataset.PatientID = f"Phantom^{patient_id}", patient_id
    dataset.PatientBirthDate, dataset.PatientSex = "19500101", "O"
    dataset.StudyInstanceUID, dataset.StudyDate, dataset.StudyTime = part["study"], "20200101", "120000"
    dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "1", "", ""
    dataset.Modality, dataset.SeriesInstanceUID, dataset.SeriesNumber = modality, part["series"], series_number
    dataset.SeriesDescription, dataset.BodyPartExamined, dataset.PatientPosition = description, "HEAD", "HFS"
    dataset.Manufacturer = "clara-flow"
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = part["frame"], ""
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "OTHER"]
    dataset.AcquisitionNumber = 1
    dataset.ContentDate, dataset.ContentTime = "20200101", "120000"
    if modality == "CT":
        dataset.KVP = "120"
    else:
        dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "GR", "SP", ""
        dataset.MRAcquisitionType, dataset.MagneticFieldStrength, dataset.FlipAngle = "3D", "1.5", "30"
        dataset.RepetitionTime, dataset.EchoTime, dataset.EchoTrainLength = "18", "10", 1
    return dataset


def _describe_pixels(dataset: Dataset, stored: np.ndarray) -> None:
    bits = stored.dtype.itemsize * 8
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape[1:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.WindowCenter, dataset.WindowWidth = "100", "200"


def _slice(
    common: Dataset, volume: Volume, stored: np.ndarray, index: int, number: int, rescale: tuple[float, float]
) -> Dataset:
    """One slice as CT or MR Image Storage (PS3.3 A.3, A.4)."""
    dataset = Dataset()
    dataset.update(common)
    _identify(dataset, number)
    dataset.ImagePositionPatient = [_decimal(value) for value in volume.position_mm([index, 0, 0])]
    dataset.ImageOrientationPatient = [_decimal(v) for v in (*volume.direction[:, 2], *volume.direction[:, 1])]
    spacing = volume.spacing_mm
    dataset.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[2])]
    dataset.SliceThickness = _decimal(spacing[0])
    if common.Modality == "MR":
        dataset.SpacingBetweenSlices = _decimal(spacing[0])
    if common.Modality == "CT" or rescale != (1, 0):
        dataset.RescaleSlope, dataset.RescaleIntercept = _decimal(rescale[0]), _decimal(rescale[1])
    if common.Modality == "CT":
        dataset.RescaleType = "HU"
    dataset.PixelData = _pixels(stored[index])
    return dataset


def _enhanced(
    common: Dataset, volume: Volume, stored: np.ndarray, order: np.ndarray, rescale: tuple[float, float]
) -> Dataset:
    """All slices as one Enhanced CT or MR instance (PS3.3 A.38, A.36), with the groups that place its frames alone."""
    dataset = Dataset()
    dataset.update(common)
    _identify(dataset, 1)
    spacing = volume.spacing_mm
    measures, axes, transformation, shared = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[2])]
    measures.SliceThickness = measures.SpacingBetweenSlices = _decimal(spacing[0])
    axes.ImageOrientationPatient = [_decimal(v) for v in (*volume.direction[:, 2], *volume.direction[:, 1])]
    transformation.RescaleSlope, transformation.RescaleIntercept = (_decimal(value) for value in rescale)
    transformation.RescaleType = "HU" if common.Modality == "CT" else "US"
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [axes]
    shared.PixelValueTransformationSequence = [transformation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for number, index in enumerate(order, start=1):
        place, content, frame = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [_decimal(value) for value in volume.position_mm([index, 0, 0])]
        content.StackID, content.InStackPositionNumber = "1", number
        content.TemporalPositionIndex = 1
        frame.PlanePositionSequence = [place]
        frame.FrameContentSequence = [content]
        dataset.PerFrameFunctionalGroupsSequence.append(frame)
    dataset.NumberOfFrames = len(order)
    dataset.PixelData = _pixels(stored[order])
    return dataset


def _identify(dataset: Dataset, number: int) -> None:
    dataset.InstanceNumber = number
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(dataset.SeriesInstanceUID), str(number)])
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


def _pixels(stored: np.ndarray) -> bytes:
    data = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    return data + b"\0" * (len(data) % 2)


def _decimal(value: float) -> str:
    """A decimal string (VR DS): at most 16 characters, the nearest such number."""
    for digits in range(15, 0, -1):
        if len(text := f"{value + 0.0:.{digits}g}") <= 16:
            return text
    raise ValueError(f"{value} does not fit 16 characters")
