"""The voxels of a stack: decoded slice by slice into one array, as real values."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from clara_flow.operators.imaging.dicom_files import Frame


class PixelsUnreadable(ValueError):
    """Frames whose pixel data cannot be read.

    reasons     {file: why}, each a clause without the file's name.
    """

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(f"the pixel data of {len(reasons)} files cannot be read")
        self.reasons = reasons


def read_voxels(frames: Sequence[Frame]) -> np.ndarray:
    """The frames' real values (stored value x slope + intercept, each frame with its own), (slices, rows, columns).

    int16 where all values fit, else int32; float32 where a slope or intercept is no whole number, or values do not fit
    int32. MONOCHROME1 is not inverted: it tells how to show values, not what they are (PS3.3 C.7.6.3.1.2).
    Raises PixelsUnreadable naming the files with a fault, before anything is decoded, or those that do not decode.
    """
    if faults := {frame.instance.file: frame.instance.fault for frame in frames if frame.instance.fault}:
        raise PixelsUnreadable(faults)
    is_whole = all(float(value).is_integer() for frame in frames for value in frame.rescale)
    voxels = np.empty((len(frames), *frames[0].shape), np.int16 if is_whole else np.float32)
    reasons: dict[str, str] = {}
    by_file = sorted(range(len(frames)), key=lambda place: (frames[place].instance.file, frames[place].index))
    for file, group in itertools.groupby(by_file, key=lambda place: frames[place].instance.file):
        places = list(group)
        try:
            for place, stored in zip(places, _decode([frames[place] for place in places]), strict=True):
                values = _rescale(stored, frames[place].rescale)
                voxels = _widened_for(voxels, values)
                voxels[place] = values
        except Exception as problem:  # noqa: BLE001 - decoders raise anything at all on broken data
            reasons[file] = f"its pixel data cannot be decoded ({type(problem).__name__})"
    if reasons:
        raise PixelsUnreadable(reasons)
    return voxels


def _decode(frames: Sequence[Frame]) -> Iterator[np.ndarray]:
    """Stored values of frames of one file, (rows, columns) each."""
    instance = frames[0].instance
    indices = [frame.index for frame in frames]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values
        for stored in iter_pixels(
            _source(instance.path, instance.transfer_syntax),
            indices=indices,
            raw=True,
            transfer_syntax_uid=instance.transfer_syntax,
        ):
            if stored.shape != frames[0].shape:
                raise ValueError("another size than the header tells")
            yield stored


def _source(path: Path, syntax: UID) -> Path | Dataset:
    """From a path, pydicom reads one frame at a time; it cannot where the whole file is deflated."""
    return dcmread(path) if syntax == DeflatedExplicitVRLittleEndian else path


def _rescale(stored: np.ndarray, rescale: tuple[float, float]) -> np.ndarray:
    slope, intercept = rescale
    if rescale == (1.0, 0.0):
        return stored
    if slope.is_integer() and intercept.is_integer():
        return stored.astype(np.int64) * int(slope) + int(intercept)
    return stored.astype(np.float64) * slope + intercept


def _widened_for(voxels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`voxels`, or a copy of a wider dtype where `values` do not fit: the narrow one is right for almost all."""
    if voxels.dtype == np.float32:
        return voxels
    low, high = int(values.min()), int(values.max())
    for dtype in (np.dtype(np.int16), np.dtype(np.int32)):
        if dtype.itemsize >= voxels.dtype.itemsize and np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return voxels.astype(dtype, copy=False)
    return voxels.astype(np.float32)
