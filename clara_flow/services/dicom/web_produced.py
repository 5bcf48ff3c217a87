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
LISTED_AT_ONCE = 5000  # tasks: their ids alone
READ_AT_ONCE = 50  # tasks: their files
NO_ID = uuid.UUID(int=0)


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
    """What delivery tasks name, each file read once. For any thread.

    The lock is held for READ_AT_ONCE tasks at a time, and what was read by one request is there for all: none waits for
    everything that another one reads.
    """

    def __init__(self, house: House) -> None:
        self.house = house
        self._lock = threading.Lock()
        self._seen: datetime | None = None  # all tasks until then were read
        self._read: dict[uuid.UUID, datetime] = {}  # tasks that were read, of the last OVERLAP
        self._files: dict[Path, tuple[Found, str]] = {}  # and the job
        self._others: set[Path] = set()  # no DICOM
        self._tidy_at = 0.0

    def find(self, uids: Mapping[str, Sequence[str]], aetitle: str | None = None) -> Iterator[Found]:
        """Those with these UIDs, of jobs of AE title `aetitle` (its name) where that is given. Raises ServiceError."""
        self._refresh()
        with self._lock:
            known = list(self._files.values())
        wanted = [one for one in known if all(one[0].uids[name] in values for name, values in uids.items())]
        jobs = None if aetitle is None else self._jobs_of(aetitle, {job for _, job in wanted})
        for one, job in wanted:
            if (jobs is None or job in jobs) and one.path.is_file():
                yield one

    def _refresh(self) -> None:
        """Look at the tasks that are new."""
        after = (self._seen - OVERLAP, NO_ID) if self._seen is not None else None
        while tasks := self._tasks(after):
            unread = [task for task, _ in tasks if task not in self._read]
            for start in range(0, len(unread), READ_AT_ONCE):
                with self._lock:
                    self._take(unread[start : start + READ_AT_ONCE])
            after = tasks[-1][1], tasks[-1][0]
            with self._lock:
                self._read.update(tasks)
        with self._lock:
            if after is not None and (self._seen is None or after[0] > self._seen):
                self._seen = after[0]
            if self._seen is not None:
                oldest = self._seen - OVERLAP
                self._read = {task: created for task, created in self._read.items() if created >= oldest}
            self._tidy()

    def _tasks(self, after: tuple[datetime, uuid.UUID] | None) -> list[tuple[uuid.UUID, datetime]]:
        """The next LISTED_AT_ONCE tasks, the oldest first."""
        place = sa.tuple_(col(Delivery.created), col(Delivery.id))
        query = sa.select(col(Delivery.id), col(Delivery.created)).order_by(col(Delivery.created), col(Delivery.id))
        if after is not None:
            query = query.where(place > sa.tuple_(*after))
        with statements(self.house.engine) as connection:
            return [(row[0], row[1]) for row in connection.execute(query.limit(LISTED_AT_ONCE))]

    def _take(self, tasks: Sequence[uuid.UUID]) -> None:
        """Read the files of these that are not known."""
        query = sa.select(col(Delivery.job_id), col(Delivery.payload_id), col(Delivery.uris))
        with statements(self.house.engine) as connection:
            rows = connection.execute(query.where(col(Delivery.id).in_(tasks))).all()
        for job, payload, uris in rows:
            for path in self._paths(payload, uris):
                if path not in self._files and path not in self._others:
                    self._add(path, job)

    def _tidy(self) -> None:
        """Forget files that are gone, now and then."""
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

    def _jobs_of(self, aetitle: str, jobs: set[str]) -> set[str]:
        """Those of these jobs that groups of the AE title became."""
        ids = [job for job in map(_uuid_of, jobs) if job is not None]
        query = (
            sa.select(col(Submission.job_id))
            .join(Group, col(Group.id) == col(Submission.group_id))
            .where(col(Group.aetitle) == aetitle, col(Submission.job_id) == sa.func.any(sa.bindparam("ids", ids)))
        )
        with statements(self.house.engine) as connection:
            return {str(row[0]) for row in connection.execute(query)}


def _uuid_of(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
