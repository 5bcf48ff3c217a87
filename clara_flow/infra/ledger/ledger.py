"""The ledger: who gets which resources next. Pure: no clock, no I/O, no randomness; every time is an argument.

`decide` takes a snapshot, decides, and reserves. The rules, each in a file of its own:

- order.py       who is served next; tenants.py: fair shares and quotas
- placement.py   on which node and devices: best fit, NVLink
- backfill.py    who may pass whom: nobody ever delays the one who is served next
- preemption.py  who goes back to the queue for an emergency
- answers.py     why somebody waits; feasibility.py: what will never fit; preview.py: the queue in its order

**Nobody starves.** Let L be the longest `limit_s` of all leases, and k the number of other asks of the ordinary lanes
that wait at some time while an ask A waits and are at least as old. A is granted within

    ageing_s + AGED_TURN * (k + 1) * 2 * L        (`order.starvation_bound_s`)

of being asked, provided that (1) limits are kept, (2) its node and devices stay usable and the hard quota of its tenant
has room, and (3) what is served before all ordinary asks (IMMEDIATE, and the rest of operators that were started early)
is not counted: the bound is prolonged by the time in which such an ask waits. Proof: whoever is next in the ordinary
lanes and must wait stays next (the *head*) and is granted at the latest when all leases that ran when it became the
head have ended, which is within L, since nobody who passes it delays it. Operators of admitted jobs go before
admissions, but only for as long as these jobs live, which is within L too: so at least one admission per 2 L goes to
the next one. At the latest every AGED_TURN-th of these goes to the oldest one older than `ageing_s`, and none that are
asked later can be older than A: after k + 1 such turns A has been served. Early starts do not prolong (3) without
end: none is granted while an aged ask waits.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import inf
from types import MappingProxyType
from uuid import UUID, uuid5

from clara_flow.infra.ledger.answers import explain
from clara_flow.infra.ledger.backfill import Reservations
from clara_flow.infra.ledger.feasibility import missing_for
from clara_flow.infra.ledger.holdings import Holdings, expected_end
from clara_flow.infra.ledger.invariants import check
from clara_flow.infra.ledger.lanes import Lane, Line
from clara_flow.infra.ledger.model import (
    Amounts,
    Answer,
    Ask,
    Decision,
    Grant,
    Lease,
    NeverFits,
    Node,
    Quota,
    WaitsFor,
    Yield,
)
from clara_flow.infra.ledger.order import Look, Order
from clara_flow.infra.ledger.placement import Placement, Site
from clara_flow.infra.ledger.preemption import Debt, find_victims
from clara_flow.infra.ledger.tenants import Tenants

__all__ = ["Ledger", "missing_for"]


class Ledger:
    """Everything that is asked for and held, and the decisions on it."""

    def __init__(self, *, ageing_s: float = 900.0) -> None:
        self.ageing_s = ageing_s
        self._asks: dict[UUID, Ask] = {}
        self._quotas: dict[str, Quota] = {}
        self._holdings = Holdings()
        self._tenants = Tenants()
        self._order = Order(self._tenants, ageing_s)
        self._debts: dict[UUID, Debt] = {}
        self._reservations = Reservations(self._holdings)

    @property
    def asks(self) -> Mapping[UUID, Ask]:
        """What waits, by id."""
        return MappingProxyType(self._asks)

    @property
    def leases(self) -> Mapping[UUID, Lease]:
        """What is held, by id."""
        return MappingProxyType(self._holdings.leases)

    @property
    def nodes(self) -> Mapping[str, Node]:
        """What there is, by name."""
        return MappingProxyType({name: site.node for name, site in self._holdings.sites.items()})

    @property
    def quotas(self) -> Mapping[str, Quota]:
        """By tenant."""
        return MappingProxyType(self._quotas)

    def set_nodes(self, nodes: Iterable[Node]) -> None:
        """Replace all nodes; leases on nodes and devices that are gone stay until they are released."""
        if self._holdings.set_nodes(nodes):
            self._tenants.set_nodes(site.node for site in self._holdings.sites.values())
            self._order.forget_sites()
            self._reservations.full.clear()

    def set_quotas(self, quotas: Iterable[Quota]) -> None:
        """Replace all quotas (weights above 0); what is held beyond a new limit stays until it is released."""
        self._quotas = {quota.tenant: quota for quota in quotas}
        self._tenants.set_quotas(self._quotas)

    def ask(self, ask: Ask) -> None:
        """Wait; the same id again, waiting or granted, changes nothing."""
        if ask.id not in self._asks and ask.id not in self._holdings.leases:
            self._asks[ask.id] = ask
            self._order.add(ask)

    def withdraw(self, ask_id: UUID) -> None:
        """Wait no longer; an unknown id changes nothing."""
        if self._asks.pop(ask_id, None):
            self._order.remove(ask_id)
            self._debts.pop(ask_id, None)

    def restore(self, lease: Lease) -> None:
        """A lease that was granted before this ledger was made. Its ask, if it waits, waits no longer."""
        self.withdraw(lease.id)
        if lease.id not in self._holdings.leases:
            self._hold(lease)

    def release(self, lease_id: UUID, now: float) -> None:
        """The holder is done; an unknown id changes nothing."""
        if lease := self._holdings.leases.get(lease_id):
            self._tenants[lease.tenant].count(now)
            self._holdings.remove(lease_id)
            self._reservations.full.clear()
            self._tenants.hold(lease.tenant, lease.amounts, -1)

    def decide(self, now: float) -> list[Decision]:
        """Grant and preempt whatever can be now. What is decided is applied when this returns: holders of grants are in
        `leases`, jobs that were asked to yield are so marked. Without an event in between a second call returns []."""
        self._tenants.count(now)
        decisions: list[Decision] = []
        again = True
        while again:
            found, again = self._look_through(now)
            decisions += found
        return decisions

    def explain(self, ask_id: UUID, now: float) -> Answer:
        """Why this ask waits, as of the last decision. Raises KeyError for an id that does not wait."""
        return self._explain(self._asks[ask_id], now, self._order.position(ask_id))

    def would_fit(self, ask: Ask) -> NeverFits | None:
        """What is missing for ever (see `missing_for`); None: it can be granted one day."""
        together = ask.amounts + ask.first[1] if ask.first else ask.amounts
        nodes = [node for node in self.nodes.values() if ask.node is None or ask.node == node.name]
        missing = missing_for(nodes, self._quotas.get(ask.tenant), together, ask.needs)
        return NeverFits(missing=missing) if missing else None

    def queue(self, now: float, limit: int | None = None) -> list[tuple[Ask, Answer]]:
        """What waits, in the order in which it would be served if everything fitted, with the answers of `explain`."""
        answers: dict[Line, Answer] = {}
        places: Counter[Lane] = Counter()
        queue = []
        for ask in self._order.preview(now, limit):
            line = self._order.line_of(ask.id)
            places[line.lanes[0]] += 1
            position = places[line.lanes[0]]
            answer = answers.get(line)
            if isinstance(answer, WaitsFor):  # who stands behind the first of a line waits for the same
                answer = replace(answer, forecast=None, position=position)
            elif not isinstance(answer, NeverFits):
                answer = answers[line] = self._explain(ask, now, position)
            queue.append((ask, answer))
        return queue

    def forecast(self, now: float, limit: int = 32) -> dict[UUID, float]:
        """When the first `limit` of the queue will probably be granted, by id: their turns played forward, everybody
        holding what they hold for as long as is expected. Who is not named will not be served within that time, or
        nobody can say. Some milliseconds per ask: for people who look, not for decisions."""
        later = Ledger(ageing_s=self.ageing_s)
        later.set_nodes(self.nodes.values())
        later.set_quotas(self._quotas.values())
        ends = []
        for lease in self._holdings.leases.values():
            later.restore(lease)
            ends.append((expected_end(lease, now), lease.id))
        for ask in self._order.preview(now, limit):
            later.ask(ask)
        later._tenants.adopt(self._tenants)
        heapq.heapify(ends)
        granted: dict[UUID, float] = {}
        while now < inf:
            for decision in later.decide(now):
                if isinstance(decision, Grant):
                    granted[decision.ask.id] = now
                    for lease in decision.leases:
                        heapq.heappush(ends, (expected_end(lease, now), lease.id))
            if not later.asks or not ends:
                break
            now = ends[0][0]
            while ends and ends[0][0] <= now < inf:
                later.release(heapq.heappop(ends)[1], now)
        return granted

    def invariants(self) -> None:
        """Raises AssertionError, which says what is broken."""
        check(self._holdings, self._tenants, self._asks)

    def _explain(self, ask: Ask, now: float, position: int) -> Answer:
        if never := self.would_fit(ask):
            return never
        line = self._order.line_of(ask.id)
        self._look_up_sites(line)
        return explain(
            ask,
            line,
            now,
            holdings=self._holdings,
            tenant=self._tenants[ask.tenant],
            reservations=self._reservations,
            debts=self._debts,
            may_preempt=self._order.may_preempt(line),
            position=position,
        )

    def _look_through(self, now: float) -> tuple[list[Decision], bool]:
        """One look through the queue in the order of service, and whether another may find more: it may if something
        was decided after somebody had to wait."""
        decisions: list[Decision] = []
        again = False
        look = Look()
        self._reservations = reservations = Reservations(self._holdings)
        for line in self._order.candidates(now, look):
            self._look_up_sites(line)
            ask, demand = line.first, line.demand
            tenant = self._tenants[ask.tenant]
            end = self._holdings.end_for(ask.job_id, ask.limit_s, now)
            if (
                not line.sites
                or self._holdings.yields(demand.job_id)
                or not all(map(tenant.may_ever_hold, (demand.total, *demand.needs)))
            ):
                look.set_aside.add(line)
                self._order.let_go(line)
            elif short := tenant.short_of(demand.total):
                if not demand.early:
                    reservations.closed.setdefault(ask.tenant, set()).update(short)
                look.set_aside.add(line)
                self._order.let_go(line)
            elif not reservations.quota_allows(tenant, demand, end):
                pass
            elif place := reservations.place(line, end):
                decisions.append(self._grant(line, *place, now, end))
                again = again or bool(look.blocked)
                continue
            elif not demand.early:
                yields = self._wait(line, now)
                decisions += yields
                again = again or bool(yields)
                look.no_slots = look.no_slots or (demand.admission and not self._holdings.has_slots())
            look.blocked.add(line)
        return decisions, again

    def _grant(self, line: Line, site: Site, placement: Placement, now: float, end: float) -> Grant:
        ask = line.first
        self._order.served(line)
        self.withdraw(ask.id)
        leases = [self._lease(ask, ask.id, ask.operator, ask.amounts, site, placement.devices[0], now)]
        if ask.first:
            operator, amounts = ask.first
            lease_id = uuid5(ask.id, f"{operator} {now!r}")  # a job that comes back asks with the same id
            leases.append(self._lease(ask, lease_id, operator, amounts, site, placement.devices[1], now))
        for lease, devices in zip(leases, placement.devices, strict=True):
            self._hold(lease)
            self._reservations.granted(site, lease.amounts, devices, end)
        return Grant(ask=ask, leases=tuple(leases))

    def _lease(
        self,
        ask: Ask,
        lease_id: UUID,
        operator: str,
        amounts: Amounts,
        site: Site,
        devices: tuple[int, ...],
        now: float,
    ) -> Lease:
        return Lease(
            id=lease_id,
            job_id=ask.job_id,
            operator=operator,
            tenant=ask.tenant,
            priority=ask.priority,
            amounts=amounts,
            node=site.node.name,
            devices=tuple(site.node.devices[position].uuid for position in devices),
            granted=now,
            limit_s=ask.limit_s,
            expected_s=ask.expected_s,
            preemptible=ask.preemptible,
        )

    def _wait(self, line: Line, now: float) -> list[Decision]:
        """The first of this line has to wait for a node: reserve, preempt where it may."""
        ask = line.first
        debt = self._debts.get(ask.id)
        if debt and not any(any(self._holdings.of(job_id)) for job_id in debt.victims):
            del self._debts[ask.id]  # paid, and yet it does not fit: something else went away
            debt = None
        taken = set(self._reservations.by_node)
        reserved = self._reservations.reserve(line, now, debt.node if debt else None)
        if reserved:
            self._order.held_up(line)
        else:
            self._order.let_go(line)
        if debt or not self._order.may_preempt(line):
            return []
        taken -= {other.node for other in self._debts.values()}
        sites = [site for site in line.sites if site.node.name not in taken]
        debt = find_victims(line.demand, sites, self._holdings, self._debts.values())
        if debt is None:
            return []
        self._debts[ask.id] = debt
        yields: list[Decision] = []
        for job_id in debt.victims:
            if not any(lease.yielding for lease in self._holdings.of(job_id)):
                yields.append(Yield(job_id=job_id, ask=ask))
            for lease in list(self._holdings.of(job_id)):
                self._holdings.replace(replace(lease, yielding=True))
        return yields

    def _hold(self, lease: Lease) -> None:
        self._holdings.add(lease)
        self._tenants.hold(lease.tenant, lease.amounts)

    def _look_up_sites(self, line: Line) -> None:
        if line.kind.sites is None:
            line.kind.sites = [site for site in self._holdings.sites.values() if site.can_serve(line.demand)]
