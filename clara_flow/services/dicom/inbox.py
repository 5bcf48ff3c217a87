"""The watched folder: files below `<inbox>/<AE title>/` come in as if they had been sent to that AE title.

A file is taken when it has stopped changing, through the same spool as what comes by C-STORE; then it is moved to
`<inbox>/.done/`, or to `<inbox>/.refused/` with a text that says why. What begins with a dot, or ends like a file that
somebody still writes, is left alone, and so are symbolic links.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from clara_flow.errors import NotFound, StorageError
from clara_flow.services.dicom.file_intake import FileDoor, FileIntake, OpenAssociation, Outcome
from clara_flow.services.dicom.heartbeats import Heartbeats
from clara_flow.services.dicom.listener_config import ListenerConfigFile
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.privacy import hashed
from clara_flow.services.dicom.spool import Spool
from clara_flow.services.dicom.wire.command_set import Status
from clara_flow.settings import Settings

log = logging.getLogger(__name__)

NAME = "inbox"
LOOK_S = 1.0
SETTLED_S = 2.0
RETRY_S = 30.0  # until a file that could not be read or stored is tried again
DONE, REFUSED = ".done", ".refused"
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".filepart")
MOST_FILES = 1000  # of one round: an association that never ended would never be released
PIECE_BYTES = 1 << 20
LONGEST_NAME_BYTES = 200  # there is room for a number and an ending behind it (NAME_MAX is 255)
# A folder has the name of a file that was put away before; a path that is as long as can be becomes longer.
NAMES_IN_THE_WAY = frozenset({errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG})
CALLING, PEER = "INBOX", "localhost"
OURS = frozenset({Status.OUT_OF_RESOURCES, Status.PROCESSING_FAILURE})  # not the file's fault: it is tried again

Look = tuple[int, int, int]  # inode, size in bytes, time of the last change in ns


class Inbox:
    """Watches the folder `settings.dicom_inbox`."""

    def __init__(self, settings: Settings, spool: Spool, config_file: ListenerConfigFile) -> None:
        assert settings.dicom_inbox is not None  # noqa: S101  whoever has no inbox makes none
        self.folder = settings.dicom_inbox
        self._heartbeats = Heartbeats(Places.of(settings).heartbeats)
        self._door = FileDoor(settings, spool, config_file)
        self._seen: dict[Path, Look] = {}
        self._warned: set[str] = set()
        self._later: dict[Path, float] = {}  # until when of the monotonic clock

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop` is set. Raises StorageError when the spool cannot be used: begun again, it goes on."""
        try:
            while not stop.is_set():
                taken = self.look(stop)
                self._heartbeats.beat(NAME, waiting=len(self._seen))
                if not taken:
                    stop.wait(LOOK_S)
        finally:
            self._door.close()

    def look(self, stop: threading.Event | None = None) -> int:
        """Look once; take what looks as it did the last time. Returns how many files were taken or refused."""
        seen: dict[Path, Look] = {}
        handled = 0
        for folder in self._folders():
            ready = []
            for path, now in _files(folder):
                is_settled = self._seen.get(path) == now and time.time_ns() - now[2] > SETTLED_S * 1e9
                if is_settled and self._later.get(path, 0.0) <= time.monotonic():
                    ready.append((path, now))
                seen[path] = now
            if ready and not (stop is not None and stop.is_set()):
                handled += self._take(folder, ready[:MOST_FILES], seen, stop)
        self._seen = seen
        self._later = {path: until for path, until in self._later.items() if path in seen}
        return handled

    def _folders(self) -> list[Path]:
        """Those of AE titles."""
        try:
            return sorted(path for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        except OSError as error:
            self._warn("", f"the inbox cannot be read: {error.strerror}")
            return []

    def _take(
        self, folder: Path, ready: list[tuple[Path, Look]], seen: dict[Path, Look], stop: threading.Event | None
    ) -> int:
        try:
            rule = self._door.rule_of(folder.name)
        except NotFound:  # somebody may have put a patient's folder here: its name is not for the log
            self._warn(
                folder.name,
                f"files in the inbox's folder {hashed(folder.name)} wait: its name is none of our AE titles; "
                "`clara-flow dicom aetitle list` shows them",
            )
            return 0
        self._warned.discard(folder.name)
        if self._door.space.is_short():
            self._warn(folder.name, "files in the inbox wait: the disk is nearly full")
            return 0
        handled = 0
        with self._door.association(rule, calling=CALLING, peer=PEER) as association:
            for path, look in ready:
                if stop is not None and stop.is_set():
                    break
                outcome = self._read(association, path, look)
                if outcome is None or (not outcome.is_success and outcome.status in OURS):
                    self._later[path] = time.monotonic() + RETRY_S
                    continue
                self._put_away(path, DONE if outcome.is_success else REFUSED, outcome.reason)
                seen.pop(path, None)
                handled += 1
        return handled

    def _read(self, association: OpenAssociation, path: Path, look: Look) -> Outcome | None:
        """What became of a file; None: it changed meanwhile, or cannot be read now."""
        intake = FileIntake(association)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                while piece := file.read(PIECE_BYTES):
                    intake.write(piece)
                if _look(os.fstat(file.fileno())) != look:
                    intake.abandon()
                    return None
        except OSError as error:
            intake.abandon()
            self._warn(str(path), f"file {hashed(str(path))} of the inbox cannot be read: {error.strerror}")
            return None
        return intake.finish()

    def _put_away(self, path: Path, where: str, reason: str) -> None:
        """Move it out of the way. A file that cannot be moved is taken again: its group has it once all the same."""
        target = self.folder / where / path.relative_to(self.folder)
        if len(os.fsencode(path.name)) > LONGEST_NAME_BYTES:
            target = target.with_name(f"{hashed(path.name)}~")
        number, first = 0, target
        try:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                if error.errno not in NAMES_IN_THE_WAY:
                    raise
                target = first = self.folder / where / path.relative_to(self.folder).parts[0] / f"{hashed(str(path))}~"
                target.parent.mkdir(parents=True, exist_ok=True)
            while target.exists():
                number += 1
                target = first.with_name(f"{first.name}.{number}")
            path.rename(target)
            if where == REFUSED:
                target.with_name(f"{target.name}.reason.txt").write_text(f"{reason}\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"files of the inbox {self.folder} cannot be moved to {where}: {error.strerror}. "
                "Let this user write in it.",
                path=str(self.folder),
            ) from None

    def _warn(self, about: str, text: str) -> None:
        """Once for each folder or file, until it is well again."""
        if about not in self._warned:
            self._warned.add(about)
            log.warning("%s", text)


def _files(folder: Path) -> Iterator[tuple[Path, Look]]:
    """Files below a folder that may be finished."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith(".") or name.lower().endswith(UNFINISHED):
                continue
            path = Path(place) / name
            with suppress(OSError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    yield path, _look(status)


def _look(status: os.stat_result) -> Look:
    return status.st_ino, status.st_size, status.st_mtime_ns
