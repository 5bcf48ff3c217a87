"""From frames to stacks that can be volumes: who belongs together, in which order, and on which grid.

A stack is a pile of parallel frames of one series, one for each place, at equal distances, straight above one another.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from clara_flow.operators.imaging.dicom_files import Frame
from clara_flow.operators.imaging.geometry import affine_lps

SPACING_TOLERANCE = 0.01
"""Share of the slice distance by which single distances may differ from it."""

ROUNDING_MM = 0.011
"""Distances may differ by this much in any case: scanners round positions to hundredths of a millimetre."""

SAME_DIRECTION = 1e-3
"""Frames are parallel when no component of their direction differs by more."""

SAME_SPACING = 1e-3
"""Share by which Pixel Spacing may differ between the frames of a stack."""

STRAIGHT_TOLERANCE_PIXELS = 0.5
"""Frames are straight above one another when none is shifted sideways by more: no voxel is misplaced by more."""


class StackUnusable(ValueError):
    """Why frames make no volume; the text is a clause for the user, without names or identifiers."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Frames in the order of their normal, one for each place.

    label   what tells it from the other stacks at the same place: {trait: value}; empty where nothing needs to.
    """

    frames: tuple[Frame, ...]
    label: dict[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        rows, columns = self.frames[0].shape
        return len(self.frames), rows, columns


def split_into_stacks(frames: Iterable[Frame]) -> list[Stack]:
    """Sort the frames of one series into stacks, by first instance number.

    Frames that differ in size, direction, pixel spacing or frame of reference never share a stack. Where several lie
    at one place, they are told apart by the fewest traits that do so (echo, temporal position ...). Where none does,
    the stack holds several frames at one place, which `grid_of` refuses.
    """
    stacks = [stack for group in _parallel(frames) for stack in _one_for_each_place(group)]
    return sorted(stacks, key=lambda stack: min(_number_and_name(frame) for frame in stack.frames))


def grid_of(stack: Stack) -> np.ndarray:
    """Where the stack's voxels lie: float64 (4, 4), (slice, row, column) index -> LPS millimetres.

    Raises StackUnusable with the reason where they lie on no rectangular grid: slices missing, twice there, at uneven
    distances, or shifted sideways (gantry tilt).
    """
    first = stack.frames[0]
    places = _along_normal(stack.frames)
    if len(places) == 1:
        if first.depth_mm is None:
            raise StackUnusable("it is a single slice that does not tell its thickness")
        spacing = first.depth_mm
    else:
        spacing = _spacing(places)
        _check_straight(stack)
    return affine_lps(first.origin, first.direction, (spacing, *first.pixel_mm))


def _spacing(places: np.ndarray) -> float:
    """Distance between slices; `places` (n,) ascending, in mm. Raises StackUnusable."""
    steps = np.diff(places)
    if twice := int((steps <= ROUNDING_MM).sum()):
        raise StackUnusable(
            f"{_slices(twice)} at a place where there is another, and nothing in the headers tells which of them "
            "belong together"
        )
    usual = float(np.median(steps))
    if (np.abs(steps - usual) <= _tolerance(usual)).all():
        mean = float(places[-1] - places[0]) / len(steps)
        if np.abs(places - (places[0] + mean * np.arange(len(places)))).max() <= mean / 2:
            return mean
    missing = np.rint(steps / usual).astype(int) - 1
    is_regular = (np.abs(steps - (missing + 1) * usual) <= (missing + 1) * _tolerance(usual)).all()
    if is_regular and 0 < missing.sum() <= len(places):
        gaps = [
            f"{missing[i]} between {places[i]:.1f} and {places[i + 1]:.1f} mm along the normal"
            for i in np.flatnonzero(missing)
        ]
        raise StackUnusable(f"{_slices(missing.sum())} missing: {_first_few(gaps)}")
    raise StackUnusable(f"the distance between its slices varies from {steps.min():.2f} to {steps.max():.2f} mm")


def _tolerance(spacing: float) -> float:
    return max(SPACING_TOLERANCE * spacing, ROUNDING_MM)


def _check_straight(stack: Stack) -> None:
    first = stack.frames[0]
    offsets = np.array([frame.origin for frame in stack.frames]) - first.origin
    along = offsets @ first.direction[:, 0]
    sideways = offsets - np.outer(along, first.direction[:, 0])
    shifts = np.linalg.norm(sideways, axis=1)
    if shifts.max() <= STRAIGHT_TOLERANCE_PIXELS * min(first.pixel_mm):
        return
    tilt = np.degrees(np.arctan2(shifts[-1], along[-1]))
    steady = np.outer(along / along[-1], sideways[-1])
    if np.abs(sideways - steady).max() <= STRAIGHT_TOLERANCE_PIXELS * min(first.pixel_mm):
        raise StackUnusable(
            f"its slices are tilted by {tilt:.1f} degrees against their stack (gantry tilt); volume files cannot say so"
        )
    raise StackUnusable(f"its slices do not lie straight above one another; some are {shifts.max():.1f} mm aside")


def _parallel(frames: Iterable[Frame]) -> list[list[Frame]]:
    """Groups of frames that may share a volume, each in the order of its normal."""
    groups: list[list[Frame]] = []
    for frame in frames:
        home = next((group for group in groups if _may_share(group[0], frame)), None)
        if home is None:
            groups.append([frame])
        else:
            home.append(frame)
    return [_sorted(group) for group in groups]


def _sorted(frames: list[Frame]) -> list[Frame]:
    keyed = zip(_along_normal(frames).tolist(), map(_number_and_name, frames), frames, strict=True)
    return [frame for _, _, frame in sorted(keyed, key=lambda key: key[:2])]


def _along_normal(frames: Sequence[Frame]) -> np.ndarray:
    """(n,) LPS millimetres. One normal for all: a tiny difference counts far from the origin."""
    return np.array([frame.origin for frame in frames]) @ frames[0].direction[:, 0]


def _may_share(one: Frame, other: Frame) -> bool:
    return (
        one.shape == other.shape
        and one.frame_of_reference_uid == other.frame_of_reference_uid
        and np.allclose(one.pixel_mm, other.pixel_mm, rtol=SAME_SPACING, atol=0)
        and bool(np.abs(one.direction - other.direction).max() <= SAME_DIRECTION)
    )


def _one_for_each_place(frames: list[Frame]) -> list[Stack]:
    """Split frames that lie several at one place by the fewest traits that leave one for each place."""
    most = max(Counter(_places(frames)).values())
    if most == 1:
        return [Stack(tuple(frames))]
    names = [name for name in frames[0].traits if len({_hashable(frame.traits.get(name)) for frame in frames}) > 1]
    for chosen in itertools.chain.from_iterable(itertools.combinations(names, count) for count in (1, 2, 3)):
        parts: dict[Hashable, list[Frame]] = defaultdict(list)
        for frame in frames:
            parts[tuple(_hashable(frame.traits.get(name)) for name in chosen)].append(frame)
        # More parts than frames at one place would tear a volume apart: the trait differs from slice to slice.
        if len(parts) == most and all(len(set(_places(part))) == len(part) for part in parts.values()):
            return [Stack(tuple(part), _label(part[0], chosen)) for part in parts.values()]
    return [Stack(tuple(frames))]


def _places(frames: Sequence[Frame]) -> list[int]:
    """A number for each place along the normal; `frames` are in its order."""
    return np.concatenate([[0], np.cumsum(np.diff(_along_normal(frames)) > ROUNDING_MM)]).astype(int).tolist()


def _label(frame: Frame, names: Sequence[str]) -> dict[str, str]:
    return {name: _word(frame.traits.get(name)) for name in names}


def _word(value: object) -> str:
    if isinstance(value, tuple):
        return "\\".join(_word(part) for part in value if part not in (None, ()))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _hashable(value: object) -> Hashable:
    return value if isinstance(value, Hashable) else repr(value)


def _number_and_name(frame: Frame) -> tuple[int, str, int]:
    return frame.instance.number, frame.instance.file, frame.index


def _slices(count: int) -> str:
    return "1 slice is" if count == 1 else f"{count} slices are"


def _first_few(texts: list[str]) -> str:
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more gaps" if len(texts) > 3 else "")
