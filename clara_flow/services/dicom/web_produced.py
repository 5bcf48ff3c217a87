"""Objects that jobs produced: DICOM files that delivery tasks name, known by their UIDs for as long as they exist."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlmodel import col

from clara_flow.deployments.trigger import House
from clara_flow.records.database import statements
from clara_flow.records.dicom_models import Delivery, Group, Submission
from clara_flow.services.dicom.reading import read_header
from clara_flow.services.dicom.web_query import INSTANCE, SERIES, STUDY

OVERLAP = timedelta(minutes=5)  # a transaction may commit that much later than the time that it wrote
TIDY_S = 600.0


@dataclass(frozen=True, slots=True)
class Found:
    """A study, series or instance, and one file of it.

    uids        as far down as the level goes, by keyword.
    counted     values that are counted over its files, by keyword.
    """

    uids: Mapping[str, str]
    path: Path
    sop_class: str
    transfer_syntax: str
    counted: Mapping[str, Any] = field(default_factory=dict)


class ProducedObjects:
    """What delivery tasks name, read once for each file. For any thread."""

    def __init__(self, house: House) -> None:
        self.house = house
        self._lock = threading.Lock()
        self._seen: datetime | None = None
        self._files: dict[Path, tuple[Found, str]] = {}  # and the job
        self._others: set[Path] = set()  # no DICOM
        self._tidy_at = 0.0

    def find(self, uids: Mapping[str, Sequence[str]], aetitle: str | None = None) -> Iterator[Found]:
        """Those with these UIDs, of jobs of AE title `aetitle` (its name) where that is given. Raises ServiceError."""
        with self._lock:
            self._refresh()
            found = list(self._files.values())
        jobs = None if aetitle is None else self._jobs_of(aetitle)
        for one, job in found:
            is_wanted = all(one.uids[name] in wanted for name, wanted in uids.items())
            if is_wanted and (jobs is None or job in jobs) and one.path.is_file():
                yield one

    def _refresh(self) -> None:
        """Look at the tasks that are new."""
        query = sa.select(
            col(Delivery.job_id), col(Delivery.payload_id), col(Delivery.uris), col(Delivery.created)
        ).order_by(col(Delivery.created))
        if self._seen is not None:
            query = query.where(col(Delivery.created) >= self._seen - OVERLAP)
        with statements(self.house.engine) as connection:
            rows = connection.execute(query).all()
        for job, payload, uris, created in rows:
            self._seen = created
            for path in self._paths(payload, uris):
                if path not in self._files and path not in self._others:
                    self._add(path, job)
        if time.monotonic() > self._tidy_at:
            self._tidy_at = time.monotonic() + TIDY_S
            self._files = {path: one for path, one in self._files.items() if path.is_file()}
            self._others = {path for path in self._others if path.is_file()}

    def _paths(self, payload: str, uris: Sequence[str]) -> Iterator[Path]:
        """The files, as far as they lie in the payload: whoever registered them does not choose what is shown."""
        try:
            folder = self.house.store.folder(uuid.UUID(payload)).path.resolve()
        except ValueError:
            return
        for uri in uris:
            path = (folder / uri).resolve()
            if path.is_relative_to(folder) and path.is_file():
                yield path

    def _add(self, path: Path, job: str) -> None:
        try:
            names = (STUDY, SERIES, INSTANCE)
            header = read_header(path, [*names, "SOPClassUID"])
            uids = {name: str(header[name].value) for name in names}
            syntax = str(header.file_meta.TransferSyntaxUID)
            self._files[path] = Found(uids, path, str(header.SOPClassUID), syntax), job
        except Exception:  # noqa: BLE001  pydicom raises whatever a file that is no DICOM makes of it
            self._others.add(path)

    def _jobs_of(self, aetitle: str) -> set[str]:
        query = (
            sa.select(col(Submission.job_id))
            .join(Group, col(Group.id) == col(Submission.group_id))
            .where(col(Group.aetitle) == aetitle)
        )
        with statements(self.house.engine) as connection:
            return {str(row[0]) for row in connection.execute(query)}
