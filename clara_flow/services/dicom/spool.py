"""Received instances on the disk, and the journals that tell of them.

    journals/<uuid>.jsonl               what was received, by one writer
    instances/<association>/<n>.dcm     Part 10 files
    steps/                              see `procedure_steps`

An instance is there once its line is in a journal, and the line is written after the file is durable: whatever happens
to the writer, an instance that was acknowledged is there whole. A file without a line was never acknowledged.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from clara_flow.errors import InvalidTransition, StorageError
from clara_flow.records.durable import naming_storage_problems, sync
from clara_flow.services.dicom.incoming import AssociationFolder, Incoming
from clara_flow.services.dicom.journal import INSTANCES, JOURNALS, SUFFIX, JournalReader, JournalWriter
from clara_flow.services.dicom.journal_entries import Closed, Entry, How, InstanceFacts, Opened, now, to_line

__all__ = ["Incoming", "InstanceFacts", "JournalReader", "Spool", "SpoolWriter", "Swept"]

log = logging.getLogger(__name__)

JOURNAL_BYTES = 64 * 2**20  # from then on the next association begins another one
RETRY_S = 1.0
FORGOTTEN_S = 3600.0  # a journal that has no name after so long never gets one


@dataclass(frozen=True, slots=True)
class Swept:
    """How many a sweep removed."""

    files: int
    folders: int


class Spool:
    """The spool at `root`. Raises StorageError where the disk does not let it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def writer(self, fsync: bool, *, journal_bytes: int = JOURNAL_BYTES) -> SpoolWriter:
        """A writer with a journal of its own."""
        return SpoolWriter(self.root, fsync=fsync, journal_bytes=journal_bytes)

    def reader(self) -> JournalReader:
        """Of its journals."""
        return JournalReader(self.root)

    def sweep(self) -> Swept:
        """Remove what writers that are gone left: files without a line, and associations' folders that are empty.

        Safe beside writers and readers. What a journal that was removed told of is not looked at: its reader has it.
        """
        reader = self.reader()
        with naming_storage_problems(self.root):
            # Folders are listed before journals: the line of an association is older than its folder.
            folders = [path for path in (self.root / INSTANCES).glob("*") if path.is_dir()]
            _remove_unnamed(self.root / JOURNALS)
        files, taking = 0, set[str]()
        for name in reader.names():
            if reader.is_over(name):
                files += reader.sweep(name)
            else:
                taking |= _open_in(reader, name)
        emptied = [path for path in folders if path.name not in taking and _remove_empty(path)]
        return Swept(files, len(emptied))


class SpoolWriter:
    """Takes instances of associations, for any thread of one process. Raises StorageError.

    An association stays with the journal that it began in. A long journal takes no new ones, and is given up when its
    last has ended: only then is it over for readers.
    """

    def __init__(self, root: Path, *, fsync: bool, journal_bytes: int = JOURNAL_BYTES) -> None:
        self.root = root
        self.fsync = fsync
        self._journal_bytes = journal_bytes
        self._lock = threading.Lock()
        self._open: dict[UUID, AssociationFolder] = {}
        self._owed: list[tuple[AssociationFolder, bytes]] = []
        self._retry: threading.Timer | None = None
        self._is_closed = False
        with naming_storage_problems(root):
            for folder in (root / JOURNALS, root / INSTANCES):
                folder.mkdir(parents=True, exist_ok=True)
            if fsync:
                sync(root)
                sync(root.parent)
        self._journal = JournalWriter(root / JOURNALS, fsync=fsync)

    def open_association(self, calling: str, called: str, aetitle: str, peer: str, require_release: bool) -> UUID:
        """Note an association, see `journal_entries.Opened`; the line is durable with that of its first instance."""
        opened = Opened(
            association=uuid4(), at=now(), calling=calling, called=called, aetitle=aetitle, peer=peer,
            require_release=require_release,
        )  # fmt: skip
        home = self._home(opened.association)
        try:
            home.journal.append(to_line(opened), durable=False)
        except BaseException:
            self._leave(home)
            raise
        with self._lock:
            self._open[home.association] = home
        return home.association

    def begin(self, association: UUID) -> Incoming:
        """The next instance of an association that is open."""
        with self._lock:
            home = self._open.get(association)
        if home is None:
            raise InvalidTransition(f"association {association} is not open")
        return Incoming(home)

    def note(self, entry: Entry, *, durable: bool = True) -> None:
        """Write another line of an association that is open; return when it is durable, if that is asked for."""
        with self._lock:
            home = self._open.get(entry.association)
        if home is None:
            raise InvalidTransition(f"association {entry.association} is not open")
        home.journal.append(to_line(entry), durable=durable)

    def close_association(self, association: UUID, how: How) -> None:
        """Note its end, when none of its instances is on its way any more; return when that is durable.

        A full disk is no reason to fail: then the line is written when there is room again.
        """
        line = to_line(Closed(association=association, at=now(), how=how))
        with self._lock:
            home = self._open.pop(association, None)
            if home is None:
                raise InvalidTransition(f"association {association} is not open")
            home.close()
            self._owed.append((home, line))
        self._pay()

    def close(self) -> None:
        """Nothing more comes; what is still open was lost."""
        for association in list(self._open):
            self.close_association(association, "lost")
        with self._lock:
            self._is_closed = True
            if self._retry is not None:
                self._retry.cancel()
        self._pay()
        for journal in {self._journal, *(home.journal for home, _ in self._owed)}:
            journal.close()

    def _home(self, association: UUID) -> AssociationFolder:
        """Of a new association, with the journal that takes it."""
        with self._lock:
            long = self._journal
            if long.size >= self._journal_bytes:
                self._journal = JournalWriter(self.root / JOURNALS, fsync=self.fsync)
                if not long.associations:
                    long.close()
            self._journal.associations.add(association)
            folder = self.root / INSTANCES / str(association)
            return AssociationFolder(association, folder, self._journal, fsync=self.fsync)

    def _leave(self, home: AssociationFolder) -> None:
        """Its journal takes nothing more of it."""
        with self._lock:
            home.journal.associations.discard(home.association)
            if not home.journal.associations and home.journal is not self._journal:
                home.journal.close()

    def _pay(self) -> None:
        """Write the ends that are owed; what cannot be written is tried again in a while."""
        with self._lock:
            owed, self._owed = self._owed, []
        for home, line in owed:
            try:
                home.journal.append(line)
            except StorageError as error:
                log.error("the end of association %s is not in the journal: %s", home.association, error)
                with self._lock:
                    self._owed.append((home, line))
            else:
                self._leave(home)
        with self._lock:
            if self._owed and self._retry is None and not self._is_closed:
                self._retry = threading.Timer(RETRY_S, self._try_again)
                self._retry.daemon = True
                self._retry.start()

    def _try_again(self) -> None:
        with self._lock:
            self._retry = None
        self._pay()


def _open_in(reader: JournalReader, name: str) -> set[str]:
    """Associations that may still get instances."""
    associations: set[str] = set()
    for entry in reader.entries(name):
        if isinstance(entry, Opened):
            associations.add(str(entry.association))
        elif isinstance(entry, Closed):
            associations.discard(str(entry.association))
    return associations


def _remove_empty(folder: Path) -> bool:
    with suppress(OSError):
        folder.rmdir()
        return True
    return False


def _remove_unnamed(folder: Path) -> None:
    """Journals whose writer ended before they had a name."""
    for path in folder.glob(f".*{SUFFIX}"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > FORGOTTEN_S:
                path.unlink()
