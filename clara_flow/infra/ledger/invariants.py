"""What must always be true of a ledger's books; checked by tests and by the simulator."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from clara_flow.infra.ledger.holdings import Holdings
from clara_flow.infra.ledger.model import RESOURCES, Lease
from clara_flow.infra.ledger.placement import Site
from clara_flow.infra.ledger.tenants import Tenants


def check(holdings: Holdings, tenants: Tenants, asks: Iterable[UUID]) -> None:
    """Raises AssertionError, which says what is broken.

    Nodes may hold more than they have after they shrank or after leases were restored: whether they hold too much is
    not looked at here, but whether the books agree with the leases and no device has two masters.
    """
    leases = list(holdings.leases.values())
    both = set(asks) & set(holdings.leases)
    _require(not both, f"ids that wait and hold at once: {both}")
    for site in holdings.sites.values():
        _check_site(site, [lease for lease in leases if lease.node == site.node.name])
    for tenant in tenants:
        for name in RESOURCES:
            held = sum(getattr(lease.amounts, name) for lease in leases if lease.tenant == tenant.name)
            _require(tenant.held[name] == held, f"tenant {tenant.name}: {name} {tenant.held[name]}, leases say {held}")


def _check_site(site: Site, leases: list[Lease]) -> None:
    expected = site.empty()
    for lease in leases:
        site.take(expected, lease.amounts, site.positions(lease.devices))
    _require(expected == site.free, f"node {site.node.name}: free {site.free}, leases say {expected}")
    for device in site.node.devices:
        holders = [lease for lease in leases if device.uuid in lease.devices]
        whole = [lease for lease in holders if lease.amounts.gpu]
        _require(not whole or len(holders) == 1, f"device {device.uuid} is held whole and by {len(holders)} leases")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)
