"""Attributes of received files as metadata of their job, where an administrator asks for it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import pydicom

from clara_flow.services.dicom.grouping.processors import parse_tag

log = logging.getLogger(__name__)

LONGEST_VALUE = 256


def tags_of(paths: Iterable[Path], tags: Sequence[str]) -> dict[str, str]:
    """All values of some attributes over files, as Clara writes them (specification of the DICOM adapter, 4.4).

    One value has the key `GGGGEEEE`, several have `GGGGEEEE-0`, `-1` ... in the order of their coming; blank ones are
    left out, long ones cut. A file that cannot be read adds nothing. Raises ValueError for what is no tag.
    """
    wanted = [int(parse_tag(tag), 16) for tag in tags]
    values: dict[int, dict[str, None]] = {tag: {} for tag in wanted}
    for path in paths:
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(wanted))
            for tag in wanted:
                if tag in header and (text := str(header[tag].value).strip()):
                    values[tag].setdefault(text[:LONGEST_VALUE])
        except Exception as error:  # noqa: BLE001  pydicom raises whatever a broken file makes of it
            log.warning("a file's attributes are not among its job's metadata: %s", type(error).__name__)
    found: dict[str, str] = {}
    for tag, texts in values.items():
        for number, text in enumerate(texts):
            found[f"{tag:08X}-{number}" if len(texts) > 1 else f"{tag:08X}"] = text
    return found
