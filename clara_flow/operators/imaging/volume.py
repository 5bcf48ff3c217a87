"""A volume: voxels and where they lie in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clara_flow.operators.imaging.geometry import (
    SAME_GRID_TOLERANCE_MM,
    GeometryError,
    axis_codes,
    check_affine,
    corners_lps,
    is_sheared,
    steps_between,
)


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels on a grid.

    array       (slices, rows, columns), any real dtype.
    affine_lps  float64 (4, 4), read-only: (slice, row, column) index -> LPS millimetres; index 0 is the CENTRE of
                the first voxel. Not NIfTI's affine, which is RAS and takes (column, row, slice).
    Raises GeometryError where the array has not three axes or the affine is singular.

    >>> volume = Volume(np.zeros((3, 5, 4), np.int16), np.diag([2.0, 0.5, 0.5, 1.0]))
    >>> volume.spacing_mm.tolist(), volume.position_mm([1, 0, 2]).tolist()
    ([2.0, 0.5, 0.5], [2.0, 0.0, 1.0])
    """

    array: np.ndarray
    affine_lps: np.ndarray

    def __post_init__(self) -> None:
        if self.array.ndim != 3 or 0 in self.array.shape:
            raise GeometryError(f"a volume has (slices, rows, columns), not the shape {self.array.shape}")
        object.__setattr__(self, "affine_lps", check_affine(self.affine_lps))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        slices, rows, columns = self.array.shape
        return slices, rows, columns

    @property
    def spacing_mm(self) -> np.ndarray:
        """float64 (3,): distance between voxel centres along the slice, row and column axis."""
        return np.linalg.norm(self.affine_lps[:3, :3], axis=0)

    @property
    def direction(self) -> np.ndarray:
        """float64 (3, 3): columns are the LPS unit vectors of the slice, row and column axis."""
        return self.affine_lps[:3, :3] / self.spacing_mm

    @property
    def origin(self) -> np.ndarray:
        """float64 (3,), LPS millimetres: centre of voxel (0, 0, 0)."""
        return self.affine_lps[:3, 3]

    @property
    def axis_codes(self) -> str:
        """The patient directions towards which slice, row and column index grow; 'SPL' is an axial DICOM series."""
        return axis_codes(self.affine_lps)

    @property
    def is_sheared(self) -> bool:
        """Whether the axes do not meet at right angles, as under gantry tilt."""
        return is_sheared(self.affine_lps)

    def position_mm(self, index: np.typing.ArrayLike) -> np.ndarray:
        """LPS millimetres of (slice, row, column) indices: (3,) -> (3,) or (n, 3) -> (n, 3), float64."""
        return np.asarray(index, np.float64) @ self.affine_lps[:3, :3].T + self.affine_lps[:3, 3]

    def index_at(self, position_mm: np.typing.ArrayLike) -> np.ndarray:
        """Fractional (slice, row, column) indices of LPS millimetres: (3,) -> (3,) or (n, 3) -> (n, 3), float64."""
        offset = np.asarray(position_mm, np.float64) - self.affine_lps[:3, 3]
        return offset @ np.linalg.inv(self.affine_lps[:3, :3]).T

    def with_array(self, array: np.ndarray) -> Volume:
        """The same grid with other voxels. Raises GeometryError where the shape differs."""
        if array.shape != self.array.shape:
            raise GeometryError(f"an array of shape {array.shape} does not fit a grid of {self.array.shape}")
        return Volume(array, self.affine_lps)

    def same_grid(self, other: Volume, *, tolerance_mm: float = SAME_GRID_TOLERANCE_MM) -> bool:
        """Whether each voxel of one lies where the other's voxel of the same index lies."""
        if self.shape != other.shape:
            return False
        apart = corners_lps(self.shape, self.affine_lps) - corners_lps(other.shape, other.affine_lps)
        return bool(np.linalg.norm(apart, axis=1).max() <= tolerance_mm)

    def reoriented(self, towards: str) -> Volume:
        """The same voxels at the same places, axes swapped and reversed so that indices grow `towards` (no resampling).

        towards     three letters for slice, row and column axis, such as 'SPL' (axial DICOM) or 'SAR' (NIfTI's RAS
                    seen from the slice axis). Oblique grids stay oblique: each axis goes where it is nearest to.
        The array is a view. `volume.reoriented(x).reoriented(volume.axis_codes)` is the volume again.
        Raises GeometryError for letters that do not name each patient axis once.

        >>> Volume(np.zeros((3, 5, 4)), np.diag([1.0, 1, 1, 1])).reoriented("SPL").shape
        (4, 5, 3)
        """
        order, flips = steps_between(self.axis_codes, towards)
        affine = np.eye(4)
        affine[:3, 3] = self.origin
        for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
            step = self.affine_lps[:3, old]
            affine[:3, new] = -step if flip else step
            if flip:
                affine[:3, 3] += step * (self.array.shape[old] - 1)
        array = self.array.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
        return Volume(array, affine)
