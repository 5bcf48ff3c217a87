"""An operator's log: a file of bounded size, a bounded stream of lines to whoever watches, and the last lines."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

LINE_BYTES = 8 * 2**10  # longer lines are split
FORWARDED_LINES = 5_000  # a watcher gets no more than this ...
FORWARDED_BYTES = 2**20  # ... and no more than this
LAST_LINES = 20
RECENT_BYTES = LAST_LINES * 2**10
# Terminal escapes and control characters: PostgreSQL takes no NUL, and a log must not steer a terminal.
UNPRINTABLE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


class OperatorLog:
    """Takes the bytes that an operator writes, from one thread, and never holds more than a few hundred KiB of them.

    path            file that gets the log: its first and its last `limit_bytes / 2` with a line between them that tells
                    how much was cut. Replaced when it exists. The tail waits in a nameless file, so that nothing is
                    left behind by a platform that is killed.
    on_lines        gets printable lines, decoded as UTF-8 with replacement, as they come; after `FORWARDED_LINES`
                    or `FORWARDED_BYTES` one line says that the rest is only in the file.

    A log that cannot be written (disk full) does not end the operator: a line says so, and the rest goes nowhere.
    """

    def __init__(self, path: Path, *, limit_bytes: int, on_lines: Callable[[list[str]], None]) -> None:
        self.path = path
        self.total_bytes = 0
        self._on_lines = on_lines
        self._head_bytes = limit_bytes // 2
        self._tail_bytes = limit_bytes - self._head_bytes
        self._tail_seen = 0
        self._head: IO[bytes] | None = None
        self._tail: IO[bytes] | None = None
        self._recent = b""
        self._partial = b""
        self._lines_left = FORWARDED_LINES
        self._bytes_left = FORWARDED_BYTES

    def open(self) -> None:
        """Create the file. Raises OSError when that is not possible."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._head = self.path.open("wb")

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self.total_bytes += len(chunk)
        self._recent = (self._recent + chunk[-RECENT_BYTES:])[-RECENT_BYTES:]
        self._forward(chunk)
        if self._head is not None:
            try:
                self._keep(self._head, chunk)
            except OSError as error:
                self._give_up(error)

    def last_lines(self) -> tuple[str, ...]:
        """The last lines, at most 20 of them and at most 20 KiB."""
        lines = self._recent.rstrip(b"\n").split(b"\n")[-LAST_LINES:] if self._recent else []
        return tuple(printable(line) for line in lines)

    def close(self) -> None:
        """Forward a last line without an end, put head and tail together. Safe to call twice."""
        if self._partial:
            self._forward(b"\n")
        head, self._head = self._head, None
        tail, self._tail = self._tail, None
        try:
            if head is not None:
                with head:
                    if tail is not None:
                        self._join(head, tail)
        except OSError as error:
            self._give_up(error)
        finally:
            if tail is not None:
                tail.close()

    def _forward(self, chunk: bytes) -> None:
        if self._lines_left <= 0:
            return
        *whole, self._partial = (self._partial + chunk).split(b"\n")
        while len(self._partial) > LINE_BYTES:
            piece, self._partial = _cut(self._partial)
            whole.append(piece)
        lines: list[str] = []
        for entry in whole:
            rest = entry
            while True:
                piece, rest = _cut(rest)
                lines.append(printable(piece))
                self._lines_left -= 1
                self._bytes_left -= len(piece)
                if self._lines_left <= 0 or self._bytes_left <= 0:
                    lines.append(f"clara-flow: too much log to show here; the rest is in {self.path}")
                    self._lines_left, self._partial = 0, b""
                    self._on_lines(lines)
                    return
                if not rest:
                    break
        if lines:
            self._on_lines(lines)

    def _keep(self, head: IO[bytes], chunk: bytes) -> None:
        """To the head while it has room, then round and round in the tail."""
        room = max(0, self._head_bytes - head.tell())
        head.write(chunk[:room])
        head.flush()
        rest = memoryview(chunk)[room:]
        if rest and self._tail is None:
            self._tail = tempfile.TemporaryFile(dir=self.path.parent, buffering=0)  # noqa: SIM115 (close() closes it)
        while rest and self._tail is not None and self._tail_bytes:
            offset = self._tail_seen % self._tail_bytes
            self._tail.seek(offset)
            written = self._tail.write(rest[: self._tail_bytes - offset])
            self._tail_seen += written
            rest = rest[written:]

    def _join(self, head: IO[bytes], tail: IO[bytes]) -> None:
        cut = self._tail_seen - self._tail_bytes
        if cut > 0:
            head.write(f"\nclara-flow: {cut} bytes were cut here\n".encode())
            tail.seek(self._tail_seen % self._tail_bytes)
            shutil.copyfileobj(tail, head, 2**20)
        tail.seek(0)
        remaining = self._tail_seen % self._tail_bytes if cut > 0 else self._tail_seen
        while remaining > 0 and (block := tail.read(min(remaining, 2**20))):
            head.write(block)
            remaining -= len(block)

    def _give_up(self, error: OSError) -> None:
        for file in (self._head, self._tail):
            if file is not None:
                try:
                    file.close()
                except OSError:  # its last bytes do not fit either
                    continue
        self._head = self._tail = None
        self._on_lines([f"clara-flow: the log {self.path} cannot be written ({error.strerror}); the rest is lost"])


def _cut(line: bytes) -> tuple[bytes, bytes]:
    """The first piece of at most LINE_BYTES, not cut inside an UTF-8 character, and the rest."""
    end = LINE_BYTES
    if len(line) > end:
        while end > LINE_BYTES - 4 and line[end] & 0xC0 == 0x80:
            end -= 1
    return line[:end], line[end:]


def printable(line: bytes) -> str:
    """The text of a line without what steers terminals or breaks databases."""
    return UNPRINTABLE.sub("", line.decode("utf-8", errors="replace"))
