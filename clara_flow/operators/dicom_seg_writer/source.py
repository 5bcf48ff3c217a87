"""The originals: which series the study has, and what their headers say."""

from __future__ import annotations

import struct
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError

from clara_flow.operators.imaging.dicom_files import Frame, read_folder
from clara_flow.operators.imaging.dicom_stacks import ROUNDING_MM, Stack, split_into_stacks

UNREADABLE = (
    AttributeError,
    BytesLengthException,
    EOFError,
    IndexError,
    InvalidDicomError,
    KeyError,
    NotImplementedError,
    OSError,
    TypeError,
    ValueError,
    struct.error,
)
"""What pydicom raises where a file or a value is missing, cut off or garbled."""


@dataclass(frozen=True, eq=False)
class Series:
    """One series of images.

    header          of its first instance by number, without pixel data and without values that cannot be decoded.
    stacks          one frame for each place; in the order in which the DICOM Reader numbers its volumes.
    multi_frame     SOP Instance UIDs of its instances that hold several frames.
    """

    uid: str
    header: Dataset
    stacks: tuple[Stack, ...]
    multi_frame: frozenset[str]


@dataclass(frozen=True, eq=False)
class Study:
    """What a folder of originals holds: series of images by UID, and how many files give no image."""

    series: dict[str, Series]
    left_out: int


def read_study(folder: Path) -> Study:
    """Read the originals below `folder`. Files that are no image in the patient's space are counted and left out."""
    found = read_folder(folder)
    frames_of: dict[str, list[Frame]] = defaultdict(list)
    for frame in found.frames:
        frames_of[frame.instance.series_uid].append(frame)
    series = {}
    for uid, frames in frames_of.items():
        counts: dict[str, int] = defaultdict(int)
        for frame in frames:
            counts[frame.instance.sop_instance_uid] += 1
        first = min(frames, key=lambda frame: (frame.instance.number, frame.instance.file))
        stacks = tuple(_one_at_each_place(stack) for stack in split_into_stacks(frames))
        multi_frame = frozenset(instance for instance, count in counts.items() if count > 1)
        series[uid] = Series(uid, _header(first.instance.path), stacks, multi_frame)
    return Study(series, len(found.left_out))


def spacing_mm(stack: Stack) -> float | None:
    """Usual distance between neighbours; of a single frame its depth; None when nothing tells it."""
    if len(stack.frames) > 1:
        return float(np.median(np.diff(offsets_mm(stack))))
    return stack.frames[0].depth_mm


def offsets_mm(stack: Stack) -> np.ndarray:
    """(frames,) float64: places of the frames along their normal, ascending, LPS millimetres."""
    return np.array([frame.origin for frame in stack.frames]) @ stack.frames[0].direction[:, 0]


def sop_class_of(frame: Frame) -> str:
    """SOP Class UID of a frame's instance."""
    return str(dcmread(frame.instance.path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).SOPClassUID)


def _one_at_each_place(stack: Stack) -> Stack:
    """A stack with several frames at one place keeps the first: a segmentation needs the place, not the pixels."""
    steps = np.diff(offsets_mm(stack), prepend=-np.inf)
    return Stack(
        tuple(frame for frame, step in zip(stack.frames, steps, strict=True) if step > ROUNDING_MM), stack.label
    )


def _header(path: Path) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values
        header = dcmread(path, stop_before_pixels=True, force=True)
        for tag in list(header.keys()):
            try:
                _ = header[tag].value  # pydicom decodes a value when it is first looked at
            except UNREADABLE:
                del header[tag]
    return header
