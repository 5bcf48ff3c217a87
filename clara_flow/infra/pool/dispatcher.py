"""The dispatcher: one thread of one worker of the pool that keeps the ledger and answers everybody who asks.

Every worker has one; an advisory lock of the database lets exactly one lead. The leader has the ledger in memory,
loaded from the rows. Notices wake it (and a timer, in case one was lost); a notice names a job, and whatever it says,
the rows of that job are read again: so a notice that comes twice, late or not at all does no harm. Decisions are
written in one transaction on the very connection that holds the lock: a leader that lost it cannot grant anything.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from clara_flow.errors import ServiceError
from clara_flow.infra.gpu.node import NodeInventory, to_ledger_node
from clara_flow.infra.ledger.ledger import Ledger
from clara_flow.infra.ledger.model import (
    UNLIMITED,
    Ask,
    Fits,
    FitsAfterPreemption,
    Grant,
    Lease,
    NeverFits,
    Node,
    Priority,
    Quota,
    WaitsFor,
    Yield,
    amounts_of,
)
from clara_flow.records import jobs, leases, nodes, quotas
from clara_flow.records.database import connect
from clara_flow.records.doorbell import Doorbell
from clara_flow.records.outages import Outage

log = logging.getLogger(__name__)

LEADER_LOCK = 0x70006C  # advisory lock number of the leading dispatcher
TOLD = 50  # so many who wait are told for what; the others learn it from `clara-flow queue`
TELL_EVERY_S = 1.0
RETRY_S = 0.5

Waiting = tuple[Ask, str]


class LeadershipLost(Exception):
    """The connection that held the lock is gone."""


@dataclass(slots=True)
class Known:
    """What the ledger has of one job."""

    asks: set[uuid.UUID] = field(default_factory=set)
    leases: set[uuid.UUID] = field(default_factory=set)


class Dispatcher:
    """Decides for the whole pool while it leads.

    url             the records' database.
    on_waiting      called about once a second with the first of those who wait, and for what.
    """

    def __init__(
        self,
        url: str,
        *,
        lease_ttl_s: float,
        poll_s: float,
        ageing_s: float,
        on_waiting: Callable[[Sequence[Waiting]], None] = lambda waiting: None,
    ) -> None:
        self._url = url
        self._ttl_s, self._poll_s, self._ageing_s = lease_ttl_s, poll_s, ageing_s
        self._on_waiting = on_waiting
        self._stopping = threading.Event()
        self._bell = Doorbell(url, (jobs.CHANNEL, leases.CHANNEL, nodes.CHANNEL))
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._outage = Outage(log, "the dispatcher")
        self.leads = False

    def start(self) -> None:
        """Begin to lead, or to wait for that."""
        self._thread.start()

    def stop(self) -> None:
        """Let another worker lead."""
        self._stopping.set()
        self._bell.interrupt()
        if self._thread.is_alive():
            self._thread.join()
        self._bell.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._lead_if_free()
            except (ServiceError, LeadershipLost, sa.exc.DBAPIError) as error:
                self._outage.met(error)
                self._stopping.wait(RETRY_S)
            except Exception:  # a bug must not end the pool: everything is in the rows, so begin again from them
                log.exception("the dispatcher failed and starts over")
                self._stopping.wait(RETRY_S)

    def _lead_if_free(self) -> None:
        engine = _one_connection(self._url)
        try:
            with engine.connect() as connection:
                mine = connection.execute(sa.select(sa.func.pg_try_advisory_lock(LEADER_LOCK))).scalar_one()
            self._outage.over()
            if mine:
                self.leads = True
                _Leader(engine, self._bell, self._stopping, self).lead()
            else:
                self._bell.wait(self._poll_s)
        finally:
            self.leads = False
            engine.dispose()


class _Leader:
    """One time of leading: its ledger dies with it."""

    def __init__(self, engine: sa.Engine, bell: Doorbell, stopping: threading.Event, dispatcher: Dispatcher) -> None:
        self.engine, self.bell, self.stopping, self.d = engine, bell, stopping, dispatcher
        self.ledger = Ledger(ageing_s=dispatcher._ageing_s)
        self.known: dict[uuid.UUID, Known] = {}
        self.reasons: dict[uuid.UUID, str] = {}
        self.clock_offset_s = 0.0
        self.told_at = 0.0

    def now(self) -> float:
        """The database's clock, as Unix time."""
        return time.time() + self.clock_offset_s

    def lead(self) -> None:
        """Answer until the worker stops or the database is gone."""
        self.bell.wait(0)  # what was rung for before the rows are read is in the rows
        self.set_clock()
        self.load_frame()
        self.sync(None)
        looked = time.monotonic()
        log.info("this worker leads the pool")
        while not self.stopping.is_set():
            self.decide()
            touched = self.bell.wait(self.pause_s())
            if any(facts.get("reconnected") for _, facts in touched):
                raise LeadershipLost("the database was away")
            if any(channel == nodes.CHANNEL for channel, _ in touched):
                self.load_frame()
            if named := _jobs_in(touched):
                self.sync(named, queue=_jobs_in(notice for notice in touched if notice[0] == jobs.CHANNEL))
            if time.monotonic() - looked > self.d._poll_s:  # in case a notice was lost; and nodes fall silent unasked
                looked = time.monotonic()
                self.set_clock()
                self.load_frame()
                self.look_around()

    def pause_s(self) -> float:
        """How long to wait for a notice: shorter while somebody must be told what he waits for."""
        return min(self.d._poll_s, TELL_EVERY_S) if self.ledger.asks else self.d._poll_s

    def set_clock(self) -> None:
        """Learn how far this machine's clock is from the database's."""
        with self.engine.connect() as connection:
            theirs: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        self.clock_offset_s = theirs.timestamp() - time.time()

    def load_frame(self) -> None:
        """Read nodes and quotas."""
        self.ledger.set_nodes(ledger_nodes(nodes.list_nodes(self.engine), self.now()))
        self.ledger.set_quotas(ledger_quotas(quotas.list_quotas(self.engine)))

    def look_around(self) -> None:
        """Find what differs from the rows, by ids alone where many wait: what a queued job asks for never changes."""
        asking = {job_id for job_id, known in self.known.items() if job_id in known.asks}
        holding = {job_id for job_id, known in self.known.items() if known.leases or known.asks - {job_id}}
        rows = {row.job_id for row in leases.load(self.engine)}
        self.sync((jobs.waiting(self.engine) ^ asking) | holding | rows)

    def sync(self, job_ids: set[uuid.UUID] | None, queue: set[uuid.UUID] | None = None) -> None:
        """Make the ledger what the rows of these jobs say; None: of all jobs.

        queue   only for these their place in the queue is read, too: the others' has not changed. None: for all.
        """
        now = self.now()
        queued = jobs.queued(self.engine, job_ids if queue is None else queue) if queue != set() else []
        rows = leases.load(self.engine, job_ids)
        asks, held = wishes(queued, rows)
        touched = job_ids if job_ids is not None else self.known.keys() | asks.keys() | held.keys()
        for job_id in list(touched):
            before = self.known.pop(job_id, Known())
            job_asks, job_leases = asks.get(job_id, {}), held.get(job_id, {})
            for gone in before.leases - job_leases.keys():
                self.ledger.release(gone, now)
            stands = before.asks & {job_id} if queue is not None and job_id not in queue else set()
            for gone in before.asks - job_asks.keys() - stands:
                self.ledger.withdraw(gone)
                self.reasons.pop(gone, None)
            for lease_id in job_leases.keys() - before.leases:
                self.ledger.restore(job_leases[lease_id])
            for ask_id in job_asks.keys() - before.asks:
                self.ledger.ask(job_asks[ask_id])
            if job_asks or job_leases or stands:
                self.known[job_id] = Known(job_asks.keys() | stands, set(job_leases))

    def decide(self) -> None:
        """Let the ledger decide, write it down, tell who waits for what."""
        now = self.now()
        decisions = self.ledger.decide(now)
        grants = [decision for decision in decisions if isinstance(decision, Grant)]
        if grants:
            rows = [leases.GrantRow.of(lease) for grant in grants for lease in grant.leases]
            given = leases.grant(self.engine, rows, self.d._ttl_s)
            for grant in grants:
                known = self.known.setdefault(grant.ask.job_id, Known())
                known.asks.discard(grant.ask.id)
                self.reasons.pop(grant.ask.id, None)
                for lease in grant.leases:
                    if lease.id in given:
                        known.leases.add(lease.id)
                    else:  # cancelled in the meantime
                        self.ledger.release(lease.id, now)
        for decision in decisions:
            if isinstance(decision, Yield):
                leases.mark_yielding(self.engine, decision.job_id)
        if self.ledger.asks and time.monotonic() - self.told_at > TELL_EVERY_S:
            self.told_at = time.monotonic()
            self.tell()

    def tell(self) -> None:
        """Tell the first of those who wait for what, when that changed."""
        news: dict[uuid.UUID, str] = {}
        waiting: list[Waiting] = []
        for ask, answer in self.ledger.queue(self.now(), limit=TOLD):
            reason = in_words(answer)
            waiting.append((ask, reason))
            if self.reasons.get(ask.id) != reason:
                self.reasons[ask.id] = reason
                if ask.operator:
                    news[ask.id] = reason
        if news:
            leases.tell_reasons(self.engine, news)
        self.d._on_waiting(waiting)


def _one_connection(url: str) -> sa.Engine:
    """An engine with one connection, ever: when that is lost, the lock it held is lost, and so is the engine."""
    engine = connect(url, pool_size=1, max_overflow=0, pre_ping=False)
    made = 0

    @sa.event.listens_for(engine, "connect")
    def only_once(connection: Any, record: Any) -> None:
        nonlocal made
        made += 1
        if made > 1:
            connection.close()
            raise LeadershipLost("the connection that held the lock is gone")

    return engine


def read_ledger(engine: sa.Engine, *, ageing_s: float, now: float) -> Ledger:
    """A ledger of one's own, of what the rows say now: to ask it, not to decide."""
    ledger = Ledger(ageing_s=ageing_s)
    ledger.set_nodes(ledger_nodes(nodes.list_nodes(engine), now))
    ledger.set_quotas(ledger_quotas(quotas.list_quotas(engine)))
    asks, held = wishes(jobs.queued(engine, None), leases.load(engine, None))
    for of_job in held.values():
        for lease in of_job.values():
            ledger.restore(lease)
    for wanted in asks.values():
        for ask in wanted.values():
            ledger.ask(ask)
    return ledger


def _jobs_in(notices: Iterable[tuple[str, dict[str, Any]]]) -> set[uuid.UUID]:
    return {uuid.UUID(facts["job"]) for _, facts in notices if "job" in facts}


def ledger_nodes(rows: Iterable[nodes.NodeRow], now: float) -> list[Node]:
    """The nodes as the ledger counts them; a silent or drained one is not usable."""
    return [
        to_ledger_node(
            NodeInventory.from_json(row.inventory),
            name=row.name,
            jobs=row.jobs,
            drained_devices=row.drained_devices,
            usable=not row.drained and row.expires.timestamp() > now,
        )
        for row in rows
    ]


def ledger_quotas(rows: Iterable[quotas.QuotaRow]) -> list[Quota]:
    """The quotas as the ledger knows them."""
    return [Quota(tenant=row.tenant, weight=row.weight, nominal=row.nominal, hard=row.hard) for row in rows]


Asks = dict[uuid.UUID, dict[uuid.UUID, Ask]]
Held = dict[uuid.UUID, dict[uuid.UUID, Lease]]


def wishes(queued: Iterable[jobs.QueuedJob], rows: Iterable[leases.LeaseRow]) -> tuple[Asks, Held]:
    """What the rows ask for and what they hold, by job and id. A queued job that was not admitted asks for that."""
    asks: Asks = {}
    held: Held = {}
    for row in rows:
        if row.state == leases.LeaseState.GRANTED:
            held.setdefault(row.job_id, {})[row.id] = lease_of(row)
        else:
            asks.setdefault(row.job_id, {})[row.id] = ask_of(row)
    for job in queued:
        if job.node is None and job.demand:
            asks.setdefault(job.id, {})[job.id] = admission_of(job)
    return asks, held


def admission_of(job: jobs.QueuedJob) -> Ask:
    """A queued job's ask to be admitted, out of the demand that was computed when it was created."""
    demand = job.demand
    first = demand.get("first")
    return Ask(
        id=job.id,
        job_id=job.id,
        tenant=job.tenant,
        priority=Priority[job.priority],
        amounts=amounts_of(demand["job"]),
        first=(first[0], amounts_of(first[1])) if first else None,
        needs=tuple(amounts_of(need) for need in demand["needs"]),
        asked=job.queued.timestamp(),
        limit_s=demand.get("limit_s", UNLIMITED),
        expected_s=demand.get("expected_s"),
        preemptible=job.preemptible,
    )


def ask_of(row: leases.LeaseRow) -> Ask:
    """A running job's operator that waits."""
    return Ask(
        id=row.id,
        job_id=row.job_id,
        operator=row.operator,
        tenant=row.tenant,
        priority=Priority(row.priority),
        amounts=amounts_of(row.amounts),
        node=row.node,
        asked=row.asked.timestamp(),
        limit_s=row.limit_s,
        expected_s=row.expected_s,
        preemptible=row.preemptible,
        early=row.early,
        completes=row.part != "",
    )


def lease_of(row: leases.LeaseRow) -> Lease:
    """What a row holds."""
    return Lease(
        id=row.id,
        job_id=row.job_id,
        operator=row.operator,
        tenant=row.tenant,
        priority=Priority(row.priority),
        amounts=amounts_of(row.amounts),
        node=row.node or "",
        devices=tuple(row.devices),
        granted=row.granted.timestamp() if row.granted else 0.0,
        limit_s=row.limit_s,
        expected_s=row.expected_s,
        preemptible=row.preemptible,
        yielding=row.yielding,
    )


UNITS = {
    "cpu": "CPU cores",
    "memory_mib": "memory",
    "gpu": "a GPU",
    "gpu_memory_mib": "GPU memory",
    "fastio_mib": "shared memory (FastIO)",
    "jobs": "a free runner",
}


def in_words(answer: Fits | FitsAfterPreemption | WaitsFor | NeverFits) -> str:
    """An answer as people read it."""
    match answer:
        case Fits():
            return "is next"
        case FitsAfterPreemption(victims=victims):
            return f"waits until {_named(victims)} has gone back to the queue"
        case NeverFits(missing=missing):
            lacks = ", ".join(f"{amount} {name}" for name, amount in missing.items())
            return f"does not fit on any machine that is there now: {lacks} are missing"
        case WaitsFor(resource="turn", holders=holders):
            return f"waits for its turn behind {_named(holders)}" if holders else "waits for its turn"
        case WaitsFor(resource=resource, holders=holders):
            quota, _, name = resource.rpartition(":")
            what = f"{'its quota of ' if quota else ''}{UNITS.get(name, name)}"
            return f"waits for {what}, held by {_named(holders)}" if holders else f"waits for {what}"


def _named(job_ids: Sequence[uuid.UUID]) -> str:
    shown = ", ".join(str(job_id)[:8] for job_id in job_ids[:3])
    more = f" and {len(job_ids) - 3} more" if len(job_ids) > 3 else ""
    return f"job {shown}{more}"
