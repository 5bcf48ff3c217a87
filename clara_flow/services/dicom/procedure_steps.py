"""Performed procedure steps that modalities told of, as files of the spool.

    steps/<digest>.json     a step after its modality's last word
    steps/.lock             held while a step is changed

All listener processes of a spool look here whether there is a step and whether it is over: what one of them was told,
another one knows at once, with no database between. The records learn of it by a line in a journal that names the file.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from clara_flow.errors import Conflict, InvalidTransition, NotFound
from clara_flow.records.dicom_lines import PerformedSeries, Step, digest
from clara_flow.records.dicom_models import StepStatus
from clara_flow.records.durable import naming_storage_problems, sync, write_durably
from clara_flow.services.dicom.privacy import hashed

STEPS = "steps"  # folder of a spool
LOCK = ".lock"


class ProcedureSteps:
    """The steps of the spool at `root`; for any thread of any process. Raises StorageError where the disk does not let
    it."""

    def __init__(self, root: Path, *, fsync: bool = True) -> None:
        self.root = root
        self.folder = root / STEPS
        self._fsync = fsync

    def create(self, step: Step) -> None:
        """A modality begins a step; return when that is durable. Raises Conflict when there is one of that UID."""
        with self._changing():
            if self._path(step.uid).exists():
                raise Conflict(f"there is a procedure step {hashed(step.uid)} already")
            self._write(step)

    def change(self, uid: str, status: StepStatus | None, series: tuple[PerformedSeries, ...] | None) -> None:
        """A modality says something of a step, None: nothing of that; return when it is durable.

        Raises NotFound; InvalidTransition when the step is over; ValueError when its file cannot be read.
        """
        with self._changing():
            step = self.read(self.path_of(uid))
            if step is None:
                raise NotFound(f"there is no procedure step {hashed(uid)}")
            if step.status is not StepStatus.IN_PROGRESS:
                raise InvalidTransition(f"the procedure step {hashed(uid)} is over")
            self._write(
                replace(
                    step,
                    version=step.version + 1,
                    status=status or step.status,
                    series=step.series if series is None else series,
                )
            )

    def path_of(self, uid: str) -> str:
        """A step's file, relative to the spool."""
        return self._path(uid).relative_to(self.root).as_posix()

    def read(self, path: str) -> Step | None:
        """The step in that file, None when there is none. Raises ValueError for a file that holds something else."""
        with naming_storage_problems(self.folder):
            try:
                content = (self.root / path).read_text(encoding="utf-8")
            except FileNotFoundError:
                return None
        return _step_of(content)

    def forget(self, kept_s: float) -> int:
        """Remove steps of which nothing was said for so many seconds, and halves that killed writers left; how many."""
        removed = 0
        with self._changing():
            for path in self.folder.iterdir():
                if path.name != LOCK and time.time() - path.stat().st_mtime > kept_s:
                    path.unlink()
                    removed += 1
        return removed

    def _path(self, uid: str) -> Path:
        return self.folder / f"{digest(uid)}.json"

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Nobody else changes a step meanwhile; the kernel ends that when a process is killed."""
        with naming_storage_problems(self.folder):
            if not self.folder.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                if self._fsync:
                    sync(self.root)
            descriptor = os.open(self.folder / LOCK, os.O_CREAT | os.O_RDWR, 0o640)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)

    def _write(self, step: Step) -> None:
        path, text = self._path(step.uid), json.dumps(asdict(step), separators=(",", ":"))
        if self._fsync:
            write_durably(path, text)
            return
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.rename(path)


def _step_of(text: str) -> Step:
    try:
        content: dict[str, Any] = json.loads(text)
        return Step(
            uid=str(content["uid"]),
            version=int(content["version"]),
            status=StepStatus(content["status"]),
            studies=tuple(content["studies"]),
            series=tuple(
                PerformedSeries(one["series"], one["sop_class"], tuple(one["instances"])) for one in content["series"]
            ),
        )
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        raise ValueError("this is no procedure step") from None
