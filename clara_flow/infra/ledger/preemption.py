"""Whose job goes back to the queue for whom.

Only IMMEDIATE and HIGHER preempt, only jobs that allow it, of strictly lower priority, between two operators. What a
running operator holds ends by itself; a job is asked to yield only if an ask needs what the job holds beyond that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from uuid import UUID

from clara_flow.infra.ledger.demand import Demand
from clara_flow.infra.ledger.holdings import Holdings
from clara_flow.infra.ledger.model import Lease
from clara_flow.infra.ledger.placement import Free, Site

EXACT = 2  # up to so many victims the fewest are found for certain; more are gathered youngest first
CONSIDERED = 24  # jobs per node, the youngest


@dataclass(frozen=True, slots=True)
class Debt:
    """What these jobs give back on this node is owed to an ask with this demand."""

    demand: Demand
    node: str
    victims: tuple[UUID, ...]


def find_victims(demand: Demand, sites: Iterable[Site], holdings: Holdings, debts: Iterable[Debt]) -> Debt | None:
    """The fewest and youngest jobs after whose yielding it fits on one of these nodes; None: there are none.

    Jobs that yield already without owing it to anybody (the ledger was made anew) cost nothing and come first.
    """
    debts = list(debts)
    owing = {job_id for debt in debts for job_id in debt.victims}
    best: tuple[tuple[float, ...], Debt] | None = None
    for site in sites:
        free = _after(debts, site, holdings)
        jobs = [
            lease
            for lease in holdings.on(site.node.name)
            if not lease.operator
            and (lease.preemptible or lease.yielding)
            and lease.priority < demand.priority
            and lease.job_id not in owing
        ]
        jobs.sort(key=lambda lease: (not lease.yielding, -lease.granted, lease.id))
        victims = _fewest(demand, site, holdings, free, jobs[:CONSIDERED])
        if not victims:
            continue
        cost = (sum(not lease.yielding for lease in victims), -min(lease.granted for lease in victims))
        if best is None or cost < best[0]:
            best = cost, Debt(demand, site.node.name, tuple(lease.job_id for lease in victims))
    return best and best[1]


def _after(debts: Iterable[Debt], site: Site, holdings: Holdings) -> Free:
    """What is free once all debts on this node are paid."""
    free = site.free.copy()
    for debt in debts:
        if debt.node == site.node.name:
            for job_id in debt.victims:
                _give(site, free, holdings.of(job_id))
            placement = site.place(free, debt.demand)
            for amounts, devices in zip(debt.demand.parts, placement.devices if placement else (), strict=False):
                site.take(free, amounts, devices)
    return free


def _fewest(demand: Demand, site: Site, holdings: Holdings, free: Free, jobs: list[Lease]) -> tuple[Lease, ...]:
    def fits(victims: Iterable[Lease], *, whole: bool = True) -> bool:
        view = free.copy()
        for victim in victims:
            _give(site, view, (lease for lease in holdings.of(victim.job_id) if whole or lease.operator))
        return site.fits(view, demand)

    if fits((), whole=False) or not fits(jobs):
        return ()
    chosen: tuple[Lease, ...] = ()
    for count in range(1, EXACT + 1):
        for victims in combinations(jobs, count):
            if fits(victims):
                chosen = victims
                break
        if chosen:
            break
    if not chosen:
        chosen = tuple(jobs)
        for victim in reversed(jobs):  # the oldest are let go first
            fewer = tuple(lease for lease in chosen if lease is not victim)
            if fits(fewer):
                chosen = fewer
    return () if fits(chosen, whole=False) else chosen


def _give(site: Site, free: Free, leases: Iterable[Lease]) -> None:
    for lease in leases:
        if lease.node == site.node.name:
            site.give(free, lease.amounts, site.positions(lease.devices))
