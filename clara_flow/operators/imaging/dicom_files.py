"""Reading a folder of DICOM files: which images there are, and where each of their frames lies. No pixels yet.

Headers only, and of these a few elements: five hundred files take about a second. Nothing here is logged, because file
names and attributes may tell a patient.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.pixels.decoders.base import get_decoder
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, MediaStorageDirectoryStorage

ORIENTATION_TOLERANCE = 0.01
"""How far row and column direction may be from unit length and a right angle: two decimals are seen in practice."""

# SOP Class UIDs (PS3.4 B.5) that have rows and columns but are no pictures of the patient.
_DERIVED_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.66": "a segmentation, registration or surface, not an image",
    "1.2.840.10008.5.1.4.1.1.67": "a real-world value mapping, not an image",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map, not an image",
    "1.2.840.10008.5.1.4.1.1.481": "a radiotherapy object, not a diagnostic image",
}
_PIXEL_DATA = Tag(0x7FE0, 0x0010)
_UID = re.compile(r"[0-9][0-9.]{0,63}")  # volumes are named by it: nothing else may get into a path
_CODE = re.compile(r"[A-Z0-9_ ]{0,16}")
_UNDEFINED_LENGTH = 0xFFFFFFFF

_HEADER = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality",
    "PatientID", "PatientName", "PatientBirthDate", "InstanceNumber", "ImageType", "NumberOfFrames",
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "PixelRepresentation",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "TemporalPositionIdentifier", "TemporalPositionIndex", "EchoNumbers", "EchoTime", "InversionTime",
    "DiffusionBValue", "DiffusionGradientOrientation", "AcquisitionNumber", "TriggerTime",
    "NominalPercentageOfCardiacPhase", "AcquisitionDateTime", "AcquisitionTime", "ContentTime",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


@dataclass(frozen=True)
class LeftOut:
    """A file that gives no image. `file` is relative to the folder, with `/`; `reason` is a clause without it."""

    file: str
    reason: str


@dataclass(frozen=True)
class Instance:
    """What the frames of one file share.

    file            path relative to the folder, with `/`.
    patient         who it is of, only to be compared: (Patient ID, name, birth date).
    transfer_syntax how its pixels are encoded.
    image_type      Image Type (PS3.3 C.7.6.1.1.2), upper case.
    fault           why its pixels cannot be read; empty when nothing speaks against it. Its frames count all the same:
                    the others would seem to make a whole without them.
    """

    path: Path
    file: str
    patient: tuple[str, str, str]
    study_uid: str
    series_uid: str
    sop_instance_uid: str
    number: int
    modality: str
    image_type: tuple[str, ...]
    transfer_syntax: UID
    fault: str = ""


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame: where it lies and what may tell it from another frame at the same place.

    instance    the file it is in; index its place there, from 0.
    shape       (rows, columns).
    origin      (3,) LPS millimetres: centre of the first pixel (Image Position (Patient), PS3.3 C.7.6.2.1.1).
    direction   (3, 3): COLUMNS are the unit vectors of normal, row and column axis; normal = column x row axis.
    pixel_mm    distance between rows, between columns (Pixel Spacing's order).
    depth_mm    Spacing Between Slices, else Slice Thickness; None when neither is told.
    rescale     slope and intercept that make real values of stored ones; (1, 0) when not told.
    traits      {name: value}: temporal position, echo and so on, see `dicom_stacks`.
    """

    instance: Instance
    index: int
    shape: tuple[int, int]
    origin: np.ndarray
    direction: np.ndarray
    pixel_mm: tuple[float, float]
    depth_mm: float | None
    frame_of_reference_uid: str
    rescale: tuple[float, float]
    traits: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    frames          of all images that have a place in the patient, by file name and frame number.
    left_out        the other files, with reasons; DICOMDIR is not mentioned.
    instances       number of DICOM objects of any kind.
    patients        number of different patients in them.
    """

    frames: list[Frame]
    left_out: list[LeftOut]
    instances: int
    patients: int


class _NoImage(ValueError):
    """Why a DICOM object gives no frames; the text is the reason."""


def read_folder(folder: Path) -> Found:
    """Read the headers of all files below `folder`, whatever their names. Links to folders are not followed."""
    frames: list[Frame] = []
    left_out: list[LeftOut] = []
    patients: list[tuple[str, tuple[str, str, str]]] = []
    instances = 0
    for path in _files(folder):
        file = path.relative_to(folder).as_posix()
        try:
            with warnings.catch_warnings(), path.open("rb") as stream:
                warnings.simplefilter("ignore")  # pydicom's warnings quote values
                if path.name.upper() == "DICOMDIR" or (header := _header(stream)) is None:
                    continue
                instances += 1
                instance = _instance(path, file, header)
                patients.append((instance.study_uid, instance.patient))
                frames += _frames(instance, header, stream)
        except _NoImage as reason:
            left_out.append(LeftOut(file, str(reason)))
        except OSError as problem:
            left_out.append(LeftOut(file, f"cannot be read: {problem.strerror or 'input error'}"))
        except Exception as problem:  # noqa: BLE001 - pydicom raises anything at all on broken files
            left_out.append(LeftOut(file, f"has a broken header ({type(problem).__name__})"))
    return Found(frames, left_out, instances, _count_patients(patients))


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (path for name in sorted(names) if (path := Path(root, name)).is_file())


def _header(stream: BinaryIO) -> Dataset | None:
    """The wanted elements; the stream stands at the pixel data afterwards. None for a directory of media.

    Raises _NoImage where it is no DICOM file: no mark, and no data set that begins as all do (PS3.10 7.1).
    """
    start = stream.read(132)
    stream.seek(0)
    if start[128:132] != b"DICM" and not (start[:2] in (b"\x08\x00", b"\x02\x00") and start[3:4] == b"\x00"):
        raise _NoImage("not a DICOM file")
    header = dcmread(stream, stop_before_pixels=True, force=True, specific_tags=_HEADER)
    if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        return None
    if not _text(header, "SOPInstanceUID") or not _UID.fullmatch(_text(header, "SeriesInstanceUID")):
        raise _NoImage("not a DICOM file, or its header is cut off: no SOP or Series Instance UID")
    return header


def _instance(path: Path, file: str, header: Dataset) -> Instance:
    syntax = header.file_meta.get("TransferSyntaxUID") or ImplicitVRLittleEndian
    return Instance(
        path,
        file,
        (_text(header, "PatientID"), _text(header, "PatientName"), _text(header, "PatientBirthDate")),
        _text(header, "StudyInstanceUID"),
        _text(header, "SeriesInstanceUID"),
        _text(header, "SOPInstanceUID"),
        int(_number(header, "InstanceNumber") or 0),
        _code(header, "Modality"),
        _words(header, "ImageType"),
        UID(syntax),
    )


def _frames(instance: Instance, header: Dataset, stream: BinaryIO) -> list[Frame]:
    """Raises _NoImage with the reason where there are none that can be used."""
    sop_class = _text(header, "SOPClassUID")
    for prefix, reason in _DERIVED_CLASSES.items():
        if sop_class == prefix or sop_class.startswith(f"{prefix}."):
            raise _NoImage(reason)
    rows, columns = _number(header, "Rows"), _number(header, "Columns")
    if not rows or not columns:
        raise _NoImage("not an image")
    samples, colours = _number(header, "SamplesPerPixel") or 1, _code(header, "PhotometricInterpretation")
    if samples != 1 or colours not in ("", "MONOCHROME1", "MONOCHROME2"):
        raise _NoImage(f"a colour image ({colours})")
    count = int(_number(header, "NumberOfFrames") or 1)
    own = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    if not own and count > 1:
        raise _NoImage(f"{count} frames that do not tell where each lies in the patient")
    if own and len(own) != count:
        raise _NoImage(f"{count} frames but {len(own)} descriptions of frames")
    if "ModalityLUTSequence" in header:
        raise _NoImage("its values need a Modality LUT, which is not supported")
    frame_bytes = int(rows) * int(columns) * int(_number(header, "BitsAllocated") or 16) // 8
    instance = replace(instance, fault=_fault(instance.transfer_syntax, stream, count * frame_bytes))
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    shape = (int(rows), int(columns))
    if not own:
        return [_frame(instance, 0, shape, lambda group: header, header)]
    return [_frame(instance, index, shape, _finder(item, shared), header) for index, item in enumerate(own)]


def _finder(own: Dataset, shared: Dataset) -> Callable[[str], Dataset]:
    """How to find a functional group's item: the frame's own, else that of all frames (PS3.3 C.7.6.16)."""
    return lambda group: (own.get(group) or shared.get(group) or [Dataset()])[0]


def _fault(syntax: UID, stream: BinaryIO, expected_bytes: int) -> str:
    """Why the pixel data cannot be read: missing, shorter than they should be, or not to be decoded here; else ""."""
    if not syntax.is_transfer_syntax:
        return "its transfer syntax is not one of the standard"
    if syntax == DeflatedExplicitVRLittleEndian:
        return ""  # what stands where is known once it is inflated
    if syntax.is_compressed:
        return "" if _is_decodable(syntax) else f"its transfer syntax cannot be decoded here: {syntax.name}"
    element = stream.read(12)
    if len(element) < 12:
        return "it ends before its pixel data"
    endian = "<" if syntax.is_little_endian else ">"
    if Tag(struct.unpack(f"{endian}HH", element[:4])) != _PIXEL_DATA:
        return "its pixel data are not whole numbers"
    (length,) = struct.unpack(f"{endian}L", element[4:8] if syntax.is_implicit_VR else element[8:12])
    there = os.fstat(stream.fileno()).st_size - (stream.tell() - 4 * syntax.is_implicit_VR)
    if length != _UNDEFINED_LENGTH:
        there = min(there, length)
    return f"its pixel data are cut off: {there} of {expected_bytes} bytes" if there < expected_bytes else ""


def _is_decodable(syntax: UID) -> bool:
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def _frame(
    instance: Instance, index: int, shape: tuple[int, int], group: Callable[[str], Dataset], header: Dataset
) -> Frame:
    """Raises _NoImage where the frame does not tell where it lies."""
    measures = group("PixelMeasuresSequence")
    origin = _numbers(group("PlanePositionSequence"), "ImagePositionPatient", 3)
    cosines = _numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    spacing = _numbers(measures, "PixelSpacing", 2)
    if origin is None or cosines is None or spacing is None:
        raise _NoImage("it does not tell where it lies in the patient (Image Position, Orientation, Pixel Spacing)")
    if min(spacing) <= 0:
        raise _NoImage("its Pixel Spacing is not positive")
    column, row = cosines[:3], cosines[3:]
    lengths = np.linalg.norm(column), np.linalg.norm(row)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(column @ row)) > ORIENTATION_TOLERANCE:
        raise _NoImage("its Image Orientation is not two unit vectors at a right angle")
    column = column / lengths[0]
    normal = np.cross(column, row)
    normal /= np.linalg.norm(normal)
    transformation = group("PixelValueTransformationSequence")
    slope, intercept = _number(transformation, "RescaleSlope"), _number(transformation, "RescaleIntercept")
    depth = _number(measures, "SpacingBetweenSlices") or _number(measures, "SliceThickness")
    return Frame(
        instance,
        index,
        shape,
        origin,
        np.stack([normal, np.cross(normal, column), column], axis=1),
        (float(spacing[0]), float(spacing[1])),
        abs(depth) if depth else None,
        _text(header, "FrameOfReferenceUID"),
        (1.0 if slope is None else slope, intercept or 0.0),
        _traits(group, header),
    )


def _traits(group: Callable[[str], Dataset], header: Dataset) -> dict[str, Any]:
    """What may differ between frames at one place, from the single-frame elements or the functional groups."""
    content, echo, diffusion = group("FrameContentSequence"), group("MREchoSequence"), group("MRDiffusionSequence")
    gradient = (diffusion.get("DiffusionGradientDirectionSequence") or [diffusion])[0]
    kind = next((g for n in ("MR", "CT", "PET") if "FrameType" in (g := group(f"{n}ImageFrameTypeSequence"))), header)
    timing = group("CardiacSynchronizationSequence")
    return {
        "temporal position": _number(content, "TemporalPositionIndex") or _number(header, "TemporalPositionIdentifier"),
        "echo": (
            _number(header, "EchoNumbers"),
            _number(echo, "EffectiveEchoTime") or _number(header, "EchoTime"),
        ),
        "diffusion weighting": (
            _number(diffusion, "DiffusionBValue"),
            tuple(_numbers(gradient, "DiffusionGradientOrientation", 3) or ()) if gradient else (),
        ),
        "kind of image": _words(kind, "FrameType") or _words(kind, "ImageType"),
        "stack": _text(content, "StackID"),
        "acquisition": _number(content, "FrameAcquisitionNumber") or _number(header, "AcquisitionNumber"),
        "cardiac phase": _number(timing, "NominalCardiacTriggerDelayTime") or _number(header, "TriggerTime"),
        "inversion time": _number(header, "InversionTime"),
        "time": _text(content, "FrameReferenceDateTime") or _text(header, "AcquisitionTime"),
    }


def _count_patients(patients: list[tuple[str, tuple[str, str, str]]]) -> int:
    """How many patients (study, (ID, name, birth date)) are. An object without an ID is its study's patient's."""
    id_of_study = {study: patient[0] for study, patient in patients if patient[0]}
    return len({patient[0] or id_of_study.get(study) or patient for study, patient in patients})


def _text(dataset: Dataset, name: str) -> str:
    value = dataset.get(name)
    return "" if value is None else str(value).strip()


def _code(dataset: Dataset, name: str) -> str:
    """A code string (VR CS); `?` for what is none, because codes get into messages and anything may stand in a file."""
    value = _text(dataset, name)
    return value if _CODE.fullmatch(value) else "?"


def _words(dataset: Dataset, name: str) -> tuple[str, ...]:
    value = dataset.get(name)
    return tuple(str(word).strip().upper() for word in ([value] if isinstance(value, str) else value or ()))


def _number(dataset: Dataset, name: str) -> float | None:
    """A number, the first where there are several; None where it is absent, empty or not finite."""
    values = dataset.get(name)
    try:
        value = float(values[0] if isinstance(values, list) or hasattr(values, "append") else values)
    except (TypeError, ValueError, IndexError):
        return None
    return value if np.isfinite(value) else None


def _numbers(dataset: Dataset, name: str, count: int) -> np.ndarray | None:
    """(count,) float64; None where it is absent, of another length or not finite."""
    try:
        values = np.array([float(value) for value in dataset.get(name) or ()])
    except (TypeError, ValueError):
        return None
    return values if values.shape == (count,) and np.isfinite(values).all() else None
