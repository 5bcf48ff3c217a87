"""A mask on the frames of a stack, voxel by voxel, whatever the order and direction in which either is stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clara_flow.operators.dicom_seg_writer.source import SourceFrame, Stack
from clara_flow.operators.imaging import Volume

SAME_GRID_TOLERANCE_VOXELS = 0.1
"""Frames that lie nearer to the mask's planes are those planes; DICOM and volume files round differently."""

_NO_EFFECT_VOXELS = 1e-3  # an index that changes less along a whole row is constant
_BEYOND_VOXELS = (0.25, 1.0)  # how far a mask's voxel may lie beyond the frames: along their normal, within their plane
_CHUNK = 1_000_000


@dataclass(frozen=True, eq=False)
class Fit:
    """A mask as the frames of a stack show it.

    labels          {index of a frame in the stack: (rows, columns) of the mask's dtype}; only frames with labels.
    same_grid       pixels of the frames are voxels of the mask, one for one: nothing was resampled.
    uncovered       share of the mask's non-zero voxels that no frame shows, 0..1.
    """

    stack: Stack
    labels: dict[int, np.ndarray]
    same_grid: bool
    uncovered: float


def fit(mask: Volume, stack: Stack) -> Fit:
    """The label that the mask has nearest to each pixel, 0 outside the mask."""
    to_index = np.linalg.inv(mask.affine_lps)
    labels: dict[int, np.ndarray] = {}
    deviation = 0.0
    for number, frame in enumerate(stack.frames):
        found, apart = _labels_of(frame, mask, to_index)
        deviation = max(deviation, apart)
        if found is not None and found.any():
            labels[number] = found
    wanted = int(np.count_nonzero(mask.array))
    shown = sum(int(np.count_nonzero(found)) for found in labels.values())
    if deviation <= SAME_GRID_TOLERANCE_VOXELS:
        return Fit(stack, labels, True, 1 - shown / wanted if wanted else 0.0)  # each frame is another plane
    return Fit(stack, labels, False, _uncovered(mask, stack))


def _labels_of(frame: SourceFrame, mask: Volume, to_index: np.ndarray) -> tuple[np.ndarray | None, float]:
    """Labels (rows, columns), None outside the mask; and how far, in voxels, the frame lies from the mask's grid.

    A pixel's index in the mask is start + row * down + column * right. On the same grid start is whole, and down and
    right are steps to a neighbour.
    """
    start = to_index[:3, :3] @ frame.origin + to_index[:3, 3]
    down, right = to_index[:3, :3] @ frame.row_step, to_index[:3, :3] @ frame.column_step
    rows, columns = frame.shape
    nearest, inside = [], np.ones((1, 1), bool)
    for axis, size in enumerate(mask.shape):
        at = np.full((1, 1), start[axis])
        if abs(down[axis]) * (rows - 1) > _NO_EFFECT_VOXELS:
            at = at + (np.arange(rows) * down[axis])[:, None]
        if abs(right[axis]) * (columns - 1) > _NO_EFFECT_VOXELS:
            at = at + (np.arange(columns) * right[axis])[None, :]
        index = np.floor(at + 0.5).astype(np.intp)
        inside = inside & (index >= 0) & (index < size)
        nearest.append(np.clip(index, 0, size - 1))
    if not inside.any():
        return None, 0.0
    apart = _distance_to_grid(start, down, right, frame.shape)
    labels = mask.array[nearest[0], nearest[1], nearest[2]]
    return np.where(inside, np.broadcast_to(labels, frame.shape), mask.array.dtype.type(0)), apart


def _distance_to_grid(start: np.ndarray, down: np.ndarray, right: np.ndarray, shape: tuple[int, int]) -> float:
    """Largest distance, in voxels along an axis, between a corner and the whole index it should have."""
    steps = [np.sign(step) * (np.abs(step) > 0.5) for step in (down, right)]
    if any(np.abs(step).sum() != 1 for step in steps) or np.array_equal(np.abs(steps[0]), np.abs(steps[1])):
        return np.inf
    first = np.floor(start + 0.5)
    corners = [(row, column) for row in (0, shape[0] - 1) for column in (0, shape[1] - 1)]
    return max(
        float(np.abs(start + row * down + column * right - first - row * steps[0] - column * steps[1]).max())
        for row, column in corners
    )


def _uncovered(mask: Volume, stack: Stack) -> float:
    """Share of the mask's non-zero voxels whose centre lies in no frame's slab."""
    indices = np.argwhere(mask.array)
    if indices.size == 0:
        return 0.0
    first = stack.frames[0]
    normal, offsets = first.normal, stack.offsets_mm
    origins = np.array([frame.origin for frame in stack.frames])
    voxel_mm = float(np.abs(normal @ mask.affine_lps[:3, :3]).max())
    slab_mm = (stack.spacing_mm or voxel_mm) / 2 + _BEYOND_VOXELS[0] * voxel_mm
    covered = 0
    for begin in range(0, len(indices), _CHUNK):
        places = mask.position_mm(indices[begin : begin + _CHUNK])
        along = places @ normal
        nearest = np.clip(np.searchsorted(offsets, along), 1, max(len(offsets) - 1, 1)) if len(offsets) > 1 else 0
        if len(offsets) > 1:
            nearest = np.where(along - offsets[nearest - 1] < offsets[nearest] - along, nearest - 1, nearest)
        inside = np.abs(along - offsets[nearest]) <= slab_mm
        for step, size in zip((first.row_step, first.column_step), first.shape, strict=True):
            pixel = (places - origins[nearest]) @ step / (step @ step)
            beyond = 0.5 + _BEYOND_VOXELS[1] * float(mask.spacing_mm.max()) / float(np.linalg.norm(step))
            inside &= (pixel >= -beyond) & (pixel <= size - 1 + beyond)
        covered += int(np.count_nonzero(inside))
    return 1 - covered / len(indices)
