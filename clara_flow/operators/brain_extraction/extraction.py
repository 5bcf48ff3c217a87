"""From a T1-weighted head to a brain mask: deepbet's method (PyPI package deepbet 1.0.2), on numpy and onnxruntime.

Fisch et al., "deepbet: Fast brain extraction of T1-weighted MRI using Convolutional Neural Networks", Computers in
Biology and Medicine 2024. Two networks: one finds the brain's box in the whole head at 128 voxels a side, one
segments that box at 256 voxels a side. Voxels are picked, not interpolated, on the way in and out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from clara_flow.operators.imaging import Volume

BOX_SIDE = 128
"""Voxels a side of the network that finds the box."""
BRAIN_SIDE = 256
"""Voxels a side of the network that segments the brain."""
BOX_MARGIN = 0.1
"""Added to the box on each side, as a share of its size."""
BOX_FOREGROUND = 0.02
"""A plane with a smaller share of foreground lies outside the box."""
INTENSITY_QUANTILES = (0.005, 0.995)
"""Intensities between which the image is scaled, taken from the whole head."""
MEAN, DEVIATION = 0.449, 0.226
"""Intensities that the networks were trained on."""
THRESHOLD = 0.5
"""Probability above which a voxel is brain."""

Network = Callable[[np.ndarray], np.ndarray]
"""float32 (side, side, side) intensities -> float32 (side, side, side) probability of brain."""


class ExtractionError(ValueError):
    """No brain mask can be made of this volume; the message says why and what would do."""


def extract_brain(volume: Volume, box_network: Network, brain_network: Network) -> np.ndarray:
    """Mask of the brain on the volume's own grid.

    volume      a head, T1-weighted MR, any orientation and spacing.
    Returns uint8, the volume's shape (slice, row, column): 1 is brain, 0 is not.
    Raises ExtractionError where the volume is flat, constant, not real-valued, not finite or shows no brain.
    """
    image = _checked(volume)
    towards_ras = Volume(image, volume.affine_lps).reoriented("RAS")  # the orientation of the training images
    mask = _extract(towards_ras.array, box_network, brain_network)
    return np.ascontiguousarray(Volume(mask.view(np.uint8), towards_ras.affine_lps).reoriented(volume.axis_codes).array)


def _checked(volume: Volume) -> np.ndarray:
    """The voxels as float32."""
    array = volume.array
    if min(array.shape) < 2:
        raise ExtractionError(
            f"a 2-D image of shape {array.shape} (slice, row, column); brain extraction needs a volume"
        )
    if array.dtype.kind not in "iuf":
        raise ExtractionError(f"voxels of type {array.dtype}; brain extraction needs integers or real numbers")
    image = array.astype(np.float32)
    if not np.isfinite(image).all():
        raise ExtractionError("voxels that are not a number or infinite; mend the volume before brain extraction")
    if image.min() == image.max():
        raise ExtractionError("every voxel has the same value; there is no image in this volume")
    return image


def _extract(image: np.ndarray, box_network: Network, brain_network: Network) -> np.ndarray:
    """bool mask of a float32 image, both (left to right, posterior to anterior, inferior to superior)."""
    whole = resample(image, (BOX_SIDE,) * 3)
    low, high = np.quantile(whole, INTENSITY_QUANTILES)
    if low == high:
        raise ExtractionError("almost every voxel has the same value; there is no head in this volume")
    foreground = largest_component(box_network(normalise(whole, low, high)) > THRESHOLD)
    box = brain_box(foreground, image.shape)
    part = normalise(resample(image[box], (BRAIN_SIDE,) * 3), low, high)
    found = resample(brain_network(part), image[box].shape) > THRESHOLD
    mask = np.zeros(image.shape, bool)
    mask[box] = fill_voids(largest_component(found))
    return mask


def resample(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Pick for each new voxel the old one in which its centre lies (torch's `nearest-exact`, its float32 steps too).

    >>> resample(np.arange(6.0), (3,)).tolist()
    [1.0, 3.0, 5.0]
    """
    picks = []
    for old, new in zip(image.shape, shape, strict=True):
        step = float(np.float32(old) / np.float32(new))
        picks.append(np.minimum(((np.arange(new) + 0.5) * step).astype(np.float32).astype(np.intp), old - 1))
    return image[np.ix_(*picks)]


def normalise(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """float32: cut to `low` .. `high`, then moved to the mean and deviation that the networks know.

    Raises ExtractionError where nothing but one value is left.
    """
    scaled = np.clip((image - np.float32(low)) / np.float32(high - low), 0, 1)
    deviation = scaled.std(dtype=np.float64, ddof=1)
    if deviation == 0:
        raise ExtractionError("the region of the brain has one value only; there is no brain in this volume")
    standard = (scaled - np.float32(scaled.mean(dtype=np.float64))) / np.float32(deviation)
    return np.asarray(np.float32(DEVIATION) * standard + np.float32(MEAN))


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest of a bool mask's parts; voxels that share a corner belong together.

    Raises ExtractionError for an empty mask.
    """
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if count == 0:
        raise ExtractionError("no brain found; is this a T1-weighted MR of a whole head?")
    largest = int(np.bincount(labels.ravel())[1:].argmax()) + 1
    return np.asarray(labels == largest)


def fill_voids(mask: np.ndarray) -> np.ndarray:
    """A bool mask with its closed cavities filled: background that no path through faces joins to the border."""
    labels, count = ndimage.label(~mask)
    open_labels = np.zeros(count + 1, bool)
    for axis in range(mask.ndim):
        for side in (0, -1):
            open_labels[np.unique(labels.take(side, axis))] = True
    return np.asarray(mask | ~open_labels[labels])


def brain_box(foreground: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The box of a small mask with its margin, on the whole image's grid.

    foreground  bool, BOX_SIDE voxels a side.
    shape       of the whole image.
    Raises ExtractionError where no plane of an axis has enough foreground.
    """
    box = []
    for axis, size in enumerate(shape):
        others = tuple(other for other in range(3) if other != axis)
        planes = np.flatnonzero(foreground.mean(others) > BOX_FOREGROUND)
        if not planes.size:
            raise ExtractionError("too little brain found to place a box; is this a T1-weighted MR of a whole head?")
        first, end = int(planes[0]), int(planes[-1]) + 1
        scale = np.float32(size) / np.float32(foreground.shape[axis])
        centre = np.round(scale * np.float32((first + end) / 2))
        length = np.round(np.float32(1 + 2 * BOX_MARGIN) * (scale * np.float32(end - first)))
        box.append(slice(max(0, int(centre - length / 2)), min(size, int(centre + length / 2))))
    return tuple(box)
