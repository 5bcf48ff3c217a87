"""Housekeeping of one machine: repairs what crashes left, and removes what was kept long enough. At start, on a timer.

Every repair is idempotent and made again from what there is, so several machines may keep house over one database. One
that fails is told and tried again in the next round; it does not keep the others from being made. What a living process
works on is never touched: leftovers are known by their owner's process, orphaned jobs by their fence.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from clara_flow.errors import ClaraFlowError, LauncherUnavailable
from clara_flow.infra.fastio.volumes import FastIOVolumes
from clara_flow.infra.launchers.base import Launcher
from clara_flow.infra.launchers.registry import FACTORIES, create_launcher
from clara_flow.infra.pool.reconcile import FoundFolder, Readmit, Release, repair_of, unrecorded
from clara_flow.infra.pool.removal import remove_payload
from clara_flow.infra.pool.retention import Rules, early, overdue
from clara_flow.records import jobs, upkeep
from clara_flow.records.database import DatabaseAway
from clara_flow.records.durable import write_durably
from clara_flow.records.log_archive import LogArchive
from clara_flow.records.payload_store import PayloadStore
from clara_flow.records.state_machine import JobPhase
from clara_flow.records.upkeep import Holder, IdlePayload
from clara_flow.settings import Settings

log = logging.getLogger(__name__)

BEGIN_TTLS = 2.0  # lifetimes of a lease that a job may be admitted without being begun
DATABASE = "database"
OVERLAP = timedelta(minutes=5)  # a job that stopped so long before the last round is looked at again


@dataclass(frozen=True, slots=True)
class Report:
    """What housekeeping did on a machine.

    at          UTC, ISO 8601: end of the last round. rounds: how many there were since the worker's start.
    repairs     how many of each kind since then.
    problems    what could not be done in the last round, by step.
    """

    at: str = ""
    rounds: int = 0
    repairs: dict[str, int] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def launchers_of(settings: Settings) -> list[Launcher]:
    """The launchers of all runtimes; whether one answers is seen when it is asked."""
    return [create_launcher(runtime, settings) for runtime in FACTORIES]


def report_path(settings: Settings) -> Path:
    """File with the last report of this machine."""
    return settings.data_dir / "pool" / f"housekeeping-{settings.node_name or socket.gethostname()}.json"


def last_report(settings: Settings) -> Report | None:
    """What this machine's housekeeping last told; None when it never did."""
    try:
        return Report(**json.loads(report_path(settings).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class Housekeeping:
    """Keeps house on this machine, in a thread of its own between `start` and `stop`.

    Flow runs are not its business: `infra.history.historian` keeps what Prefect shows true.
    """

    def __init__(
        self,
        engine: sa.Engine,
        store: PayloadStore,
        launchers: Sequence[Launcher],
        fastio: FastIOVolumes,
        settings: Settings,
    ) -> None:
        self.engine = engine
        self.store = store
        self.launchers = tuple(launchers)
        self.fastio = fastio
        self.settings = settings
        self.archive = LogArchive(settings.data_dir / "job-logs")
        self.begin_limit_s = BEGIN_TTLS * settings.lease_ttl_s
        self._counts: Counter[str] = Counter()
        self._problems: dict[str, str] = {}
        self._rounds = 0
        self._swept: datetime | None = None
        self._recovering = threading.Lock()
        self._tidying = threading.Lock()  # takes its time: a recovery does not wait for it
        self._due = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, with a round at once. Returns at once."""
        self._thread = threading.Thread(target=self._work, name="housekeeping", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the step that is under way."""
        self._stopping = True
        self._due.set()
        if self._thread is not None:
            self._thread.join()

    def ring(self) -> None:
        """Make a round soon: something died. For any thread."""
        self._due.set()

    def report(self) -> Report:
        """What was done so far."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Report(now, self._rounds, dict(sorted(self._counts.items())), dict(self._problems))

    def recover(self) -> None:
        """End what dead runners have left running, then give their jobs back to the queue: in this order, so that no
        operator's two attempts ever run at once."""
        with self._recovering:
            asyncio.run(self._run(self._recovery))

    def tidy(self) -> Report:
        """One whole round."""
        self.recover()
        with self._tidying:
            if DATABASE not in self._problems:
                asyncio.run(self._run(self._upkeep))
            self._rounds += 1
            report = self.report()
        try:
            path = report_path(self.settings)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_durably(path, json.dumps(asdict(report), indent=1) + "\n")
        except OSError as error:  # it is a courtesy
            log.warning("the report of housekeeping cannot be written: %s", error.strerror)
        return report

    def _work(self) -> None:
        while not self._stopping:
            self.tidy()
            self._due.wait(self.settings.housekeeping_s)
            self._due.clear()

    @property
    def _recovery(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {"leftovers": self._end_leftovers, "orphaned jobs": self._requeue_orphans}

    @property
    def _upkeep(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {
            "leases": self._mend_leases,
            "partial folders": self._discard_partials,
            "payload folders": self._remove_unrecorded,
            "retention": self._retain,
        }

    async def _run(self, steps: dict[str, Callable[[], Awaitable[None]]]) -> None:
        for name, step in steps.items():
            if self._stopping:
                return
            try:
                await step()
            except DatabaseAway as error:  # nothing can be done without it
                self._note(DATABASE, error)
                return
            except Exception as error:  # noqa: BLE001  the other repairs must be made all the same
                self._note(name, error)
            else:
                self._problems.pop(name, None)
        self._problems.pop(DATABASE, None)

    def _note(self, name: str, error: Exception) -> None:
        """Tell of a problem when it is new."""
        problem = str(error).partition("\n")[0] or type(error).__name__
        if self._problems.get(name) != problem:
            expected = isinstance(error, ClaraFlowError | OSError)
            log.warning("housekeeping, %s: %s", name, problem, exc_info=None if expected else error)
        self._problems[name] = problem

    def _did(self, kind: str, text: str, times: int = 1) -> None:
        """Tell and count one repair, or some of one kind."""
        if times:
            self._counts[kind] += times
            log.info("housekeeping: %s", text)

    async def _end_leftovers(self) -> None:
        """Containers, processes and volumes whose launcher is gone."""
        for launcher in self.launchers:
            try:
                reaped = await launcher.reap(self._runs)
            except LauncherUnavailable:  # this machine has no such runtime, or not now
                continue
            for job_id, times in Counter(reaped).items():
                self._did("operators ended", f"{times} left over of job {job_id} ({launcher.runtime}) ended", times)
        for job_id in await asyncio.to_thread(self.fastio.reap, self._runs):
            self._did("volumes removed", f"the FastIO volume of job {job_id} was left over")

    def _runs(self, job_id: str) -> bool:
        return upkeep.phases(self.engine, [job_id]).get(job_id) is JobPhase.RUNNING

    async def _requeue_orphans(self) -> None:
        again, ended = jobs.requeue_orphans(self.engine)
        for job_id in again:
            self._did("jobs queued again", f"job {job_id} was queued again: nobody ran it any more")
        for job_id in ended:
            self._did("jobs ended", f"job {job_id} was ended: nobody ran it any more")

    async def _mend_leases(self) -> None:
        for holder in upkeep.holders(self.engine):
            match repair_of(holder, begin_limit_s=self.begin_limit_s):
                case Readmit(job_id=job_id, reason=reason):
                    jobs.requeue_job(self.engine, job_id, reason=reason)
                    self._did("jobs queued again", f"job {job_id} was queued again: {reason}")
                case Release(job_id=job_id, reason=reason):
                    gone = upkeep.release_astray(self.engine, job_id, self._astray)
                    self._did("leases deleted", f"{len(gone)} leases of job {job_id}: {reason}", len(gone))

    def _astray(self, holder: Holder) -> frozenset[uuid.UUID]:
        repair = repair_of(holder, begin_limit_s=self.begin_limit_s)
        return repair.leases if isinstance(repair, Release) else frozenset()

    async def _discard_partials(self) -> None:
        """What attempts of jobs that are over left unsealed."""
        began = datetime.now(UTC)
        for payload_id in upkeep.stopped_payloads(self.engine, self._swept and self._swept - OVERLAP):
            times = self.store.folder(payload_id).discard_partials()
            self._did("partial folders removed", f"{times} partial folders in payload {payload_id}", times)
        self._swept = began

    async def _remove_unrecorded(self) -> None:
        times = self.store.sweep()
        self._did("removals finished", f"{times} removals of payloads had been interrupted", times)
        folders = self.store.folders()
        known = upkeep.known_payloads(self.engine, [folder.id for folder in folders])
        strangers = [folder for folder in folders if folder.id not in known]
        found = [FoundFolder(folder.id, folder.touched()) for folder in strangers]
        found += [FoundFolder(payload_id, datetime.now(UTC)) for payload_id in known]
        before = datetime.now(UTC) - timedelta(seconds=self.settings.orphan_payload_s)
        for payload_id in unrecorded(found, known, before=before):
            self.store.remove(payload_id)
            self._did("payload folders removed", f"payload folder {payload_id.hex} had no record")

    async def _retain(self) -> None:
        now, rules = datetime.now(UTC), Rules.of(self.settings)
        least = now - timedelta(seconds=min(rules.least_s, rules.orphans_s))
        idle = upkeep.idle_payloads(self.engine, least)
        for payload in overdue(idle, rules, now):
            self._remove(payload, "kept long enough")
        for payload in early(idle, rules, now):
            if self.store.used_percent() <= self.settings.storage_limit_percent:
                break
            self._remove(payload, "removed early: the disk is too full")
        if before := rules.before(rules.logs_s, now):
            times = self.archive.remove_before(before)
            self._did("job logs removed", f"the logs of {times} jobs were kept long enough", times)
        if before := rules.before(rules.records_s, now):
            times = len(jobs.delete_records(self.engine, upkeep.bare_jobs(self.engine, before)))
            self._did("job records removed", f"the records of {times} jobs were kept long enough", times)

    def _remove(self, payload: IdlePayload, reason: str) -> None:
        """A payload's files, unless somebody uses it now; its logs are kept."""
        if remove_payload(self.engine, self.store, self.archive, payload):
            self._did("payloads removed", f"payload {payload.id}: {reason}")
