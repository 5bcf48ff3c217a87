"""Where voxels lie: affines in patient coordinates.

Everywhere in clara-flow an affine is float64 (4, 4) and maps a (slice, row, column) index, 0 at the CENTRE of the
first voxel, to LPS millimetres (DICOM PS3.3 C.7.6.2.1.1). NIfTI's affines are RAS and take (column, row, slice)
indices: only `nifti.py` knows them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

SAME_GRID_TOLERANCE_MM = 1e-3
"""Two grids are the same when no corner differs by more: NIfTI keeps its affine in float32, DICOM in 16 characters."""

ORTHOGONAL_TOLERANCE = 1e-3
"""Largest cosine between two axes that still counts as a right angle."""

_TOWARDS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}


class GeometryError(ValueError):
    """A grid that cannot be: singular, sheared where right angles are needed, or of an unknown orientation."""


def affine_lps(origin: ArrayLike, direction: ArrayLike, spacing_mm: ArrayLike) -> np.ndarray:
    """Build an affine from its parts.

    origin      (3,) LPS millimetres: centre of voxel (0, 0, 0).
    direction   (3, 3): COLUMNS are the unit vectors of the slice, row and column axis.
    spacing_mm  (3,): distance between voxel centres along slice, row and column axis.

    >>> affine_lps([0, 0, -5], [[0, 0, 1], [0, 1, 0], [1, 0, 0]], [3, 0.5, 0.5])[:3, 3].tolist()
    [0.0, 0.0, -5.0]
    """
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(direction, np.float64) * np.asarray(spacing_mm, np.float64)
    affine[:3, 3] = origin
    return affine


def check_affine(affine: ArrayLike) -> np.ndarray:
    """`affine` as a read-only float64 (4, 4). Raises GeometryError where it is not finite, not affine or singular."""
    checked = np.array(affine, dtype=np.float64)
    if checked.shape != (4, 4) or not np.isfinite(checked).all() or checked[3].tolist() != [0, 0, 0, 1]:
        raise GeometryError(f"not an affine of shape (4, 4) with a last row 0 0 0 1: {checked.tolist()}")
    lengths = np.linalg.norm(checked[:3, :3], axis=0)
    if (lengths == 0).any() or abs(np.linalg.det(checked[:3, :3] / lengths)) < ORTHOGONAL_TOLERANCE:
        raise GeometryError("the affine is singular: an axis has no length, or two axes are parallel")
    checked.setflags(write=False)
    return checked


def is_sheared(affine: np.ndarray) -> bool:
    """Whether two axes meet at another angle than 90 degrees (gantry tilt): MetaImage and NIfTI's qform cannot say so.

    >>> is_sheared(np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0.1, 0, 1, 0], [0, 0, 0, 1.0]]))
    True
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > ORTHOGONAL_TOLERANCE)


def corners_lps(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Centres of the eight corner voxels of a grid of `shape` (slices, rows, columns): float64 (8, 3), LPS mm."""
    indices = np.array(list(itertools.product(*((0, size - 1) for size in shape))), dtype=np.float64)
    return indices @ affine[:3, :3].T + affine[:3, 3]


def axis_codes(affine: np.ndarray) -> str:
    """Three letters: the patient direction (L, R, A, P, S, I) towards which the slice, row and column index grow.

    Oblique axes get the letter that they are nearest to; no two axes share one.

    >>> axis_codes(affine_lps([0, 0, 0], [[0, 0, 1], [0, 1, 0], [1, 0, 0]], [3, 0.5, 0.5]))
    'SPL'
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    order = max(itertools.permutations(range(3)), key=lambda p: sum(abs(axes[p[axis], axis]) for axis in range(3)))
    letters = ("LR", "PA", "SI")
    return "".join(letters[order[axis]][int(axes[order[axis], axis] < 0)] for axis in range(3))


def steps_between(codes: str, towards: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """How to turn axes that run `codes` into axes that run `towards` (see `axis_codes`).

    Returns (order, flips): new axis n is old axis order[n], reversed where flips[n]. Raises GeometryError where
    `towards` does not name each of the three patient axes once.

    >>> steps_between("SPL", "SAR")
    ((0, 1, 2), (False, True, True))
    """
    if any(letter not in _TOWARDS for letter in towards) or sorted(_TOWARDS[c][0] for c in towards) != [0, 1, 2]:
        raise GeometryError(f"{towards!r} is not an orientation: name each pair of LR, AP and SI once, such as 'SPL'")
    lines = [_TOWARDS[code] for code in codes]
    order = tuple(next(old for old in range(3) if lines[old][0] == _TOWARDS[letter][0]) for letter in towards)
    flips = tuple(lines[old][1] != _TOWARDS[letter][1] for old, letter in zip(order, towards, strict=True))
    return order, flips
