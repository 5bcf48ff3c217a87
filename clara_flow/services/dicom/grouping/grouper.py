"""The loop from the listeners' journals to jobs: take what came, see which groups are complete, make their jobs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from clara_flow.deployments.trigger import House
from clara_flow.errors import ClaraFlowError, SettingsError, StaleOwner
from clara_flow.records import dicom_config
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records import dicom_groups as groups
from clara_flow.records.database import DatabaseAway, TransactionConflict
from clara_flow.records.dicom_ingest import GroupingRule
from clara_flow.records.dicom_models import GroupState
from clara_flow.records.doorbell import Doorbell, Notice
from clara_flow.records.outages import Outage
from clara_flow.services.dicom.grouping.completion import Completion
from clara_flow.services.dicom.grouping.deidentified import Deidentified
from clara_flow.services.dicom.grouping.files import Files
from clara_flow.services.dicom.grouping.intake import JournalIntake
from clara_flow.services.dicom.grouping.processors import Configured, configured
from clara_flow.services.dicom.grouping.submissions import Submissions
from clara_flow.services.dicom.grouping.submit import Submitter
from clara_flow.services.dicom.heartbeats import Heartbeats
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.spool import Spool

log = logging.getLogger(__name__)

HEARTBEAT = "grouper"
POLL_S = 0.05  # between looks at the journals
AWAY_S = 0.5  # pause when the database is away
CONFIG_S = 10.0  # the configuration is read so often in case a notice was lost
COUNT_S = 2.0
SWEEP_S = 600.0
SWEEP_SOON_S = 10.0  # after the first round and after an outage: then what had been left half-done is done


class Grouper:
    """Run one at a time on a spool: a second one would be refused each line (StaleOwner), and wait."""

    def __init__(self, house: House, spool_root: Path, *, heartbeats: Heartbeats | None = None) -> None:
        self.house = house
        self.files = Files(house, spool_root)
        self._heartbeats = heartbeats or Heartbeats(Places.of(house.settings).heartbeats)
        self._spool = Spool(spool_root)
        self._intake = JournalIntake(house.engine, spool_root, self._rules)
        self._completion = Completion(house, self._configured_for)
        self._submissions = Submissions(house, Submitter(house, self.files), self._configured_for)
        self._configured: dict[str, Configured] = {}
        self._config_at = 0.0
        self._unsure = True  # what is remembered of the tables may be wrong
        self._counts, self._count_at = queries.Counts(0, 0, 0, 0.0), 0.0
        self._sweep_at = self._sweep_again_at = 0.0
        self._sweep: Future[None] | None = None

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. Raises SettingsError."""
        channels = [dicom_config.CHANNEL, groups.CHANNEL]
        with (
            closing(Doorbell(self.house.engine, channels)) as doorbell,
            ThreadPoolExecutor(1, "spool-sweep") as sweeper,
            self._submissions,
            self._completion,
        ):
            outage = Outage(log, "the grouper")
            while not stop.is_set():
                try:
                    self._round(sweeper)
                except (DatabaseAway, TransactionConflict, StaleOwner) as error:
                    outage.met(error)
                    self._unsure = True
                    self._beat()
                    stop.wait(AWAY_S)
                    continue
                outage.over()
                for notice in doorbell.wait(POLL_S):
                    self._hear(notice)

    def _round(self, sweeper: ThreadPoolExecutor) -> None:
        now = time.monotonic()
        if now >= self._config_at:
            self._read_config()
        if self._unsure:
            self._intake.forget()
            self._completion.resume(queries.open_groups(self.house.engine))
            self._submissions.look()
            self._unsure = False
            self._sweep_again_at = now + SWEEP_SOON_S
        ingested = self._intake.take()
        if self._completion.look(ingested):
            self._submissions.look()
        if self._submissions.begin():
            self._sweep_again_at = now + SWEEP_SOON_S
        if now >= self._count_at:
            self._counts, self._count_at = queries.counts(self.house.engine), now + COUNT_S
        if now >= min(self._sweep_at, self._sweep_again_at) and (self._sweep is None or self._sweep.done()):
            self._sweep_again_at = self._sweep_again_at if now < self._sweep_again_at else float("inf")
            self._sweep, self._sweep_at = sweeper.submit(self._clean), now + SWEEP_S
        self._beat()

    def _beat(self) -> None:
        counts = self._counts
        self._heartbeats.beat(
            HEARTBEAT,
            open_groups=counts.open,
            queue_depth=counts.complete,
            failed_groups=counts.failed,
            oldest_age_s=round(counts.oldest_s, 1),
        )

    def _hear(self, notice: Notice) -> None:
        channel, facts = notice
        if channel == groups.CHANNEL:
            self._submissions.look()
            if facts.get("event") == "discard":
                self._sweep_at = 0.0
        else:
            self._config_at = 0.0
            self._unsure = self._unsure or not channel  # the database had been away

    def _configured_for(self, name: str) -> Configured | None:
        return self._configured.get(name)

    def _rules(self, names: set[str]) -> Mapping[str, GroupingRule]:
        if names - self._configured.keys():  # their notice may be on its way
            self._read_config()
        return {name: one.grouping for name, one in self._configured.items()}

    def _read_config(self) -> None:
        found = {}
        for row in dicom_config.list_aetitles(self.house.engine):
            try:
                found[row.name] = configured(row)
            except SettingsError as error:
                log.error("%s", error)
        self._configured = found
        self._config_at = time.monotonic() + CONFIG_S

    def _clean(self) -> None:
        try:
            removed = self.files.sweep()
            self._sweep_deidentified()
            swept = self._spool.sweep()
            if removed or swept.files or swept.folders:
                log.info("swept %d files and %d folders of the spool", removed + swept.files, swept.folders)
        except ClaraFlowError as error:
            log.warning("the spool is not swept: %s", error)

    def _sweep_deidentified(self) -> None:
        """Cleaned copies of groups that are over: a process ended before it could remove them."""
        deidentified = Deidentified(self.house, self.files.spool)
        found = deidentified.groups()  # before the tables are read: what is made meanwhile is not swept
        unfinished = {group.id for group in queries.list_groups(self.house.engine, states=[GroupState.COMPLETE])}
        for group_id in found - unfinished:
            deidentified.remove(group_id)
