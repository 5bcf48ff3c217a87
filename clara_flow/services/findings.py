"""What a check of the doctor finds, and in which words it tells sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is; a problem prevents the main job."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    text        what there is, with numbers.
    remedy      what mends it; "" where nothing needs to be mended.
    """

    check: str
    level: Level
    text: str
    remedy: str = ""


Findings = Iterator[Finding]


def size(size_bytes: int) -> str:
    """For people.

    >>> size(3 * 2**29)
    '1.5 GiB'
    """
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"
