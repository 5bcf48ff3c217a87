"""What DICOMweb shows: received instances, found by the tables, and produced objects, found by delivery tasks."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom.dataset import Dataset
from sqlmodel import col

from clara_flow.deployments.trigger import House
from clara_flow.errors import PayloadError
from clara_flow.records.database import statements
from clara_flow.records.dicom_models import Group, GroupState, Instance, Submission
from clara_flow.records.models import Job
from clara_flow.records.payload_store import PayloadFolder
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.privacy import hashed
from clara_flow.services.dicom.reading import read_header
from clara_flow.services.dicom.web_produced import Found, ProducedObjects
from clara_flow.services.dicom.web_query import ATTRIBUTES, INSTANCE, SERIES, STUDY, Level

log = logging.getLogger(__name__)

FIRST_PAGE, LARGEST_PAGE = 100, 3200  # rows; each page is four times the one before, since each costs a look at all
USUAL = tuple(name for names in ATTRIBUTES.values() for name in names)
COLUMNS = {
    STUDY: col(Instance.study_uid),
    SERIES: col(Instance.series_uid),
    INSTANCE: col(Instance.sop_instance_uid),
}
KEYS = {Level.STUDY: (STUDY,), Level.SERIES: (STUDY, SERIES), Level.INSTANCE: (STUDY, SERIES, INSTANCE)}


class Shelf:
    """Looks things up; for any thread."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.spool = Places.of(house.settings).spool
        self._produced = ProducedObjects(house)

    def find(self, level: Level, uids: Mapping[str, Sequence[str]], aetitle: str | None = None) -> Iterator[Found]:
        """Everything of that level with these UIDs, last come first; received through AE title `aetitle` (its name),
        or produced by jobs of it, where that is given. Raises ServiceError."""
        made: dict[tuple[str, ...], list[Found]] = {}
        for one in self._produced.find(uids, aetitle):
            made.setdefault(tuple(one.uids[name] for name in KEYS[level]), []).append(one)
        for rows in self._received(level, uids, aetitle):
            for found in self._located(level, rows):
                same = made.pop(tuple(found.uids[name] for name in KEYS[level]), [])
                yield self._with(found, level, same, aetitle) if same else found
        for same in made.values():
            yield replace(same[0], uids=_upto(level, same[0]), counted=_counted(level, same))

    def instances(self, uids: Mapping[str, Sequence[str]], aetitle: str | None = None) -> list[Found]:
        """All instances with these UIDs."""
        return list(self.find(Level.INSTANCE, uids, aetitle))

    def _with(self, found: Found, level: Level, made: Sequence[Found], aetitle: str | None) -> Found:
        """A study or series that has produced objects beside received ones: counted anew, by UID."""
        if level is Level.INSTANCE:
            return found
        uids = {name: (uid,) for name, uid in found.uids.items()}
        pages = self._received(Level.INSTANCE, uids, aetitle)
        all_of = [*made, *(one for rows in pages for one in self._located(Level.INSTANCE, rows))]
        return replace(found, counted=_counted(level, all_of))

    def _received(
        self, level: Level, uids: Mapping[str, Sequence[str]], aetitle: str | None
    ) -> Iterator[Sequence[Any]]:
        """Pages of rows (UIDs of the level..., series, instances, modalities, id of the last instance), last come
        first. What comes meanwhile is not among them, and no connection is held between two pages."""
        before: int | None = None
        size = FIRST_PAGE
        while True:
            with statements(self.house.engine) as connection:
                rows = connection.execute(_page(level, uids, aetitle, before, size)).all()
            if rows:
                yield rows
            if len(rows) < size:
                return
            before, size = rows[-1][-1], min(4 * size, LARGEST_PAGE)

    def _located(self, level: Level, rows: Iterable[Any]) -> Iterator[Found]:
        """With their files; what has none any more is left out."""
        rows = list(rows)
        ids = [row[-1] for row in rows]
        columns = (
            col(Instance.id),
            col(Instance.group_id),
            col(Instance.path),
            col(Instance.sop_instance_uid),
            col(Instance.sop_class_uid),
            col(Instance.transfer_syntax),
        )
        with statements(self.house.engine) as connection:
            files = {
                row[0]: row[1:] for row in connection.execute(sa.select(*columns).where(col(Instance.id).in_(ids)))
            }
        gone = {group_id for group_id, path, *_ in files.values() if not (self.spool / path).is_file()}
        payloads = self._payloads_of(gone) if gone else {}
        for *key, series, instances, modalities, last in rows:
            if last not in files:
                continue
            group_id, path, sop_instance, sop_class, syntax = files[last]
            place = self._place(path, sop_instance, payloads.get(group_id, ()))
            if place is None:
                continue
            counted: dict[str, Any] = {}
            if level is Level.STUDY:
                counted["ModalitiesInStudy"] = sorted(filter(None, modalities))
                counted["NumberOfStudyRelatedSeries"] = series
                counted["NumberOfStudyRelatedInstances"] = instances
            elif level is Level.SERIES:
                counted["NumberOfSeriesRelatedInstances"] = instances
            yield Found(dict(zip(KEYS[level], key, strict=True)), place, sop_class, syntax, counted)

    def _payloads_of(self, groups: Collection[uuid.UUID]) -> dict[uuid.UUID, list[uuid.UUID]]:
        """The payloads of the jobs that groups became."""
        query = (
            sa.select(col(Submission.group_id), col(Job.payload_id))
            .join(Job, col(Job.id) == col(Submission.job_id))
            .where(col(Submission.group_id).in_(list(groups)))
        )
        found: dict[uuid.UUID, list[uuid.UUID]] = {}
        with statements(self.house.engine) as connection:
            for group_id, payload_id in connection.execute(query):
                found.setdefault(group_id, []).append(payload_id)
        return found

    def _place(self, path: str, sop_instance: str, payloads: Iterable[uuid.UUID]) -> Path | None:
        """The file of an instance: in the spool, or in one of these payloads."""
        spooled = self.spool / path
        if spooled.is_file():
            return spooled
        for payload_id in payloads:
            if (file := _files_of(self.house.store.folder(payload_id).path).get(sop_instance)) is not None:
                return file
        return None


def _page(
    level: Level, uids: Mapping[str, Sequence[str]], aetitle: str | None, before: int | None, size: int
) -> sa.Select[Any]:
    """At most `size` rows as `Shelf._received` gives them, of those whose last instance has an id below `before`."""
    keys = {name: COLUMNS[name] for name in KEYS[level]}
    shown = [~col(Instance.superseded), col(Group.state) != GroupState.DISCARDED]
    shown += [COLUMNS[name].in_(list(wanted)) for name, wanted in uids.items()]
    if aetitle is not None:
        shown.append(col(Group.aetitle) == aetitle)
    last = sa.func.max(col(Instance.id))
    listed: list[Any] = [*(key.label(name) for name, key in keys.items()), last.label("last")]
    page = (
        sa.select(*listed)
        .join(Group, col(Group.id) == col(Instance.group_id))
        .where(*shown)
        .group_by(*keys.values())
        .order_by(last.desc())
        .limit(size)
    )
    wanted = (page.having(last < before) if before is not None else page).cte("page")
    columns = [wanted.c[name] for name in keys]
    return (  # only what is on the page is counted
        sa.select(
            *columns,
            sa.func.count(sa.distinct(col(Instance.series_uid))),
            sa.func.count(sa.distinct(col(Instance.sop_instance_uid))),
            sa.func.array_agg(sa.distinct(col(Instance.attributes)["Modality"].astext)),
            wanted.c.last,
        )
        .join_from(wanted, Instance, sa.and_(*(key == wanted.c[name] for name, key in keys.items())))
        .join(Group, col(Group.id) == col(Instance.group_id))
        .where(*shown)
        .group_by(*columns, wanted.c.last)
        .order_by(wanted.c.last.desc())
    )


@lru_cache(maxsize=64)
def _files_of(payload: Path) -> Mapping[str, Path]:
    """The DICOM files of a sealed input by SOP Instance UID. An input never changes, so they are read once."""
    folder, files = PayloadFolder(payload), {}
    try:
        names = [file.name for file in folder.input_manifest().files]
    except PayloadError:
        return {}
    for name in names:
        header = header_of(folder.input / name, ("SOPInstanceUID",))
        if header is not None:
            files[str(header.get("SOPInstanceUID", ""))] = folder.input / name
    return files


@lru_cache(maxsize=1024)
def usual_header(path: Path, keywords: tuple[str, ...] = ()) -> Dataset | None:
    """The attributes of results, and these. Received and produced files never change, so they are remembered."""
    return header_of(path, (*USUAL, *keywords))


def header_of(path: Path, keywords: Sequence[str] | None) -> Dataset | None:
    """These attributes of a file (None: all but the pixels); None when it is no DICOM file that can be read."""
    try:
        return read_header(path, keywords)
    except Exception as error:  # noqa: BLE001  pydicom raises whatever a broken file makes of it
        log.warning("file %s cannot be read: %s", hashed(str(path)), type(error).__name__)
        return None


def _upto(level: Level, found: Found) -> dict[str, str]:
    return {name: found.uids[name] for name in KEYS[level]}


def _counted(level: Level, files: Sequence[Found]) -> dict[str, Any]:
    """What is counted over instances, for a study or a series."""
    if level is Level.INSTANCE:
        return {}
    instances = len({one.uids[INSTANCE] for one in files})
    if level is Level.SERIES:
        return {"NumberOfSeriesRelatedInstances": instances}
    headers = [header_of(one.path, ("Modality",)) for one in files]
    return {
        "ModalitiesInStudy": sorted({str(header.Modality) for header in headers if header and "Modality" in header}),
        "NumberOfStudyRelatedSeries": len({one.uids[SERIES] for one in files}),
        "NumberOfStudyRelatedInstances": instances,
    }
