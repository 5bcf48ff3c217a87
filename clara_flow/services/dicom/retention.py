"""Forgets what has been over for long enough: groups of instances, associations, deliveries, inference requests,
procedure steps."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial

from clara_flow.deployments.trigger import House
from clara_flow.records import dicom_retention as records
from clara_flow.services.dicom.grouping.files import Files
from clara_flow.services.dicom.heartbeats import Heartbeats
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.procedure_steps import ProcedureSteps

log = logging.getLogger(__name__)

NAME = "retention"
SWEEP_S = 600.0
TICK_S = 5.0
BATCH = 100  # families of groups, looked for at once; each goes in a transaction of its own
ROWS = 1000  # of the others, in one transaction


class Retention:
    """One sweep every SWEEP_S; nothing is forgotten when `dicom_record_retention_s` is 0."""

    def __init__(self, house: House) -> None:
        self.engine, self.kept_s = house.engine, house.settings.dicom_record_retention_s
        self.files = Files(house, Places.of(house.settings).spool)
        self.steps = ProcedureSteps(Places.of(house.settings).spool)
        self._heartbeats = Heartbeats(Places.of(house.settings).heartbeats)
        self._forgotten: Counter[str] = Counter()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. Raises ServiceError when the database is away, StorageError."""
        left_s = 0.0
        while not stop.is_set():
            if left_s <= 0:
                self.sweep(stop)
                left_s = SWEEP_S
            self._beat()
            stop.wait(TICK_S)
            left_s -= TICK_S

    def sweep(self, stop: threading.Event | None = None) -> Counter[str]:
        """Forget all that is due, a batch at a time; how many rows of each kind went.

        What a group left in the spool goes before its rows do: nobody else knows of it.
        """
        stop, gone = stop or threading.Event(), Counter[str]()
        if not self.kept_s:
            return gone
        self._in_batches(stop, gone, "groups", self._forget_groups)
        for kind, forget in (
            ("associations", records.forget_associations),
            ("deliveries", records.forget_deliveries),
            ("inference requests", records.forget_requests),
            ("procedure steps", records.forget_steps),
        ):
            self._in_batches(stop, gone, kind, partial(forget, self.engine, self.kept_s, ROWS))
        self.steps.forget(self.kept_s)
        for kind, count in gone.items():
            log.info("%d %s were kept long enough and are forgotten", count, kind)
        self._forgotten += gone
        return gone

    def _in_batches(self, stop: threading.Event, gone: Counter[str], kind: str, forget: Callable[[], int]) -> None:
        while not stop.is_set() and (count := forget()):
            gone[kind] += count
            self._beat()

    def _forget_groups(self) -> int:
        count = 0
        for family in records.expired_families(self.engine, self.kept_s, BATCH):
            for group in records.groups_of(self.engine, family):
                self.files.remove(group.id)
            count += records.forget_family(self.engine, family, self.kept_s)
        return count

    def _beat(self) -> None:
        self._heartbeats.beat(NAME, **{kind.replace(" ", "_"): count for kind, count in self._forgotten.items()})
