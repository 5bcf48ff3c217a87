"""Journals of the spool: what was received, in the order it happened, for whoever makes groups of it.

A line counts once its newline is there. Whoever writes a journal holds a lock on it for as long as it lives, so that a
reader sees whether more may come: an association that is still open in a journal whose writer is gone was lost.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from uuid import UUID, uuid4

from clara_flow.errors import InvalidTransition, StorageError
from clara_flow.records.durable import naming_storage_problems, sync
from clara_flow.services.dicom.group_sync import GroupSync
from clara_flow.services.dicom.journal_entries import Entry, Opened, Stored, from_line

log = logging.getLogger(__name__)

JOURNALS = "journals"  # folders of a spool
INSTANCES = "instances"
SUFFIX = ".jsonl"
MAXIMUM_LINE = 2**18
CHUNK = 2**20  # read at once; no line is longer


class JournalDoubtful(StorageError):
    """The disk failed while lines were on their way: they may be in the journal, or not."""


class JournalWriter:
    """A new journal in `folder`, for any thread of one process. Who forks shares the lock: fork before.

    fsync           whether `append` waits for the disk.
    associations    whose lines it takes: for the spool's writer to keep.
    size            bytes that count.

    Raises StorageError.
    """

    def __init__(self, folder: Path, *, fsync: bool) -> None:
        self.path = folder / f"{uuid4()}{SUFFIX}"
        self.associations: set[UUID] = set()
        self.size = 0
        self._fsync = fsync
        self._is_doubtful = False
        self._writing = threading.Lock()
        self._group = GroupSync(self._flush)
        with naming_storage_problems(folder):
            self._descriptor = self._create()

    def append(self, line: bytes, *, durable: bool = True) -> None:
        """Add a line with its newline; return when it is durable, or written if that is enough.

        Raises StorageError: then the line is not there; JournalDoubtful: then it may be, and no other is taken.
        """
        if len(line) > MAXIMUM_LINE:
            raise StorageError(f"an entry of {len(line)} bytes is too long for a journal", path=str(self.path))
        with naming_storage_problems(self.path.parent):
            self._group.put((line, durable))

    def close(self) -> None:
        """Nothing more comes. To call twice is harmless."""
        with self._writing:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _create(self) -> int:
        """It is locked before it has its name: no reader may take it for one whose writer is gone."""
        unnamed = self.path.with_name(f".{self.path.name}")
        descriptor = os.open(unnamed, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(self.path)
            if self._fsync:
                sync(self.path.parent)
        except BaseException:
            os.close(descriptor)
            unnamed.unlink(missing_ok=True)
            raise
        return descriptor

    def _flush(self, items: list[tuple[bytes, bool]]) -> list[Exception | None]:
        """Lines that got to the disk whole count, also when those after them did not: a reader may have seen them."""
        with self._writing:
            if self._is_doubtful or self._descriptor < 0:
                raise StorageError(
                    f"the journal {self.path} takes no lines any more. Restart the listener.", path=str(self.path)
                )
            written, problem = self._write(b"".join(line for line, _ in items))
            ends = list(accumulate(len(line) for line, _ in items))
            counted = [end for end in ends if end <= written]
            self._settle(counted[-1] if counted else 0, durable=any(durable for _, durable in items[: len(counted)]))
            return [None if end <= written else problem for end in ends]

    def _write(self, content: bytes) -> tuple[int, OSError | None]:
        """How much of it was written, and what kept the rest."""
        written = 0
        try:
            while written < len(content):
                written += os.write(self._descriptor, content[written:])
        except OSError as error:
            return written, error
        return written, None

    def _settle(self, whole: int, *, durable: bool) -> None:
        """Cut off what no reader counts, and see the rest to the disk."""
        try:
            if os.fstat(self._descriptor).st_size != self.size + whole:
                os.ftruncate(self._descriptor, self.size + whole)
            if self._fsync and durable:
                os.fdatasync(self._descriptor)
        except OSError as error:  # after a failed flush nobody can tell what is on the disk
            self._is_doubtful = True
            raise JournalDoubtful(
                f"the journal {self.path} could not be flushed: {error.strerror}. Look after its disk, "
                "then restart the listener.",
                path=str(self.path),
            ) from error
        self.size += whole


class JournalReader:
    """Reads the journals of the spool at `root`. Raises StorageError where the disk does not let it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / JOURNALS

    def names(self) -> list[str]:
        """Of all journals, live ones and others."""
        with naming_storage_problems(self.folder):
            return sorted(path.name for path in self.folder.glob(f"[!.]*{SUFFIX}"))

    def read(self, name: str, offset: int = 0, limit: int = 1000) -> tuple[list[Entry], int]:
        """Up to `limit` entries from byte `offset` on, and where the next one begins.

        A line that cannot be read is skipped once the writer is gone: before that it may be one in the making.
        Nothing comes of a journal that is not there.
        """
        entries: list[Entry] = []
        content = self._chunk(name, offset)
        at = 0
        while len(entries) < limit and (end := content.find(b"\n", at)) >= 0:
            try:
                entries.append(from_line(content[at:end]))
            except ValueError:
                log.error("journal %s: the line at byte %d cannot be read", name, offset + at)
                if not self.is_over(name):
                    break
            at = end + 1
        return entries, offset + at

    def is_over(self, name: str) -> bool:
        """Whether its writer is gone. Ask first, then read to the end: nothing comes after that."""
        try:
            descriptor = os.open(self.folder / name, os.O_RDONLY)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    def entries(self, name: str) -> Iterator[Entry]:
        """All of them."""
        offset = 0
        while True:
            found, after = self.read(name, offset)
            yield from found
            if after == offset:
                return
            offset = after

    def sweep(self, name: str) -> int:
        """Remove received files that have no line in this journal, if its writer is gone. Returns how many."""
        if not self.is_over(name):
            return 0
        stored: dict[UUID, set[str]] = {}
        for entry in self.entries(name):
            if isinstance(entry, Opened):
                stored[entry.association] = set()
            elif isinstance(entry, Stored):
                stored[entry.association].add(entry.path)
        swept = 0
        with naming_storage_problems(self.root):
            for association, paths in stored.items():
                for file in (self.root / INSTANCES / str(association)).glob("*"):
                    if file.relative_to(self.root).as_posix() not in paths:
                        file.unlink(missing_ok=True)
                        swept += 1
        return swept

    def remove(self, name: str) -> None:
        """Forget a journal that was read to its end and whose writer is gone: InvalidTransition if it is not.

        Its files without a line go first: after it nobody could tell them from others.
        """
        if not self.is_over(name):
            raise InvalidTransition(f"the journal {name} is still written")
        self.sweep(name)
        with naming_storage_problems(self.folder):
            (self.folder / name).unlink(missing_ok=True)

    def _chunk(self, name: str, offset: int) -> bytes:
        with naming_storage_problems(self.folder):
            try:
                descriptor = os.open(self.folder / name, os.O_RDONLY)
            except FileNotFoundError:
                return b""
            try:
                return os.pread(descriptor, CHUNK, offset)
            finally:
                os.close(descriptor)
