"""Files that anybody may have sent, read by pydicom in bounded memory.

pydicom inflates a deflated data set (PS3.5 Annex A.5) whole before it looks at it: a megabyte may become a gigabyte.
Here it is inflated no further than it may be. What else is wrong with a file raises what pydicom makes of it.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.dataset import FileDataset
from pydicom.filereader import read_dataset, read_file_meta_info, read_partial
from pydicom.tag import BaseTag, Tag
from pynetdicom.dsutils import split_dataset

from clara_flow.services.dicom.header import DEFLATED

LARGEST_HEADER_BYTES = 32 * 2**20
LARGEST_DATA_SET_BYTES = 256 * 2**20
PIECE_BYTES = 2**16
CHARACTER_SET = 0x0008_0005
BEFORE_PIXELS = 0x7FE0_0007
EVERYTHING = 0xFFFF_FFFF


def read_header(path: Path, keywords: Sequence[str | int] | None = None, *, last: int = BEFORE_PIXELS) -> FileDataset:
    """These attributes of a file (None: all), as far as tag `last`.

    Raises OSError, ValueError when they inflate to more than LARGEST_HEADER_BYTES, and what pydicom raises.
    """
    return _read(path, LARGEST_HEADER_BYTES, keywords, last)


def read_whole(path: Path) -> FileDataset:
    """All of a file. Raises as `read_header` does, of LARGEST_DATA_SET_BYTES."""
    return _read(path, LARGEST_DATA_SET_BYTES, None, EVERYTHING)


def _read(path: Path, limit_bytes: int, keywords: Sequence[str | int] | None, last: int) -> FileDataset:
    is_past_last = False

    def is_past(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal is_past_last
        is_past_last = is_past_last or tag > last
        return is_past_last

    wanted: Any = [Tag(one) for one in [CHARACTER_SET, *keywords]] if keywords else None
    meta, offset = split_dataset(path)
    with path.open("rb") as file:
        if meta.get("TransferSyntaxUID") not in DEFLATED:
            return read_partial(file, stop_when=is_past, specific_tags=wanted)
        file.seek(offset)
        content, is_whole = _inflated(file, limit_bytes)
    data_set = read_dataset(content, False, True, stop_when=is_past, specific_tags=wanted)
    if not is_whole and not is_past_last:
        raise ValueError(f"the data set inflates to more than {limit_bytes} bytes")
    made = FileDataset(path, data_set, bytes(128), read_file_meta_info(path), False, True)
    made.set_original_encoding(False, True, data_set._character_set)
    return made


def _inflated(file: BinaryIO, limit_bytes: int) -> tuple[BinaryIO, bool]:
    """What the rest of a file inflates to, as far as the limit, and whether that is all of it. Raises zlib.error."""
    inflater, found, left = zlib.decompressobj(-zlib.MAX_WBITS), io.BytesIO(), limit_bytes
    while left and not inflater.eof and (piece := inflater.unconsumed_tail or file.read(PIECE_BYTES)):
        left -= found.write(inflater.decompress(piece, left))
    found.seek(0)
    return found, left > 0
