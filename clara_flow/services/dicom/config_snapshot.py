"""Keeps the listeners' file in step with the tables, and removes AE titles that were deleted when they are done."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from clara_flow.records import dicom_config
from clara_flow.records.dicom_models import AeTitle, DestinationKind, SourceNode
from clara_flow.records.doorbell import Doorbell
from clara_flow.records.durable import naming_storage_problems
from clara_flow.services.dicom.grouping.processors import group_tags
from clara_flow.services.dicom.heartbeats import Heartbeats
from clara_flow.services.dicom.journal_mark import is_read, journal_mark
from clara_flow.services.dicom.listener_config import (
    AeTitleRule,
    CommitterRule,
    ListenerConfig,
    ListenerConfigFile,
    SourceRule,
)
from clara_flow.settings import Settings

log = logging.getLogger(__name__)

HEARTBEAT = "snapshot"
LOOK_S = 5.0  # between looks while nobody rings
TICK_S = 1.0  # between looks at `stop`
QUIET_S = 90.0  # more than the 60 s that an association may be silent
OWN_TITLE: str = Settings.model_fields["dicom_scu_ae_title"].default


def snapshot(engine: sa.Engine, own_title: str = OWN_TITLE) -> ListenerConfig:
    """What listeners must know of the tables as they are now. own_title: how destinations know us by default."""
    aetitles = dicom_config.list_aetitles(engine)
    return ListenerConfig(
        aetitles={row.ae_title: _rule(row) for row in aetitles},
        sources=tuple(_source(row) for row in dicom_config.list_sources(engine)),
        committers=tuple(
            CommitterRule(ae_title=row.ae_title, host=row.host, called=row.calling_ae or own_title)
            for row in dicom_config.list_destinations(engine)
            if row.storage_commitment and row.kind is DestinationKind.DIMSE
        ),
        group_tags=group_tags(aetitles),
    )


@dataclass(slots=True)
class _Watched:
    """A deleted AE title: since when (monotonic) nothing happens at it, and how long the journals were after that."""

    drain: dicom_config.Drain
    since: float
    journals: dict[str, int] | None = None


class SnapshotWriter:
    """Writes `path` when something changed.

    path        the listeners' file, in the spool.
    quiet_s     how long nothing may have come for a deleted AE title before it is removed: longer than an association
                may be silent, so that none is left that was accepted before.
    own_title   our AE title for destinations that know us by no other.
    """

    def __init__(
        self,
        engine: sa.Engine,
        path: Path,
        *,
        quiet_s: float = QUIET_S,
        own_title: str = OWN_TITLE,
        heartbeats: Heartbeats | None = None,
    ) -> None:
        self.engine, self.path, self.quiet_s, self.own_title = engine, path, quiet_s, own_title
        self._heartbeats = heartbeats
        self._drains: dict[str, _Watched] = {}

    def run(self, stop: threading.Event) -> None:
        """Write at start, and whenever somebody rings, until `stop` is set. Raises ServiceError, StorageError."""
        with closing(Doorbell(self.engine, [dicom_config.CHANNEL])) as doorbell:
            due = time.monotonic()
            while not stop.is_set():
                if time.monotonic() >= due:
                    self.look()
                    due = time.monotonic() + LOOK_S
                if self._heartbeats is not None:
                    self._heartbeats.beat(HEARTBEAT)
                if doorbell.wait(TICK_S):
                    due = time.monotonic()

    def look(self) -> None:
        """Write the file if it does not say what the tables say; remove AE titles that have drained."""
        self._remove_drained()
        now = snapshot(self.engine, self.own_title)
        with naming_storage_problems(self.path.parent):
            try:
                written = self.path.exists() and ListenerConfigFile(self.path).current() == now
            except (ValueError, KeyError, TypeError):
                written = False  # somebody else's hand was in it
            if not written:
                now.write(self.path)
                log.info("listeners know %d AE titles and %d sources from now on", len(now.aetitles), len(now.sources))

    def _remove_drained(self) -> None:
        clock = time.monotonic()  # not the time of day, which may be set
        drains = dicom_config.draining_aetitles(self.engine)
        known = self._drains
        self._drains = {
            name: known[name] if name in known and known[name].drain == drain else _Watched(drain, clock)
            for name, drain in drains.items()
        }
        done = []
        for name, watched in self._drains.items():
            if watched.drain.under_way or clock - watched.since < self.quiet_s:
                continue
            if watched.journals is None:
                watched.journals = journal_mark(self.path.parent)
            if is_read(self.engine, self.path.parent, watched.journals):
                done.append(name)
        for name in dicom_config.remove_drained(self.engine, done) if done else ():
            log.info("AE title %s was deleted and is done", name)


def _rule(row: AeTitle) -> AeTitleRule:
    return AeTitleRule(
        name=row.name,
        ae_title=row.ae_title,
        ignored_sop_classes=tuple(row.ignored_sop_classes),
        overwrite_same_instance=row.overwrite_same_instance,
        require_release=row.require_release,
        draining=row.draining,
    )


def _source(row: SourceNode) -> SourceRule:
    return SourceRule(
        ae_title=row.ae_title,
        host=row.host,
        maximum_associations=row.maximum_associations,
        user_name=row.user_name,
        user_secret=row.user_secret,
    )
