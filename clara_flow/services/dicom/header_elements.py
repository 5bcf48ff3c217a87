"""The elements of a data set, one after the other while it streams in (PS3.5 section 7, Annex A).

Values of no interest are skipped by their length and never copied. What is kept from one piece of the data set to the
next is little more than VALUE_LIMIT bytes, however it is cut. Nothing recurs: sequences are a stack of small numbers.
"""

from __future__ import annotations

import struct

VALUE_LIMIT = 1024  # bytes; a longer value is as good as none
DEPTH_LIMIT = 64  # sequences within sequences
ELEMENT_LIMIT = 250_000  # before the last one that we want, with those in sequences; images have hundreds
PIXELS = 0x7FE0_0008  # Float, Double Float and plain Pixel Data follow
DELIMITERS = 0xFFFE  # group of items and of ends
ITEM, ITEM_END, SEQUENCE_END = 0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD
UNDEFINED = 0xFFFF_FFFF
LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
HEAD_BYTES = 8  # tag, VR and length
LONG_HEAD_BYTES = 12  # where the length has 32 bits
WINDOW = LONG_HEAD_BYTES + VALUE_LIMIT  # the longest element whose value is kept
EXPLICIT_BIG = "1.2.840.10008.1.2.2"

# Where the scan is: in a data set or an item whose encoding is not known yet, in one that has VRs or has none, or
# between the items of a sequence.
BEGUN, EXPLICIT, IMPLICIT, SEQUENCE = range(4)


class ElementScan:
    """Goes over the elements of a data set in one of the plain encodings, and keeps the values of `tags`.

    values      those found so far; values longer than VALUE_LIMIT are not among them.
    is_done     an element behind the last of `tags` was seen.
    """

    def __init__(self, transfer_syntax: str, tags: frozenset[int]) -> None:
        self.is_big_endian = transfer_syntax == EXPLICIT_BIG
        self.is_done = False
        self.values: dict[int, bytes] = {}
        self._tags = tags
        self._last = min(max(tags), PIXELS - 1)
        order = ">" if self.is_big_endian else "<"
        self._head = struct.Struct(f"{order}HH2sH")
        self._length = struct.Struct(f"{order}I")
        self._level = BEGUN
        self._outer: list[int] = []  # the levels around this one
        self._skip = 0
        self._rest = b""
        self._allowed = ELEMENT_LIMIT

    @property
    def is_within(self) -> bool:
        """Whether what was fed ends within an element."""
        return bool(self._skip or self._rest or self._outer)

    def feed(self, data: memoryview) -> None:
        """The next bytes. Raises ValueError for what cannot be read."""
        at = 0
        if self._rest:
            # The element that was cut is completed with few bytes, so that not all of `data` is copied.
            joined = self._rest + bytes(data[:WINDOW])
            end = self._scan(joined, 0)
            if self.is_done or end == 0:
                self._rest = joined  # no element that we want is longer than the window: all of `data` is in it
                return
            at = end - len(self._rest)
            self._rest = b""
        skipped = min(self._skip, len(data) - at)
        self._skip -= skipped
        at += skipped
        end = self._scan(data, at)
        if not self.is_done:
            self._rest = bytes(data[end:])

    def _scan(self, data: bytes | memoryview, at: int) -> int:
        """Go over the elements from `at` on. Returns where the first one begins that is cut, or the end of `data`."""
        end = len(data)
        while end - at >= HEAD_BYTES:
            self._allowed -= 1
            if self._allowed < 0:
                raise ValueError(f"more than {ELEMENT_LIMIT} elements in the header")
            group, number, vr, length = self._head.unpack_from(data, at)
            tag = group << 16 | number
            if tag > self._last and not self._outer:
                self.is_done = True
                return at
            if self._level == BEGUN:  # writers break their word on VRs: the first element shows (as in pydicom)
                self._level = EXPLICIT if vr.isalpha() and vr.isupper() else IMPLICIT
            value_at = at + HEAD_BYTES
            if self._level != EXPLICIT or group == DELIMITERS or not b"AA" <= vr <= b"ZZ":
                (length,) = self._length.unpack_from(data, at + 4)
            elif vr in LONG_VRS:
                if end - at < LONG_HEAD_BYTES:
                    return at
                (length,) = self._length.unpack_from(data, at + 8)
                value_at = at + LONG_HEAD_BYTES
            if self._outer or length == UNDEFINED:
                length = self._nest(tag, length)
            elif tag in self._tags and length <= VALUE_LIMIT:
                if end - value_at < length:
                    return at
                self.values[tag] = bytes(data[value_at : value_at + length])
            at = value_at + length
            if at > end:
                self._skip = at - end
                return end
        return at

    def _nest(self, tag: int, length: int) -> int:
        """Go into or out of a sequence or an item. Returns how many bytes of a value are to be skipped."""
        if self._level == SEQUENCE:
            if tag == SEQUENCE_END:
                self._level = self._outer.pop()
                return 0
            if tag != ITEM:
                raise ValueError("something other than an item in a sequence")
            if length == UNDEFINED:
                self._enter(IMPLICIT if self._outer[-1] == IMPLICIT else BEGUN)
        elif tag == ITEM_END:
            self._level = self._outer.pop()
            return 0
        elif tag >> 16 == DELIMITERS:
            raise ValueError("an item outside of a sequence")
        elif length == UNDEFINED:
            self._enter(SEQUENCE)
        return length if length != UNDEFINED else 0

    def _enter(self, level: int) -> None:
        if len(self._outer) >= 2 * DEPTH_LIMIT:
            raise ValueError(f"more than {DEPTH_LIMIT} sequences within each other")
        self._outer.append(self._level)
        self._level = level
