"""Why somebody waits, for whom, and for how long, likely."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from uuid import UUID

from clara_flow.infra.ledger.backfill import Reservations
from clara_flow.infra.ledger.demand import Demand
from clara_flow.infra.ledger.holdings import Holdings, expected_end
from clara_flow.infra.ledger.lanes import Line
from clara_flow.infra.ledger.model import (
    RESOURCES,
    Amounts,
    Answer,
    Ask,
    Fits,
    FitsAfterPreemption,
    Lease,
    WaitsFor,
)
from clara_flow.infra.ledger.placement import Site
from clara_flow.infra.ledger.preemption import Debt, find_victims
from clara_flow.infra.ledger.tenants import Tenant


def explain(
    ask: Ask,
    line: Line,
    now: float,
    *,
    holdings: Holdings,
    tenant: Tenant,
    reservations: Reservations,
    debts: Mapping[UUID, Debt],
    may_preempt: bool,
    position: int,
) -> Answer:
    """The answer to an ask that waits and can be granted one day; `position` is passed on."""
    demand, sites = line.demand, line.sites
    if short := tenant.short_of(demand.total):
        own = [lease for lease in holdings.leases.values() if lease.tenant == ask.tenant]
        holders = _holders(own, (short[0],), now)
        forecast = _quota_forecast(tenant, demand, own, now) if position == 1 else None
        return WaitsFor(resource=f"quota:{short[0]}", holders=holders, forecast=forecast, position=position)
    end = holdings.end_for(ask.job_id, ask.limit_s, now)
    if reservations.quota_allows(tenant, demand, end) and (place := reservations.place(line, end)):
        if demand.early or holdings.yields(demand.job_id):
            return WaitsFor(resource="turn", position=position)
        site, placement = place
        devices = tuple(site.node.devices[index].uuid for part in placement.devices for index in part)
        return Fits(node=site.node.name, devices=devices)
    if any(site.fits(site.free, demand) for site in sites):
        before = (reservation.ask for reservation in reservations.by_node.values())
        jobs = tuple(dict.fromkeys(other.job_id for other in before if other.id != ask.id))
        return WaitsFor(resource="turn", holders=jobs, position=position)
    debt = debts.get(ask.id)
    if debt is None and may_preempt and ask.id == line.first.id:
        debt = find_victims(demand, sites, holdings, debts.values())
    if debt:
        return FitsAfterPreemption(node=debt.node, victims=debt.victims)
    if not sites:  # all that could are drained, failed or silent
        asked_for = (name for name in RESOURCES if getattr(demand.total, name))
        resource = "gpu" if demand.wants_gpu else next(asked_for, "cpu")
        return WaitsFor(resource=resource, position=position)
    site = _nearest(ask, demand, sites, reservations)
    resource = _scarcest(site, demand)
    forecast = _forecast(sites, demand, holdings, now) if position == 1 else None
    # whole devices and shares exclude each other
    held = ("gpu", "gpu_memory_mib") if resource in ("gpu", "gpu_memory_mib") else (resource,)
    holders = _holders(holdings.on(site.node.name), held, now)
    return WaitsFor(resource=resource, holders=holders, forecast=forecast, position=position)


def _by_end(leases: Iterable[Lease], now: float) -> list[tuple[float, Lease]]:
    return sorted(((expected_end(lease, now), lease) for lease in leases), key=lambda entry: entry[0])


def _holders(leases: Iterable[Lease], names: tuple[str, ...], now: float) -> tuple[UUID, ...]:
    """The jobs that hold some of these resources, the likely earliest end first."""
    held = (lease for _, lease in _by_end(leases, now) if any(getattr(lease.amounts, name) for name in names))
    return tuple(dict.fromkeys(lease.job_id for lease in held))


def _forecast(sites: Iterable[Site], demand: Demand, holdings: Holdings, now: float) -> float | None:
    """When it fits somewhere if everybody holds what they hold for as long as is expected."""
    best = inf
    for site in sites:
        free = site.free.copy()
        for end, lease in _by_end(holdings.on(site.node.name), now):
            if end >= best:
                break
            site.give(free, lease.amounts, site.positions(lease.devices))
            if site.fits(free, demand):
                best = end
    return None if best == inf else best


def _quota_forecast(tenant: Tenant, demand: Demand, own: Iterable[Lease], now: float) -> float | None:
    held = dict(tenant.held)
    for end, lease in _by_end(own, now):
        for name in RESOURCES:
            held[name] -= getattr(lease.amounts, name)
        if end < inf and all(
            held[name] + wanted <= tenant.quota.hard.get(name, inf)
            for name in RESOURCES
            if (wanted := getattr(demand.total, name))
        ):
            return end
    return None


def _nearest(ask: Ask, demand: Demand, sites: Iterable[Site], reservations: Reservations) -> Site:
    """The node where its room is reserved, else that which lacks the fewest resources."""

    def cost(site: Site) -> tuple[bool, int]:
        reservation = reservations.by_node.get(site.node.name)
        reserved = reservation is not None and reservation.ask.id == ask.id
        return not reserved, len(_short(site, demand.total))

    return min(sites, key=cost)


def _short(site: Site, total: Amounts) -> dict[str, float]:
    """What the node is short of now: by resource the fraction of what is asked for that is missing."""
    free = site.free
    open_ = [position for position in site.usable if not free.holders[position]]
    has = {
        "gpu": len(open_),
        "gpu_memory_mib": max((free.room_mib[position] for position in site.usable), default=0),
        "jobs": free.jobs,
        "fastio_mib": free.fastio_mib,
        "memory_mib": free.memory_mib,
        "cpu": free.cpu,
    }
    return {
        name: (wanted - max(amount, 0)) / wanted
        for name, amount in has.items()
        if (wanted := getattr(total, name)) and wanted > amount
    }


def _scarcest(site: Site, demand: Demand) -> str:
    """The resource of which most is missing; devices where each of the parts fits but not all of them together."""
    short = _short(site, demand.total)
    return max(short, key=lambda name: short[name], default="gpu")
