"""The data sets of storage commitment (PS3.4 Tables J.3-1 and J.3-2), read in one pass: a transaction, and references.

Why not by pydicom: it makes objects of 2 KB of a reference that has 30 bytes, so that a request of some megabytes would
take hundreds, and many seconds, of a listener that others are sending to.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from clara_flow.services.dicom.header_elements import (
    DELIMITERS,
    ITEM,
    ITEM_END,
    LONG_VRS,
    SEQUENCE_END,
    UNDEFINED,
)
from clara_flow.services.dicom.wire.contexts import EXPLICIT_BIG

MAXIMUM_BYTES = 16 * 1024 * 1024
MAXIMUM_REFERENCES = 100_000
DEPTH_LIMIT = 16

TRANSACTION = 0x0008_1195
FAILED, REFERENCED = 0x0008_1198, 0x0008_1199  # sequences
SOP_CLASS, SOP_INSTANCE = 0x0008_1150, 0x0008_1155
FAILURE_REASON = 0x0008_1197
PROCESSING_FAILURE = 0x0110  # where a peer gives no reason, which it must


class Named(NamedTuple):
    """An item of a sequence of references; `reason` is of use in Failed SOP Sequence alone."""

    sop_class: str
    sop_instance: str
    reason: int


@dataclass(slots=True)
class Content:
    """What such a data set says. UIDs without their padding; "" where there is none."""

    transaction: str = ""
    referenced: list[Named] = field(default_factory=list)
    failed: list[Named] = field(default_factory=list)


@dataclass(slots=True)
class _Level:
    """A data set or item, or a sequence; `end` is None where a delimiter ends it."""

    end: int | None
    is_sequence: bool
    is_explicit: bool


def read_references(data: bytes, transfer_syntax: str) -> Content:
    """Raises ValueError for what cannot be read, and for more than MAXIMUM_REFERENCES."""
    order = ">" if transfer_syntax == EXPLICIT_BIG else "<"
    number = struct.Struct(f"{order}H")
    content, items = Content(), 0
    sequences = {REFERENCED: content.referenced, FAILED: content.failed}
    # Writers break their word on VRs: the first element shows (as in pydicom).
    vr = data[4:6]
    for sequence, item in _items(data, order, is_explicit=vr.isalpha() and vr.isupper()):
        if not sequence:
            content.transaction = _uid(item.get(TRANSACTION))
        elif sequence in sequences:
            items += 1
            if items > MAXIMUM_REFERENCES:
                raise ValueError(f"more than {MAXIMUM_REFERENCES} references")
            reason = item.get(FAILURE_REASON, b"")
            (why,) = number.unpack(reason) if len(reason) == number.size else (PROCESSING_FAILURE,)
            sequences[sequence].append(Named(_uid(item.get(SOP_CLASS)), _uid(item.get(SOP_INSTANCE)), why))
    return content


def _items(data: bytes, order: str, *, is_explicit: bool) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Every item of the outermost sequences with its sequence's tag, and at last the data set itself with 0.

    Elements of sequences within items are passed over.
    """
    head, long = struct.Struct(f"{order}HH2sH"), struct.Struct(f"{order}I")
    levels = [_Level(len(data), False, is_explicit)]
    outermost: dict[int, bytes] = {}
    item: dict[int, bytes] = {}
    sequence = at = 0
    while True:
        level = levels[-1]
        if at == level.end:
            levels.pop()
            if not levels:
                break
            if len(levels) == 2 and not level.is_sequence:
                yield sequence, item
            continue
        if (level.end is not None and at > level.end) or len(data) - at < head.size:
            raise ValueError("it ends within an element")
        group, element, vr, short = head.unpack_from(data, at)
        tag = group << 16 | element
        at += head.size
        has_vr = level.is_explicit and group != DELIMITERS
        if not has_vr:
            (length,) = long.unpack_from(data, at - 4)
        elif vr in LONG_VRS:
            if len(data) - at < long.size:
                raise ValueError("it ends within an element")
            (length,) = long.unpack_from(data, at)
            at += long.size
        else:
            length = short
        if level.end is None and tag == (SEQUENCE_END if level.is_sequence else ITEM_END):
            level.end = at
        elif level.is_sequence:
            if tag != ITEM:
                raise ValueError("something other than an item in a sequence")
            item = {} if len(levels) == 2 else item
            levels.append(_Level(_end(at, length), False, level.is_explicit))
        elif group == DELIMITERS:
            raise ValueError("an item outside of a sequence")
        elif (vr == b"SQ" and has_vr) or length == UNDEFINED or (not has_vr and tag in (REFERENCED, FAILED)):
            sequence = tag if len(levels) == 1 else sequence
            # What has no VR, or VR UN, and yet is a sequence, has none inside either (PS3.5 section 6.2.2).
            levels.append(_Level(_end(at, length), True, has_vr and vr == b"SQ"))
            if len(levels) > DEPTH_LIMIT:
                raise ValueError(f"more than {DEPTH_LIMIT} sequences within each other")
        else:
            if length > len(data) - at:
                raise ValueError("it ends within an element")
            if len(levels) == 1:
                outermost[tag] = data[at : at + length]
            elif len(levels) == 3:
                item[tag] = data[at : at + length]
            at += length
    yield 0, outermost


def _end(at: int, length: int) -> int | None:
    return None if length == UNDEFINED else at + length


def _uid(value: bytes | None) -> str:
    return (value or b"").decode("ascii", errors="replace").strip(" \0")
