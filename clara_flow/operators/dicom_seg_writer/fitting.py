"""A mask on the frames of a stack, voxel by voxel, whatever the order and direction in which either is stored."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from clara_flow.operators.dicom_seg_writer.source import offsets_mm, spacing_mm
from clara_flow.operators.imaging import Volume
from clara_flow.operators.imaging.dicom_files import Frame
from clara_flow.operators.imaging.dicom_stacks import Stack

OWN_GRID_TOLERANCE_VOXELS = 0.55
"""The DICOM Reader lays its grid through frames that stray from it by up to half a voxel."""

SAME_GRID_TOLERANCE_VOXELS = 0.1
"""Frames that lie nearer to some of a mask's planes are those planes."""

_NO_EFFECT_VOXELS = 1e-3  # an index that changes less along a whole row is constant
_BEYOND_VOXELS = (0.25, 1.0)  # how far a mask's voxel may lie beyond the frames: along their normal, within their plane


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
    """The mask's voxels reordered, where it is on the stack's own grid; else the label nearest to each pixel."""
    reordered = _on_own_grid(mask, stack)
    if reordered is not None:
        return Fit(stack, {index: plane for index, plane in enumerate(reordered) if plane.any()}, True, 0.0)
    to_index = np.linalg.inv(mask.affine_lps)
    labels: dict[int, np.ndarray] = {}
    apart = 0.0
    for index, frame in enumerate(stack.frames):
        found, frame_apart = _nearest_labels(frame, mask, to_index)
        apart = max(apart, frame_apart)
        if found is not None and found.any():
            labels[index] = found
    if apart > SAME_GRID_TOLERANCE_VOXELS:
        return Fit(stack, labels, False, _uncovered(mask, stack))
    wanted = int(np.count_nonzero(mask.array))
    shown = sum(int(np.count_nonzero(found)) for found in labels.values())
    return Fit(stack, labels, True, 1 - shown / wanted if wanted else 0.0)  # each frame is another plane of the mask


def _on_own_grid(mask: Volume, stack: Stack) -> np.ndarray | None:
    """The mask as (frame, row, column) where it has a voxel for every pixel of every frame and no other, else None."""
    frames, first = stack.frames, stack.frames[0]
    to_index = np.linalg.inv(mask.affine_lps)
    depth = (spacing_mm(stack) or 1.0) * first.direction[:, 0]
    steps = to_index[:3, :3] @ np.stack([depth, *_steps(first)], axis=1)  # columns: one frame, row, column onwards
    axes = np.abs(steps).argmax(axis=0)
    if sorted(axes.tolist()) != [0, 1, 2]:
        return None
    flips = steps[axes, range(3)] < 0
    array = mask.array.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    if array.shape != (len(frames), *first.shape):
        return None
    corners = list(itertools.product((0, first.shape[0] - 1), (0, first.shape[1] - 1)))
    for number, frame in enumerate(frames):
        down, right = _steps(frame)
        places = np.array([frame.origin + row * down + column * right for row, column in corners])
        is_at = (places @ to_index[:3, :3].T + to_index[:3, 3])[:, axes]
        is_at = np.where(flips, np.array(array.shape) - 1 - is_at, is_at)
        should_be = np.array([(number, row, column) for row, column in corners])
        if np.abs(is_at - should_be).max() > OWN_GRID_TOLERANCE_VOXELS:
            return None
    return array


def _steps(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """(3,) LPS millimetres each: from one row to the next, from one column to the next."""
    return frame.direction[:, 1] * frame.pixel_mm[0], frame.direction[:, 2] * frame.pixel_mm[1]


def _nearest_labels(frame: Frame, mask: Volume, to_index: np.ndarray) -> tuple[np.ndarray | None, float]:
    """Labels (rows, columns), None outside the mask; and how far, in voxels, the frame lies from the mask's grid.

    A pixel's index in the mask is start + row * down + column * right. On the same grid start is whole, and down and
    right are steps to a neighbour.
    """
    start = to_index[:3, :3] @ frame.origin + to_index[:3, 3]
    down, right = (to_index[:3, :3] @ step for step in _steps(frame))
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
    labels = np.broadcast_to(mask.array[nearest[0], nearest[1], nearest[2]], frame.shape)
    return np.where(inside, labels, mask.array.dtype.type(0)), _distance_to_grid(start, down, right, frame.shape)


def _distance_to_grid(start: np.ndarray, down: np.ndarray, right: np.ndarray, shape: tuple[int, int]) -> float:
    """Largest distance, in voxels along an axis, between a corner and the whole index it should have."""
    steps = [np.sign(step) * (np.abs(step) > 0.5) for step in (down, right)]
    if any(np.abs(step).sum() != 1 for step in steps) or np.array_equal(np.abs(steps[0]), np.abs(steps[1])):
        return np.inf
    first = np.floor(start + 0.5)
    return max(
        float(np.abs(start + row * down + column * right - first - row * steps[0] - column * steps[1]).max())
        for row, column in itertools.product((0, shape[0] - 1), (0, shape[1] - 1))
    )


def _uncovered(mask: Volume, stack: Stack) -> float:
    """Share of the mask's non-zero voxels whose centre lies in no frame's slab."""
    first, offsets = stack.frames[0], offsets_mm(stack)
    origins = np.array([frame.origin for frame in stack.frames])
    normal, in_plane = first.direction[:, 0], [step / (step @ step) for step in _steps(first)]
    voxel_mm = float(np.abs(normal @ mask.affine_lps[:3, :3]).max())
    slab_mm = (spacing_mm(stack) or voxel_mm) / 2 + _BEYOND_VOXELS[0] * voxel_mm
    beyond = 0.5 + _BEYOND_VOXELS[1] * float(mask.spacing_mm.max()) / np.array(first.pixel_mm)
    wanted = covered = 0
    for number, plane in enumerate(mask.array):
        rows, columns = np.nonzero(plane)
        if rows.size == 0:
            continue
        depth = _along(normal, mask, number, rows, columns)
        upper = np.clip(np.searchsorted(offsets, depth), 0, len(offsets) - 1)
        lower = np.maximum(upper - 1, 0)
        nearest = np.where(np.abs(depth - offsets[lower]) < np.abs(depth - offsets[upper]), lower, upper)
        inside = np.abs(depth - offsets[nearest]) <= slab_mm
        for axis, size, reach in zip(in_plane, first.shape, beyond, strict=True):
            pixel = _along(axis, mask, number, rows, columns) - (origins @ axis)[nearest]
            inside &= (pixel >= -reach) & (pixel <= size - 1 + reach)
        wanted += rows.size
        covered += int(np.count_nonzero(inside))
    return 1 - covered / wanted if wanted else 0.0


def _along(axis: np.ndarray, mask: Volume, number: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(voxels,): places of voxels of slice `number` along `axis`, a (3,) vector in patient coordinates."""
    slice_step, row_step, column_step, start = axis @ mask.affine_lps[:3]
    return np.asarray(start + slice_step * number + row_step * rows + column_step * columns)
