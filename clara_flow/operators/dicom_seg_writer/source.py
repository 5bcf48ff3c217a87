"""The originals: which series the study has, and where each of their frames lies in the patient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

_DERIVED_OBJECTS = "1.2.840.10008.5.1.4.1.1.66"  # segmentations, registrations, surfaces (PS3.4 B.5)
_SAME_PLACE_MM = 0.01

PARALLEL_TOLERANCE_PIXELS = 0.1
"""Frames are parallel when their far corners drift apart by less."""


@dataclass(frozen=True, eq=False)
class SourceFrame:
    """One frame of the originals.

    header          its instance, without pixel data.
    number          its number within a multi-frame instance, from 1; None for a single-frame instance.
    shape           (rows, columns).
    origin          (3,) LPS millimetres: centre of the first pixel (Image Position (Patient), PS3.3 C.7.6.2.1.1).
    row_step        (3,) LPS millimetres from one row to the next.
    column_step     (3,) LPS millimetres from one column to the next.
    thickness_mm    Slice Thickness; None when absent.
    """

    header: Dataset
    number: int | None
    shape: tuple[int, int]
    origin: np.ndarray
    row_step: np.ndarray
    column_step: np.ndarray
    thickness_mm: float | None

    @property
    def normal(self) -> np.ndarray:
        """(3,): unit vector of column direction x row direction, the way DICOM counts slices."""
        normal = np.cross(self.column_step, self.row_step)
        return normal / np.linalg.norm(normal)

    @property
    def pixel_spacing_mm(self) -> tuple[float, float]:
        """Distance between rows, distance between columns (Pixel Spacing's order)."""
        return float(np.linalg.norm(self.row_step)), float(np.linalg.norm(self.column_step))

    @property
    def orientation(self) -> list[float]:
        """Image Orientation (Patient): the unit vector along a row, then along a column."""
        row_mm, column_mm = self.pixel_spacing_mm
        return [*(self.column_step / column_mm + 0.0).tolist(), *(self.row_step / row_mm + 0.0).tolist()]  # no "-0.0"


@dataclass(frozen=True, eq=False)
class Stack:
    """Parallel frames of one series with the same pixels, ordered along their normal, one for each place.

    spacing_mm  usual distance between neighbours; of a single frame its thickness; None when nothing tells it.
    """

    frames: tuple[SourceFrame, ...]

    @property
    def offsets_mm(self) -> np.ndarray:
        """(frames,): places along the normal, ascending."""
        return np.array([frame.origin for frame in self.frames]) @ self.frames[0].normal

    @property
    def spacing_mm(self) -> float | None:
        if len(self.frames) > 1:
            return float(np.median(np.diff(self.offsets_mm)))
        return self.frames[0].thickness_mm


@dataclass(frozen=True, eq=False)
class Series:
    """One series of images: the header of its first instance, and its stacks, the largest first."""

    uid: str
    header: Dataset
    stacks: tuple[Stack, ...]


@dataclass(frozen=True)
class Study:
    """What a folder of originals holds.

    series          by Series Instance UID, in the order of the files.
    series_numbers  of all DICOM files, also of those that are no images.
    unreadable      files that are not DICOM or break off within the header.
    """

    series: dict[str, Series]
    series_numbers: tuple[int, ...]
    unreadable: int


def read_study(paths: Iterable[Path]) -> Study:
    """Read the headers of the originals. What is no image in the patient's space is left out."""
    instances: dict[str, list[Dataset]] = defaultdict(list)
    numbers: set[int] = set()
    unreadable = 0
    for path in sorted(paths):
        try:
            header = dcmread(path, stop_before_pixels=True)
            _ = header.SOPInstanceUID, header.StudyInstanceUID
            series = str(header.SeriesInstanceUID)
            numbers.add(int(header.get("SeriesNumber") or 0))
        except (InvalidDicomError, EOFError, OSError, AttributeError, ValueError, TypeError):
            unreadable += path.name != "DICOMDIR"
            continue
        instances[series].append(header)
    found = {}
    for uid, headers in instances.items():
        unique = {str(header.SOPInstanceUID): header for header in headers}
        frames = [frame for header in unique.values() for frame in _frames(header)]
        if frames:
            found[uid] = Series(uid, frames[0].header, _stacks(frames))
    return Study(found, tuple(sorted(numbers)), unreadable)


def _frames(header: Dataset) -> list[SourceFrame]:
    """Frames of one instance; none when it is no image in the patient's space."""
    if str(header.get("SOPClassUID", "")).startswith(_DERIVED_OBJECTS):
        return []
    try:
        if "PerFrameFunctionalGroupsSequence" not in header:
            if int(header.get("NumberOfFrames") or 1) > 1:
                return []  # frames without places of their own
            return [_frame(header, None, header, header, header)]
        shared = header.SharedFunctionalGroupsSequence[0]
        return [
            _frame(
                header,
                number,
                _group(own, shared, "PlanePositionSequence"),
                _group(own, shared, "PlaneOrientationSequence"),
                _group(own, shared, "PixelMeasuresSequence"),
            )
            for number, own in enumerate(header.PerFrameFunctionalGroupsSequence, start=1)
        ]
    except (AttributeError, IndexError, TypeError, ValueError):
        return []


def _group(own: Dataset, shared: Dataset, name: str) -> Dataset:
    """A functional group's item: a frame's own, else the one that all frames share (PS3.3 C.7.6.16)."""
    item: Dataset = (own.get(name) or shared[name].value)[0] if name in own or name in shared else Dataset()
    return item


def _frame(header: Dataset, number: int | None, place: Dataset, axes: Dataset, pixels: Dataset) -> SourceFrame:
    """Raises AttributeError, TypeError or ValueError where something is missing or not a number."""
    orientation = np.array([float(value) for value in axes.ImageOrientationPatient])
    row_mm, column_mm = (float(value) for value in pixels.PixelSpacing)
    origin = np.array([float(value) for value in place.ImagePositionPatient])
    along_row, along_column = orientation[:3], orientation[3:]
    lengths = float(np.linalg.norm(along_row)), float(np.linalg.norm(along_column))
    if origin.shape != (3,) or min(*lengths, row_mm, column_mm) <= 0:
        raise ValueError("no place in the patient")
    thickness = pixels.get("SliceThickness")
    return SourceFrame(
        header,
        number,
        (int(header.Rows), int(header.Columns)),
        origin,
        along_column / lengths[1] * row_mm,
        along_row / lengths[0] * column_mm,
        float(thickness) if thickness else None,
    )


def _stacks(frames: list[SourceFrame]) -> tuple[Stack, ...]:
    """Frames that are parallel and have the same pixels make a stack; of several at one place the first is kept."""
    groups: list[list[SourceFrame]] = []
    for frame in frames:
        group = next((group for group in groups if _are_parallel(group[0], frame)), None)
        if group is None:
            groups.append([frame])
        else:
            group.append(frame)
    stacks = []
    for group in groups:
        offsets = np.array([frame.origin for frame in group]) @ group[0].normal
        order = np.argsort(offsets, kind="stable")
        places = np.split(order, np.flatnonzero(np.diff(offsets[order]) > _SAME_PLACE_MM) + 1)
        stacks.append(Stack(tuple(min((group[index] for index in place), key=_order) for place in places)))
    return tuple(sorted(stacks, key=lambda stack: -len(stack.frames)))


def _are_parallel(one: SourceFrame, other: SourceFrame) -> bool:
    if one.shape != other.shape:
        return False
    drift = np.abs(one.row_step - other.row_step).max() * one.shape[0]
    drift += np.abs(one.column_step - other.column_step).max() * one.shape[1]
    return bool(drift < PARALLEL_TOLERANCE_PIXELS * min(one.pixel_spacing_mm))


def _order(frame: SourceFrame) -> tuple[int, int]:
    """Which of several frames at one place comes first."""
    try:
        return int(frame.header.get("InstanceNumber") or 0), frame.number or 0
    except (TypeError, ValueError):
        return 0, frame.number or 0
