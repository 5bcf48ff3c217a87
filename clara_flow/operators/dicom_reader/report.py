"""What the reader tells: which volumes it made of which files, and what it left out and why.

`reader-report.json` stays in the output folder for the steps that follow. It holds UIDs and file names, so it is a
patient's data like the volumes beside it; log lines and error messages are made of reasons alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from clara_flow.operators.imaging.dicom_files import LeftOut
from clara_flow.operators.sdk import replace_file

REPORT_NAME = "reader-report.json"
REPORT_VERSION = 1


@dataclass(frozen=True)
class Slice:
    """Where a slice of a volume comes from. `file` is relative to the input, `frame` counts from 1."""

    file: str
    frame: int
    sop_instance_uid: str


@dataclass(frozen=True)
class Converted:
    """One volume.

    file        name in the output folder.
    shape       (slices, rows, columns); spacing_mm along the same axes.
    affine_lps  4 rows of 4: (slice, row, column) index -> LPS millimetres.
    label       what tells it from the other volumes of its series: {trait: value}.
    slices      in the order of the volume's slices.
    """

    file: str
    series_uid: str
    study_uid: str
    frame_of_reference_uid: str
    modality: str
    dtype: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine_lps: tuple[tuple[float, ...], ...]
    label: dict[str, str]
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Refused:
    """A series, or a part of one, that made no volume. `reason` is a clause for the user, without identifiers."""

    series_uid: str
    modality: str
    slices: int
    reason: str

    def __str__(self) -> str:
        count = "1 slice" if self.slices == 1 else f"{self.slices} slices"
        return f"{self.modality or 'unknown modality'}, {count}: {self.reason}"


@dataclass(frozen=True)
class Report:
    """What was made of a study. `warnings` are sentences for the user, without names or identifiers."""

    series: tuple[Converted, ...]
    skipped_series: tuple[Refused, ...]
    skipped_files: tuple[LeftOut, ...]
    warnings: tuple[str, ...]

    def write(self, folder: Path) -> Path:
        """Write `reader-report.json`, whole or not at all; the same report gives the same bytes. Raises OSError."""
        target = folder / REPORT_NAME
        text = json.dumps({"version": REPORT_VERSION, **asdict(self)}, indent=1, ensure_ascii=False)
        replace_file(target, f"{text}\n".encode())
        return target


def count_reasons(files: Sequence[LeftOut]) -> list[str]:
    """One sentence for each reason, the most frequent first.

    >>> count_reasons([LeftOut("a", "not an image"), LeftOut("b", "not an image"), LeftOut("c", "not a DICOM file")])
    ['2 files left out: not an image', '1 file left out: not a DICOM file']
    """
    counted = Counter(file.reason for file in files).most_common()
    return [f"{count} {'file' if count == 1 else 'files'} left out: {reason}" for reason, count in counted]
