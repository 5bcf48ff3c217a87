"""multipart/related (RFC 2046, RFC 2387; PS3.18 8.6.1.2), read piece by piece in bounded memory, and written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message

from clara_flow.errors import InputError

LARGEST_HEAD_BYTES = 16_384
LONGEST_BOUNDARY = 200  # RFC 2046 allows 70; some clients make longer ones
PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A part begins; header names are lower case."""

    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PartEnd:
    """All of the part was seen: its closing delimiter, too."""


Event = PartBegin | PartEnd | bytes


def content_type(value: str) -> tuple[str, dict[str, str]]:
    """A Content-Type as (media type, parameters), lower case except the parameters' values.

    >>> content_type('Multipart/Related; type="application/dicom"; boundary=x')
    ('multipart/related', {'type': 'application/dicom', 'boundary': 'x'})
    """
    message = Message()
    message["content-type"] = value
    parameters = message.get_params(failobj=[], unquote=True)[1:]
    return message.get_content_type() if value else "", {name.lower(): text for name, text in parameters}


def boundary_of(value: str) -> str:
    """The boundary that a Content-Type names. Raises InputError when it is not multipart/related, or names none."""
    media_type, parameters = content_type(value)
    if media_type != "multipart/related":
        raise InputError("the body must be multipart/related")
    boundary = parameters.get("boundary", "")
    if not 0 < len(boundary) <= LONGEST_BOUNDARY or not boundary.isascii():
        raise InputError("the Content-Type multipart/related names no usable boundary")
    return boundary


class MultipartReader:
    """Takes the body in pieces of any size, and gives what is in them: no more than a piece and a head is kept."""

    def __init__(self, boundary: str) -> None:
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._kept = bytearray(b"\r\n")  # so that the first delimiter looks like the others
        self._state = "preamble"

    @property
    def is_over(self) -> bool:
        """Whether the last delimiter was seen."""
        return self._state == "over"

    def feed(self, data: bytes) -> Iterator[Event]:
        """What this piece completes. Raises InputError for what is no multipart body."""
        self._kept += data
        while not self.is_over:
            events, more = self._head() if self._state == "head" else self._body()
            yield from events
            if not more:
                return
        self._kept.clear()  # an epilogue says nothing

    def close(self) -> None:
        """The body is over. Raises InputError when its last delimiter is missing: it was cut off."""
        if not self.is_over:
            raise InputError("the multipart body ends before its last delimiter: it was cut off")

    def _body(self) -> tuple[list[Event], bool]:
        """Bytes up to the next delimiter; (events, whether to go on)."""
        start = 0
        while True:
            at = self._kept.find(self._delimiter, start)
            if at < 0:
                return self._take(max(0, len(self._kept) - len(self._delimiter) + 1)), False
            end = at + len(self._delimiter)
            kind, length = self._after(end)
            if kind == "unknown":
                return self._take(at), False
            if kind == "data":  # it only began like a delimiter
                start = at + 1
                continue
            events = self._take(at)
            del self._kept[: end - at + length]
            if self._state == "part":
                events.append(PartEnd())
            self._state = "over" if kind == "last" else "head"
            return events, True

    def _after(self, at: int) -> tuple[str, int]:
        """What follows the delimiter's text: (`next`, `last`, `data` or `unknown` yet, length of it)."""
        rest = bytes(self._kept[at : at + 64])
        if rest.startswith(b"--"):
            return "last", 2
        line = rest.find(b"\r\n")
        if line >= 0:
            return ("next", line + 2) if not rest[:line].strip(b" \t") else ("data", 0)
        is_open = len(rest) < 64 and (rest in {b"", b"-", b"\r"} or not rest.rstrip(b"\r").strip(b" \t"))
        return ("unknown" if is_open else "data"), 0

    def _take(self, length: int) -> list[Event]:
        """Bytes of the part; those before the first part say nothing."""
        taken = bytes(self._kept[:length])
        del self._kept[:length]
        return [taken] if taken and self._state == "part" else []

    def _head(self) -> tuple[list[Event], bool]:
        """The header lines of a part; there may be none."""
        if self._kept.startswith(b"\r\n"):
            end, text = 2, b""
        else:
            at = self._kept.find(b"\r\n\r\n")
            if at < 0:
                if len(self._kept) > LARGEST_HEAD_BYTES:
                    raise InputError("a part of the multipart body has headers without end")
                return [], False
            end, text = at + 4, bytes(self._kept[:at])
        if len(text) > LARGEST_HEAD_BYTES:
            raise InputError("a part of the multipart body has headers without end")
        headers = {}
        for line in text.decode("latin-1").split("\r\n") if text else []:
            name, colon, value = line.partition(":")
            if not colon:
                raise InputError("a part of the multipart body has a header line without a colon")
            headers[name.strip().lower()] = value.strip()
        del self._kept[:end]
        self._state = "part"
        return [PartBegin(headers)], True


def parts(boundary: str, files: Iterable[tuple[str, Iterator[bytes]]]) -> Iterator[bytes]:
    """A multipart body of (Content-Type, bytes), piece by piece."""
    for kind, content in files:
        yield f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode("ascii")
        yield from content
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode("ascii")
