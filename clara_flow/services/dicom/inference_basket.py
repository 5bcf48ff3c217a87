"""What was fetched for an inference request so far: whole files in a folder of its own, beside the payloads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from clara_flow.errors import ClaraFlowError, InputError
from clara_flow.records.durable import naming_storage_problems, remove_tree, sync
from clara_flow.services.dicom.reading import read_header
from clara_flow.services.dicom.space import SpaceCheck
from clara_flow.services.dicom.wire.negotiation import is_uid

DICOM, FHIR = "dcm", "ehr"


class Stopped(ClaraFlowError):
    """The process ends: what was fetched stays, and somebody goes on later."""


class NoRoom(ClaraFlowError):
    """The disk is nearly full: nothing is fetched until there is room."""


class Basket:
    """Files below `folder`: `dcm/<SOP Instance UID>.dcm` and `ehr/<type>-<id>.json|xml`.

    items   what was fetched whole already; on_item: is told of each item more. on_progress: is told how it goes on,
            for people.

    Raises StorageError; Stopped and NoRoom from `check`.
    """

    def __init__(
        self,
        folder: Path,
        items: Collection[str],
        on_item: Callable[[str], None],
        on_progress: Callable[[str], None],
        *,
        space: SpaceCheck,
        stop: threading.Event,
    ) -> None:
        self.folder = folder
        self._items = set(items)
        self._on_item = on_item
        self.tell = on_progress
        self._space = space
        self._stop = stop
        with naming_storage_problems(folder):
            for kind in (DICOM, FHIR):
                (folder / kind).mkdir(parents=True, exist_ok=True)
                for half in (folder / kind).glob(".*"):  # of a process that was killed
                    half.unlink()

    def check(self) -> None:
        """To be called between two things to fetch, and now and then within one."""
        if self._stop.is_set():
            raise Stopped("the fetching of inputs was stopped")
        if self._space.is_short():
            raise NoRoom("the disk is nearly full: inputs are fetched when there is room")

    def has(self, item: str) -> bool:
        """Whether that was fetched whole."""
        return item in self._items

    def note(self, item: str) -> None:
        """That was fetched whole, and is on the disk."""
        with naming_storage_problems(self.folder):
            for kind in (DICOM, FHIR):
                sync(self.folder / kind)
        self._on_item(item)
        self._items.add(item)

    @contextmanager
    def instance(self) -> Iterator[BinaryIO]:
        """A file to write a DICOM file to; it gets its name at the end. Raises InputError when it is none."""
        with self._file(DICOM) as (file, partial):
            yield file
            file.flush()
            try:
                uid = str(read_header(partial, ["SOPInstanceUID"]).SOPInstanceUID)
            except Exception:  # noqa: BLE001  pydicom raises whatever broken bytes make of it
                raise InputError("what was sent is no DICOM file") from None
            if not is_uid(uid):
                raise InputError("what was sent has no SOP Instance UID")
            partial.rename(self.folder / DICOM / f"{uid}.dcm")

    @contextmanager
    def record(self, name: str) -> Iterator[BinaryIO]:
        """A file to write a FHIR resource to."""
        with self._file(FHIR) as (file, partial):
            yield file
            file.flush()
            partial.rename(self.folder / FHIR / name)

    def link(self, uid: str, path: Path) -> bool:
        """Take a whole DICOM file of the same disk without a copy; False when it is not there any more."""
        target = self.folder / DICOM / f"{uid}.dcm"
        with naming_storage_problems(self.folder):
            with suppress(FileExistsError, FileNotFoundError):
                target.hardlink_to(path)
            return target.exists()

    def files(self) -> dict[str, Path]:
        """Everything whole, by its name in the payload."""
        found = sorted(path for kind in (DICOM, FHIR) for path in (self.folder / kind).glob("[!.]*"))
        return {path.relative_to(self.folder).as_posix(): path for path in found}

    def remove(self) -> None:
        """Nothing of it is needed any more."""
        remove_tree(self.folder)

    @contextmanager
    def _file(self, kind: str) -> Iterator[tuple[BinaryIO, Path]]:
        """A file under a name that does not count, flushed to the disk in the end; gone after any error."""
        partial = self.folder / kind / f".{uuid4().hex}"
        try:
            with naming_storage_problems(self.folder), partial.open("wb") as file:
                yield file, partial
                os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
