"""Reservations for those who wait, and what may pass them.

An ask that has to wait for a node gets a reservation: the earliest time at which some node has room for it if every
lease lasts to its limit, and what it will take there then. Whoever comes after it is served only if its lease ends
before that time, or if it fits into what the reservation leaves over then: the reservation is kept with and without
those who pass. At most one is made per node, in the order of service; the first is that of whoever is served next.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from clara_flow.infra.ledger.demand import Demand
from clara_flow.infra.ledger.holdings import Holdings
from clara_flow.infra.ledger.lanes import Kind, Line
from clara_flow.infra.ledger.model import Amounts, Ask, Lease
from clara_flow.infra.ledger.placement import Free, Indices, Placement, Site
from clara_flow.infra.ledger.tenants import Tenant


@dataclass(slots=True)
class Reservation:
    """From `time` on the node keeps room for `ask`; `rest` is what is free besides it then."""

    ask: Ask
    demand: Demand
    time: float
    rest: Free


@dataclass(slots=True)
class Reservations:
    """Those of one look through the queue.

    by_node     at most one per node.
    closed      by tenant: resources of whose hard limit an ask waits for more; those after it leave them alone.
    contested   nodes for which somebody waits without a reservation.
    full        kinds for which no node has room now, whoever asks.
    """

    holdings: Holdings
    by_node: dict[str, Reservation] = field(default_factory=dict)
    closed: dict[str, set[str]] = field(default_factory=dict)
    contested: set[str] = field(default_factory=set)
    full: set[Kind] = field(default_factory=set)
    _ends: dict[str, list[tuple[float, Lease]]] = field(default_factory=dict)

    def quota_allows(self, tenant: Tenant, demand: Demand, end: float) -> bool:
        """Whether nobody of the same tenant who is to be served before it would miss the tenant's limit for it."""
        if not tenant.quota.hard:
            return True
        if any(getattr(demand.total, name) for name in self.closed.get(tenant.name, ())):
            return False
        return not any(
            reservation.demand.tenant == tenant.name
            and end > reservation.time
            and _collides(tenant, demand.total, reservation.demand.total)
            for reservation in self.by_node.values()
        )

    def place(self, line: Line, end: float) -> tuple[Site, Placement] | None:
        """The best place now for a lease that ends by `end`, that delays nobody with a reservation."""
        demand = line.demand
        if line.kind in self.full:
            return None
        best: tuple[Site, Placement] | None = None
        full = True
        for site in line.sites:
            if not site.fits(site.free, demand):
                continue
            full = False
            if demand.early and site.node.name in self.contested:
                continue
            free = site.free
            reservation = self.by_node.get(site.node.name)
            if reservation is not None and end > reservation.time:
                free = free.meet(reservation.rest)
            placement = site.place(free, demand)
            if placement is not None and (best is None or placement.score < best[1].score):
                best = site, placement
        if full:
            self.full.add(line.kind)
        return best

    def granted(self, site: Site, amounts: Amounts, devices: Indices, end: float) -> None:
        """A lease was granted on this node."""
        self._ends.pop(site.node.name, None)
        reservation = self.by_node.get(site.node.name)
        if reservation is not None and end > reservation.time:
            site.take(reservation.rest, amounts, devices)

    def reserve(self, line: Line, now: float, node: str | None = None) -> bool:
        """Reserve for the first of this line where it fits earliest (`node`: there, if it is not taken).

        False: on all nodes that are left it waits for something without a known end.
        """
        best: tuple[float, Site, Free] | None = None
        sites = [site for site in line.sites if site.node.name not in self.by_node]
        owed = [site for site in sites if site.node.name == node]
        for site in owed or sites:
            found = self._earliest(site, line.demand, now, inf if best is None else best[0])
            if found is not None:
                best = found[0], site, found[1]
        if best is None:
            self.contested.update(site.node.name for site in line.sites)
            return False
        time, site, rest = best
        self.by_node[site.node.name] = Reservation(line.first, line.demand, time, rest)
        return True

    def _earliest(self, site: Site, demand: Demand, now: float, before: float) -> tuple[float, Free] | None:
        free = site.free.copy()
        if (ends := self._ends.get(site.node.name)) is None:
            ends = self._ends[site.node.name] = self.holdings.ends_on(site.node.name, now)
        for position, (end, lease) in enumerate(ends):
            if end >= before:
                return None
            site.give(free, lease.amounts, site.positions(lease.devices))
            if position + 1 < len(ends) and ends[position + 1][0] == end:
                continue
            if placement := site.place(free, demand):
                for amounts, devices in zip(demand.parts, placement.devices, strict=True):
                    site.take(free, amounts, devices)
                return end, free
        return None


def _collides(tenant: Tenant, amounts: Amounts, reserved: Amounts) -> bool:
    return any(getattr(reserved, name) for name in tenant.short_of(amounts, reserved))
