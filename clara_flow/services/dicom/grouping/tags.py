"""Attributes of received files as metadata of their job, where an administrator asks for it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from clara_flow.errors import SettingsError
from clara_flow.services.dicom.grouping.processors import parse_tag
from clara_flow.services.dicom.reading import read_header
from clara_flow.settings import Settings

log = logging.getLogger(__name__)

LONGEST_VALUE = 256


def wanted_tags(settings: Settings) -> tuple[int, ...]:
    """The attributes that become metadata; none where that is off. Raises SettingsError for what is no tag."""
    found = []
    for text in settings.dicom_metadata_tags if settings.dicom_metadata else ():
        try:
            found.append(int(parse_tag(text), 16))
        except ValueError as error:
            raise SettingsError(f"dicom_metadata_tags: {text!r} {error}") from None
    return tuple(found)


def tags_of(paths: Iterable[Path], tags: Sequence[int]) -> dict[str, str]:
    """All values of some attributes over files, as Clara writes them (specification of the DICOM adapter, 4.4).

    One value has the key `GGGGEEEE`, several have `GGGGEEEE-0`, `-1` ... in the order of their coming; blank ones are
    left out, long ones cut. A file that cannot be read adds nothing, and none is read where no tag is wanted.
    """
    values: dict[int, dict[str, None]] = {tag: {} for tag in tags}
    for path in paths if tags else ():
        try:
            header = read_header(path, tags)
            for tag in tags:
                if tag in header and (text := str(header[tag].value).strip()):
                    values[tag].setdefault(text[:LONGEST_VALUE])
        except Exception as error:  # noqa: BLE001  pydicom raises whatever a broken file makes of it
            log.warning("a file's attributes are not among its job's metadata: %s", type(error).__name__)
    found: dict[str, str] = {}
    for tag, texts in values.items():
        for number, text in enumerate(texts):
            found[f"{tag:08X}-{number}" if len(texts) > 1 else f"{tag:08X}"] = text
    return found
