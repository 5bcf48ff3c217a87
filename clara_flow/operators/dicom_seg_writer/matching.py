"""Which series a mask was made from: by its file name, by what earlier steps wrote down, or by where it lies."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clara_flow.operators.dicom_seg_writer.fitting import Fit, fit
from clara_flow.operators.dicom_seg_writer.source import Series, Study
from clara_flow.operators.imaging import Volume, volume_suffix

HINT_FILES = ("selected-images.json", "reader-report.json", "series-images.json")

RESAMPLED_LOSS = 0.01
"""Share of a mask on another grid that may lie beyond the frames: its border voxels reach out by a part of a voxel."""

_UID = re.compile(r"[0-2](\.(0|[1-9]\d*)){2,}")


class NoSource(ValueError):
    """No series of the originals is the source of a mask, or several could be, or the source lacks slices."""


@dataclass(frozen=True)
class Hints:
    """What earlier steps wrote down.

    series_of       {name of a volume file without its ending: Series Instance UID}.
    instances_of    {the same: SOP Instance UIDs that the volume was made of}; only what the DICOM Reader reports.
    """

    series_of: dict[str, str]
    instances_of: dict[str, frozenset[str]]

    @property
    def only_series(self) -> str | None:
        """The series, where they name but one."""
        named = set(self.series_of.values())
        return named.pop() if len(named) == 1 else None


@dataclass(frozen=True, eq=False)
class Source:
    """The series of a mask and the mask on its frames. `found_by` is `file name`, `hint file` or `geometry`."""

    series: Series
    fit: Fit
    found_by: str


def stem(name: str) -> str:
    """A file name without folder and volume ending.

    >>> stem("a/1.2.840.nii.gz"), stem("1.2.840.mhd")
    ('1.2.840', '1.2.840')
    """
    base = Path(name).name
    return base[: -len(volume_suffix(Path(base)) or "")] if volume_suffix(Path(base)) else base


def read_hints(folders: Iterable[Path]) -> Hints:
    """The hint files in these folders; the first word on a volume counts. A file that is no JSON says nothing.

    Besides the documented forms, `{series: file}` and `{series: [files]}` are understood.
    """
    series_of: dict[str, str] = {}
    instances_of: dict[str, frozenset[str]] = {}
    for folder in folders:
        for path in (folder / name for name in HINT_FILES):
            try:
                document = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            for series, file, instances in _volumes(document):
                if stem(file) not in series_of:
                    series_of[stem(file)] = series
                    instances_of[stem(file)] = instances
    return Hints(series_of, instances_of)


def find_source(name: str, mask: Volume, study: Study, hints: Hints) -> Source:
    """The series of a mask, and the mask on its frames.

    name    the mask's file name.
    Raises NoSource.
    """
    if not study.series:
        raise NoSource("the originals hold no image with a place in the patient; is the study mapped to this operator?")
    uid, found_by = _named(name, study, hints)
    if uid:
        fits = [(study.series[uid], _best_fit(mask, study.series[uid], stem(name), hints))]
    else:
        fits = [(series, _best_fit(mask, series, stem(name), hints)) for series in study.series.values()]
        found_by = "geometry"
        whole = [(series, found) for series, found in fits if _is_whole(found)]
        same = [(series, found) for series, found in whole if found.same_grid]
        if not whole:
            raise NoSource(
                f"none of the {len(fits)} series of the originals matches the mask: its name names none, and it lies "
                "where they have no slices. Is this the study that the mask was made from?"
            )
        fits = same or whole
        if len(fits) > 1:
            raise NoSource(
                f"{len(fits)} series of the originals have slices where the mask lies, and its name names none of "
                "them; keep the reader's file name, or hand on its selected-images.json"
            )
    series, found = fits[0]
    if not _is_whole(found):
        raise NoSource(
            f"{found.uncovered:.1%} of the mask lies where its series has no slice; "
            "are originals missing or truncated, or is this another study?"
        )
    return Source(series, found, found_by)


def _named(name: str, study: Study, hints: Hints) -> tuple[str | None, str]:
    """A series of the study that the file's name or a hint names. A name may go on after the UID: `<uid>-2`."""
    own = stem(name)
    starts = [uid for uid in study.series if own == uid or re.match(re.escape(uid) + r"[^0-9.]", own)]
    if starts:
        return max(starts, key=len), "file name"
    for uid in (hints.series_of.get(own), hints.only_series):
        if uid in study.series:
            return uid, "hint file"
    return None, ""


def _best_fit(mask: Volume, series: Series, own: str, hints: Hints) -> Fit:
    """The fit to the stack that shows most of the mask, without resampling where that can be.

    Stacks at the same places (echoes) fit alike: the reader's report tells which is meant, else the number at the end
    of the mask's name, which the reader counts from 1.
    """
    probe = mask if mask.array.any() else mask.with_array(np.ones(mask.shape, np.uint8))  # an empty mask fits anything
    fits = [fit(probe, stack) for stack in series.stacks]
    best = min(fits, key=lambda found: (not _is_whole(found), not found.same_grid, found.uncovered))
    alike = [found for found in fits if (_is_whole(found), found.same_grid) == (_is_whole(best), best.same_grid)]
    if len(alike) > 1 and _is_whole(best):
        made_of = hints.instances_of.get(own, frozenset())
        meant = [found for found in alike if made_of and made_of <= _instances(found)]
        number = re.search(r"-([1-9]\d*)$", own)
        if meant:
            best = meant[0]
        elif number and int(number[1]) <= len(series.stacks) and fits[int(number[1]) - 1] in alike:
            best = fits[int(number[1]) - 1]
    return best if probe is mask else Fit(best.stack, {}, best.same_grid, best.uncovered)


def _instances(found: Fit) -> frozenset[str]:
    return frozenset(frame.instance.sop_instance_uid for frame in found.stack.frames)


def _is_whole(found: Fit) -> bool:
    return found.uncovered <= (0 if found.same_grid else RESAMPLED_LOSS)


def _volumes(node: Any) -> Iterator[tuple[str, str, frozenset[str]]]:
    """(series, volume file, its SOP Instance UIDs) wherever an object of a hint file names series and file."""
    if isinstance(node, list):
        for item in node:
            yield from _volumes(item)
    if not isinstance(node, dict):
        return
    series = next((v for k, v in node.items() if _is_series(k) and isinstance(v, str) and _UID.fullmatch(v)), None)
    slices = node.get("slices")
    instances = frozenset(
        str(item.get("sop_instance_uid"))
        for item in (slices if isinstance(slices, list) else [])
        if isinstance(item, dict)
    )
    for key, value in node.items():
        owner = key if _UID.fullmatch(key) else series
        for text in value if isinstance(value, list) else [value]:
            if owner and isinstance(text, str) and volume_suffix(Path(text)):
                yield owner, text, instances
        yield from _volumes(value)


def _is_series(key: str) -> bool:
    return key.casefold().replace("_", "") in ("series", "seriesuid", "seriesinstanceuid")
