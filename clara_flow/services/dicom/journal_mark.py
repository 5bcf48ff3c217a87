"""How far listeners have written, and whether that is in the tables: what was acknowledged before, is there then."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa

from clara_flow.records import dicom_ingest
from clara_flow.services.dicom.journal import JOURNALS, SUFFIX


def journal_mark(spool: Path) -> dict[str, int]:
    """The size in bytes of every journal of a spool as it is now, by name."""
    sizes = {}
    for path in (spool / JOURNALS).glob(f"[!.]*{SUFFIX}"):
        with suppress(FileNotFoundError):  # read, and removed
            sizes[path.name] = path.stat().st_size
    return sizes


def is_read(engine: sa.Engine, spool: Path, mark: Mapping[str, int]) -> bool:
    """Whether the tables know what stands in the journals up to there."""
    offsets = dicom_ingest.offsets(engine)
    folder = spool / JOURNALS
    return all(offsets.get(name, 0) >= size or not (folder / name).exists() for name, size in mark.items())
