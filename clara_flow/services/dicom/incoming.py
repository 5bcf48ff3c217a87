"""An instance on its way from a peer to the disk."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from uuid import UUID

from clara_flow.errors import InvalidTransition
from clara_flow.records.durable import begin_to_sync, naming_storage_problems, sync
from clara_flow.services.dicom.journal import INSTANCES, JournalDoubtful, JournalWriter
from clara_flow.services.dicom.journal_entries import InstanceFacts, Stored, now, to_line

EARLY_SYNC_BYTES = 128 * 1024  # the disk is given so much at once while more is arriving


class AssociationFolder:
    """Where the instances of one association lie, and the journal that tells of them; made with the first of them."""

    def __init__(self, association: UUID, folder: Path, journal: JournalWriter, *, fsync: bool) -> None:
        self.association = association
        self.folder = folder
        self.journal = journal
        self.fsync = fsync
        self.is_closed = False
        self._numbers = count(1)
        self._making = threading.Lock()
        self._descriptor = -1  # of the folder, from its first file on

    def new_file(self) -> tuple[str, int]:
        """Name and descriptor of an empty one. Raises StorageError."""
        name = f"{next(self._numbers)}.dcm"
        with naming_storage_problems(self.folder.parent):
            self._make()
            return name, os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640, dir_fd=self._descriptor)

    def sync(self) -> None:
        """Make the names of its files durable. Raises OSError."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """No instance more; a folder without any goes."""
        self.is_closed = True
        with self._making:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
        with suppress(OSError):
            self.folder.rmdir()

    def _make(self) -> None:
        with self._making:
            if self._descriptor < 0:
                self.folder.mkdir(exist_ok=True)
                if self.fsync:
                    sync(self.folder.parent)
                self._descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)


class Incoming:
    """Bytes of a file, then `commit` or `abandon`; leaving the `with` abandons what was not committed.

    For one thread at a time. Raises StorageError.
    """

    def __init__(self, home: AssociationFolder) -> None:
        self._home = home
        self._name, self._descriptor = home.new_file()
        self._given = 0  # bytes that the disk has begun with
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes of the file."""
        try:
            written = os.write(self._descriptor, data)
            while written < len(data):
                written += os.write(self._descriptor, memoryview(data)[written:])
        except OSError:
            with naming_storage_problems(self._home.folder):
                raise
        self.size += written
        if self._home.fsync and self.size - self._given >= EARLY_SYNC_BYTES:
            begin_to_sync(self._descriptor, self._given, self.size - self._given)
            self._given = self.size

    def commit(self, facts: InstanceFacts) -> None:
        """Return when the whole file and its line in the journal are durable.

        After a StorageError there is neither of them; after a JournalDoubtful both may be.
        """
        home = self._home
        try:
            if home.is_closed or self._descriptor < 0:
                raise InvalidTransition(f"association {home.association} takes no instance any more")
            with naming_storage_problems(home.folder):
                if home.fsync:
                    os.fdatasync(self._descriptor)
                    home.sync()
            home.journal.append(to_line(self._stored(facts)))
        except JournalDoubtful:  # who finds the line must find the file
            self._close()
            raise
        except BaseException:
            self.abandon()
            raise
        self._close()

    def abandon(self) -> None:
        """Nothing is left of it. Harmless after `commit`."""
        if self._descriptor >= 0:
            self._close()
            with suppress(OSError):  # a file without a line is swept some day
                (self._home.folder / self._name).unlink()

    def __enter__(self) -> Incoming:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1

    def _stored(self, facts: InstanceFacts) -> Stored:
        return Stored(
            association=self._home.association,
            at=now(),
            path=f"{INSTANCES}/{self._home.association}/{self._name}",
            size=self.size,
            sop_class=facts.sop_class,
            sop_instance=facts.sop_instance,
            study=facts.study,
            series=facts.series,
            transfer_syntax=facts.transfer_syntax,
            attributes=facts.attributes,
            keys=facts.keys,
        )
