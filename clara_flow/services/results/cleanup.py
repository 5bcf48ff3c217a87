"""Clean-up: the files of a job go some time after the last of its deliveries ended. The records of both stay.

Clara's rule (4.4 of the specification of the results service) and ours: only when the job is STOPPED, and nothing
goes on from its files; a job that registered nothing is never cleaned; what cannot be removed is tried again.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from clara_flow.deployments.trigger import House
from clara_flow.errors import ClaraFlowError
from clara_flow.infra.pool.removal import remove_payload
from clara_flow.records import deliveries, upkeep
from clara_flow.records.database import statements
from clara_flow.records.log_archive import LogArchive
from clara_flow.services.dicom.heartbeats import Heartbeats
from clara_flow.services.dicom.places import Places

log = logging.getLogger(__name__)

NAME = "cleanup"
SWEEP_S = 300.0
ROUND_S = 5.0

# A task belongs to a payload that it names, and to that of the job that it names. Ids are texts, dashed or not.
DELIVERED = sa.text("""
WITH task AS (
    SELECT replace(lower(payload_id), '-', '') AS payload, replace(lower(job_id), '-', '') AS job, ended
    FROM deliveries
), named AS (
    SELECT payloads.id, task.ended FROM task
    JOIN payloads ON replace(payloads.id::text, '-', '') = task.payload
    WHERE payloads.removed IS NULL
    UNION ALL
    SELECT payloads.id, task.ended FROM task
    JOIN jobs ON replace(jobs.id::text, '-', '') = task.job
    JOIN payloads ON payloads.id = jobs.payload_id
    WHERE payloads.removed IS NULL
)
SELECT id FROM named WHERE CAST(:only AS uuid) IS NULL OR id = :only
GROUP BY id
HAVING bool_and(ended IS NOT NULL) AND max(ended) < clock_timestamp() - make_interval(secs => :kept_s)
ORDER BY max(ended)
""")


class CleanUp:
    """Removes what was delivered, and puts back tasks whose agent is silent or gone, so that they are seen to wait."""

    def __init__(self, house: House) -> None:
        self.engine, self.store, self.settings = house.engine, house.store, house.settings
        self.archive = LogArchive(house.settings.data_dir / "job-logs")
        self._heartbeats = Heartbeats(Places.of(house.settings).heartbeats)
        self._removed = 0

    def run(self, stop: threading.Event) -> None:
        """Sweep now and every SWEEP_S until `stop` is set. Raises ServiceError when the database is away."""
        sweep_at = time.monotonic()
        while not stop.is_set():
            deliveries.expire(self.engine)
            if time.monotonic() >= sweep_at:
                self.sweep(stop)
                sweep_at = time.monotonic() + SWEEP_S
            self._beat()
            stop.wait(ROUND_S)

    def sweep(self, stop: threading.Event | None = None) -> list[uuid.UUID]:
        """Remove what is due; the ids of the payloads that went. Nothing goes when `results_cleanup` is off."""
        if not self.settings.results_cleanup:
            return []
        gone = []
        for payload_id in self._delivered():
            if stop is not None and stop.is_set():
                break
            try:
                if self._remove(payload_id):
                    gone.append(payload_id)
            except (ClaraFlowError, OSError) as error:
                log.warning("payload %s cannot be removed now: %s", payload_id, error)
            self._beat()
        self._removed += len(gone)
        return gone

    def _delivered(self, only: uuid.UUID | None = None) -> list[uuid.UUID]:
        """Payloads with files of which everything was delivered, or failed, long enough ago."""
        with statements(self.engine) as connection:
            values = {"kept_s": self.settings.results_retention_s, "only": only}
            return list(connection.execute(DELIVERED, values).scalars())

    def _remove(self, payload_id: uuid.UUID) -> bool:
        before = datetime.now(UTC) - timedelta(seconds=self.settings.least_retention_s)
        idle = upkeep.idle_payloads(self.engine, before, only=payload_id)
        if not idle or not self._delivered(payload_id):  # somebody may have wanted a delivery tried again meanwhile
            return False
        if not remove_payload(self.engine, self.store, self.archive, idle[0]):
            return False
        log.info("payload %s was delivered long enough ago and is removed", payload_id)
        return True

    def _beat(self) -> None:
        self._heartbeats.beat(NAME, removed=self._removed)
