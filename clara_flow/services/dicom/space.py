"""Whether there is room for more instances."""

from __future__ import annotations

import os
from pathlib import Path

from clara_flow.errors import StorageError

MIB = 2**20


class SpaceCheck:
    """The disk of `path`: some of it stays free, so many per cent above the watermark, and at least the reserve.

    Nothing is remembered: a disk that was cleaned up, or made larger, is seen at once.
    """

    def __init__(self, path: Path, watermark_percent: int, reserve_mib: int) -> None:
        self.path = path
        self.watermark_percent = watermark_percent
        self.reserve_mib = reserve_mib

    @property
    def free_bytes(self) -> int:
        """What we may still write. Raises StorageError where nobody can tell."""
        return self._free_and_total()[0]

    @property
    def reserved_bytes(self) -> int:
        """What has to stay free. Raises StorageError where nobody can tell."""
        return self._reserved(self._free_and_total()[1])

    def is_short(self) -> bool:
        """Whether nothing may be taken in, sent or retrieved. Raises StorageError where nobody can tell."""
        free, total = self._free_and_total()
        return free <= self._reserved(total)

    def _reserved(self, total: int) -> int:
        return max(total * (100 - self.watermark_percent) // 100, self.reserve_mib * MIB)

    def _free_and_total(self) -> tuple[int, int]:
        """Bytes. A folder that is not there yet lies on the disk of the one above it."""
        for path in (self.path, *self.path.parents):
            try:
                disk = os.statvfs(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise StorageError(f"cannot look at the disk of {path}: {error.strerror}", path=str(path)) from error
            return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        raise StorageError(f"nothing of {self.path} is there", path=str(self.path))
