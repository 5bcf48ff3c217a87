"""Limits on associations over all listener processes: locked bytes of a file. The kernel frees a dead process's."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from contextlib import suppress
from pathlib import Path

FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, process (must be 0)
TAKEN = {errno.EAGAIN, errno.EACCES}


class Slot:
    """One of a limited number. Let go of at most once."""

    def __init__(self, slots: Slots, number: int) -> None:
        self._slots = slots
        self._number: int | None = number

    def release(self) -> None:
        """Give it back; safe to call twice."""
        number, self._number = self._number, None
        if number is not None:
            self._slots.free(number)


class Slots:
    """Numbered slots that the processes which open `path` share.

    They are open-file-description locks (fcntl(2)) on single bytes: they belong to this object's descriptor, so what
    this process itself holds is counted here, and what others hold the kernel says. For any thread.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._mutex = threading.Lock()
        self._held: set[int] = set()

    @property
    def held(self) -> int:
        """How many this process holds."""
        return len(self._held)

    def take(self, limit: int) -> Slot | None:
        """One of the first `limit`; None when all are taken."""
        with self._mutex:
            for number in range(limit):
                if number not in self._held and self._lock(fcntl.F_WRLCK, number):
                    self._held.add(number)
                    return Slot(self, number)
        return None

    def free(self, number: int) -> None:
        """Let go of one."""
        with self._mutex:
            self._held.discard(number)
            with suppress(OSError):  # the descriptor was closed, and its locks with it
                self._lock(fcntl.F_UNLCK, number)

    def close(self) -> None:
        """Let go of all."""
        with self._mutex:
            self._held.clear()
            os.close(self._descriptor)

    def _lock(self, kind: int, number: int) -> bool:
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, number, 1, 0))
        except OSError as error:
            if error.errno in TAKEN:
                return False
            raise
        return True
