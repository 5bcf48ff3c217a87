"""Log files of the services, begun anew before they fill the disk, while the services write to them.

    logs/prefect.log        being written; logs/prefect.log.1 is what came before, .4 the oldest that is kept

A service has its log open for as long as it lives, some of them in many processes, and PostgreSQL outlives whoever
started it: no file can be exchanged under them. So the head of the file is copied and then taken out of the file
(fallocate(2), FALLOC_FL_COLLAPSE_RANGE: ext4, XFS); what is appended meanwhile stays. Other file systems give back the
head's space and read it as zeros from then on (FALLOC_FL_PUNCH_HOLE). No byte is lost either way.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

KEPT = 4
COPY_BYTES = 2**20
MOST_LINE_BYTES = 2**16

# linux/falloc.h
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE = 1, 2, 8
IMPOSSIBLE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


def rotate_all(folder: Path, limit_bytes: int) -> list[Path]:
    """Begin every `*.log` anew that takes more than `limit_bytes` on the disk; those that were. Raises OSError."""
    return [path for path in sorted(folder.glob("*.log")) if rotate(path, limit_bytes)]


def rotate(path: Path, limit_bytes: int) -> bool:
    """Begin a log file anew when it takes more than `limit_bytes` on the disk; whether it was.

    Older ones move on by one number. The file may then begin with the end of a line that stands whole in the older one.
    Raises OSError.
    """
    with path.open("r+b") as file:
        state = os.fstat(file.fileno())
        block = os.fstatvfs(file.fileno()).f_bsize
        end = (state.st_size - 1) // block * block  # the last byte must stay, and heads end where blocks do
        if state.st_blocks * 512 <= limit_bytes or end <= 0:
            return False
        start = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        if start >= end:
            return False
        unnamed = path.with_name(f"{path.name}.new")
        _copy(file.fileno(), start, end, unnamed)
        for number in range(KEPT - 1, 0, -1):
            older = path.with_name(f"{path.name}.{number}")
            if older.exists():
                older.rename(path.with_name(f"{path.name}.{number + 1}"))
        unnamed.rename(path.with_name(f"{path.name}.1"))
        _take_out(file.fileno(), start, end)
    return True


def _copy(descriptor: int, start: int, end: int, target: Path) -> None:
    """The bytes from `start` to `end`, and the rest of the line that they end in."""
    with target.open("wb") as copy:
        while start < end and (content := os.pread(descriptor, min(COPY_BYTES, end - start), start)):
            copy.write(content)
            start += len(content)
        rest = os.pread(descriptor, MOST_LINE_BYTES, end)
        line, newline, _ = rest.partition(b"\n")
        if newline and os.pread(descriptor, 1, end - 1) != b"\n":
            copy.write(line + newline)


def _take_out(descriptor: int, start: int, end: int) -> None:
    try:
        _fallocate(descriptor, COLLAPSE_RANGE, 0, end)
    except OSError as error:
        if error.errno not in IMPOSSIBLE:
            raise
        _fallocate(descriptor, PUNCH_HOLE | KEEP_SIZE, start, end - start)


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
