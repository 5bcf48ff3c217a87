"""PDUs of PS3.8 section 9.3: the small ones as bytes, and a stream of bytes cut into what the listener acts on."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

HEADER = struct.Struct(">BxI")  # of a PDU: type, length of what follows
ITEM_HEADER = struct.Struct(">IBB")  # of a presentation data value: length, context ID, message control header
COMMAND, LAST = 1, 2  # bits of the message control header (PS3.8 Annex E.2)
SHORT_BODY = 4  # bytes of A-RELEASE-* and A-ABORT after their header


class PduType(IntEnum):
    """PDU types of PS3.8 section 9.3."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    DATA = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


class AbortReason(IntEnum):
    """Why the provider aborts (PS3.8 Table 9-26)."""

    NOT_SPECIFIED = 0
    UNRECOGNISED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNISED_PARAMETER = 4
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6


@dataclass(frozen=True, slots=True)
class Rejection:
    """Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 Table 9-21); `name` is for counters and logs."""

    result: int
    source: int
    reason: int
    name: str

    def encode(self) -> bytes:
        """The PDU."""
        return HEADER.pack(PduType.ASSOCIATE_RJ, SHORT_BODY) + bytes((0, self.result, self.source, self.reason))


class PduError(Exception):
    """The peer broke the rules of the upper layer: the association is aborted by the provider, for this reason."""

    def __init__(self, reason: AbortReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


RELEASE_RP = HEADER.pack(PduType.RELEASE_RP, SHORT_BODY) + bytes(SHORT_BODY)
ABORT_BY_USER = HEADER.pack(PduType.ABORT, SHORT_BODY) + bytes(SHORT_BODY)


def abort_by_provider(reason: AbortReason) -> bytes:
    """A-ABORT whose source is the service provider (PS3.8 section 9.3.8)."""
    return HEADER.pack(PduType.ABORT, SHORT_BODY) + bytes((0, 0, 2, reason))


def data_pdus(context_id: int, message: bytes, *, is_command: bool, peer_maximum: int) -> bytes:
    """A command set or data set as P-DATA-TF PDUs none of which is longer than the peer takes.

    peer_maximum    of the peer's Maximum Length sub-item, in bytes; 0: no limit.
    """
    room = max(peer_maximum - ITEM_HEADER.size, 1) if peer_maximum else max(len(message), 1)
    pdus = bytearray()
    for start in range(0, max(len(message), 1), room):
        piece = message[start : start + room]
        control = (COMMAND if is_command else 0) | (LAST if start + room >= len(message) else 0)
        pdus += HEADER.pack(PduType.DATA, ITEM_HEADER.size + len(piece))
        pdus += ITEM_HEADER.pack(2 + len(piece), context_id, control) + piece
    return bytes(pdus)


class Fragment(NamedTuple):
    """Some bytes of a message.

    data        as they lie in the buffer: valid until the next `cut`.
    is_last     whether the command set or data set ends with them.
    """

    context_id: int
    is_command: bool
    data: memoryview
    is_last: bool


class ReleaseRequest(NamedTuple):
    """The peer is done."""


class Abort(NamedTuple):
    """The peer broke off."""

    source: int
    reason: int


NOTHING = memoryview(b"")
_KNOWN = frozenset(PduType)


class PduStream:
    """Cuts what an established association receives (state Sta6 of PS3.8 section 9.2) into pieces; keeps no data.

    maximum_bytes   the longest P-DATA-TF that was allowed to the peer.

    A fragment is handed on as it arrives, before its PDU is whole: a PDU costs no memory, however long it is.
    """

    def __init__(self, maximum_bytes: int) -> None:
        self.maximum_bytes = maximum_bytes
        self._header = bytearray()  # of a PDU or an item, as far as it came
        self._short: PduType | None = None  # a PDU of four bytes is being read
        self._pdu_left = 0
        self._item_left = 0
        self._context_id = 0
        self._control = 0

    def cut(self, data: memoryview) -> Iterator[Fragment | ReleaseRequest | Abort]:
        """What `data` holds, in order. Raises PduError; the stream must not be used afterwards."""
        position, size = 0, len(data)
        while position < size:
            if self._item_left:
                taken = min(self._item_left, size - position)
                self._item_left -= taken
                self._pdu_left -= taken
                yield self._fragment(data[position : position + taken])
                position += taken
                continue
            needed = SHORT_BODY if self._short else ITEM_HEADER.size  # the headers of PDUs and items are equally long
            taken = min(needed - len(self._header), size - position)
            self._header += data[position : position + taken]
            position += taken
            if len(self._header) < needed:
                return
            header = bytes(self._header)
            self._header.clear()
            if self._short is not None:
                short, self._short = self._short, None
                yield ReleaseRequest() if short is PduType.RELEASE_RQ else Abort(header[2], header[3])
            elif self._pdu_left:
                self._begin_item(header)
                if not self._item_left:
                    yield self._fragment(NOTHING)
            else:
                self._begin_pdu(header)

    def _fragment(self, data: memoryview) -> Fragment:
        is_last = not self._item_left and bool(self._control & LAST)
        return Fragment(self._context_id, bool(self._control & COMMAND), data, is_last)

    def _begin_pdu(self, header: bytes) -> None:
        number, length = HEADER.unpack(header)
        if number not in _KNOWN:
            raise PduError(AbortReason.UNRECOGNISED_PDU, f"PDU type {number:#04x}")
        if number == PduType.DATA:
            if length > self.maximum_bytes:
                raise PduError(
                    AbortReason.INVALID_PARAMETER, f"a P-DATA-TF of {length} bytes; {self.maximum_bytes} are allowed"
                )
            if length < ITEM_HEADER.size:
                raise PduError(AbortReason.INVALID_PARAMETER, "a P-DATA-TF without an item")
            self._pdu_left = length
        elif number in {PduType.RELEASE_RQ, PduType.ABORT}:
            if length != SHORT_BODY:
                raise PduError(AbortReason.INVALID_PARAMETER, f"a PDU of type {number} and {length} bytes")
            self._short = PduType(number)
        else:
            raise PduError(AbortReason.UNEXPECTED_PDU, f"PDU type {number} on an established association")

    def _begin_item(self, header: bytes) -> None:
        length, self._context_id, self._control = ITEM_HEADER.unpack(header)
        self._pdu_left -= ITEM_HEADER.size
        self._item_left = length - 2  # the length counts context ID and control header
        if not 0 <= self._item_left <= self._pdu_left:
            raise PduError(AbortReason.INVALID_PARAMETER, "an item that does not fit its PDU")
        if 0 < self._pdu_left - self._item_left < ITEM_HEADER.size:
            raise PduError(AbortReason.INVALID_PARAMETER, "bytes after the last item of a PDU")
