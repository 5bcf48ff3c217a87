"""Tenants: what each holds, what its quota says, and how much of the pool it has had.

Fair share is over the *dominant share*: the largest fraction of any resource of the pool that a tenant holds. Its
virtual time is the integral of its dominant share over time, divided by its weight; who has the least is served first.
Who comes back after it wanted nothing starts level with those who wait: neither is use of an idle pool held against
anybody, nor does abstinence earn a claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from clara_flow.infra.ledger.model import RESOURCES, Amounts, Node, Priority, Quota

NOTHING = Amounts()
HOLDING_S = 60.0  # what is held counts as if it had been held that much longer: who holds less now goes first
PICKS = {Priority.LOWER: 1, Priority.NORMAL: 2, Priority.HIGHER: 4}  # how often a class is picked, relative to others


@dataclass(slots=True)
class Tenant:
    """One tenant's account.

    share       its dominant share now; virtual: the virtual time, seconds.
    passes      by class: how far it has come, in units of 1/picks (stride scheduling); `passed`: at the last pick.
    competing   whether something of it waits that only others hold back, so that its virtual time means something.
    """

    name: str
    quota: Quota
    held: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RESOURCES, 0))
    share: float = 0.0
    virtual: float = 0.0
    counted_until: float | None = None
    passes: dict[Priority, float] = field(default_factory=lambda: dict.fromkeys(PICKS, 0.0))
    passed: float = 0.0
    waiting: int = 0
    competing: bool = False

    def count(self, now: float) -> None:
        """Bring the virtual time up to `now`."""
        if self.counted_until is not None and now > self.counted_until:
            self.virtual += self.share * (now - self.counted_until) / self.quota.weight
        self.counted_until = now if self.counted_until is None else max(now, self.counted_until)

    @property
    def rank(self) -> float:
        """Least first."""
        return self.virtual + HOLDING_S * self.share / self.quota.weight

    def short_of(self, amounts: Amounts, besides: Amounts = NOTHING) -> tuple[str, ...]:
        """The resources whose hard limit has no room for `amounts` (and `besides`, where both want some)."""
        if not self.quota.hard:
            return ()
        return tuple(
            name
            for name, limit in self.quota.hard.items()
            if (wanted := getattr(amounts, name)) and self.held[name] + wanted + getattr(besides, name) > limit
        )

    def may_ever_hold(self, amounts: Amounts) -> bool:
        """Whether the hard limits have room for it when nothing is held."""
        return all(getattr(amounts, name) <= limit for name, limit in self.quota.hard.items())

    def borrows(self, amounts: Amounts) -> bool:
        """Whether `amounts` take it beyond what is its own."""
        return any(
            (wanted := getattr(amounts, name)) and self.held[name] + wanted > limit
            for name, limit in self.quota.nominal.items()
        )


class Tenants:
    """All accounts."""

    def __init__(self) -> None:
        self._tenants: dict[str, Tenant] = {}
        self._quotas: Mapping[str, Quota] = {}
        self._pool: dict[str, int] = {}
        self._level = 0.0  # the virtual time of the pool: that of the tenant who was served last, never less

    def __getitem__(self, name: str) -> Tenant:
        if (tenant := self._tenants.get(name)) is None:
            tenant = self._tenants[name] = Tenant(name, self._quotas.get(name) or Quota(tenant=name))
        return tenant

    def set_quotas(self, quotas: Mapping[str, Quota]) -> None:
        """Replace all quotas."""
        self._quotas = quotas
        for tenant in self._tenants.values():
            tenant.quota = quotas.get(tenant.name) or Quota(tenant=tenant.name)

    def set_nodes(self, nodes: Iterable[Node]) -> None:
        """Replace what the shares are fractions of."""
        nodes = list(nodes)
        self._pool = {name: sum(getattr(node, name) for node in nodes) for name in ("cpu", "memory_mib", "fastio_mib")}
        self._pool["jobs"] = sum(node.jobs for node in nodes)
        self._pool["gpu"] = sum(len(node.devices) for node in nodes)
        self._pool["gpu_memory_mib"] = sum(device.memory_mib for node in nodes for device in node.devices)
        for tenant in self._tenants.values():
            tenant.share = self._dominant(tenant.held)

    def adopt(self, other: Tenants) -> None:
        """Take over from another ledger what each tenant has had; what is held and waits is this one's own."""
        self._level = other._level
        for theirs in other:
            ours = self[theirs.name]
            ours.virtual, ours.counted_until = theirs.virtual, theirs.counted_until
            ours.passes, ours.passed, ours.competing = dict(theirs.passes), theirs.passed, theirs.competing

    def hold(self, name: str, amounts: Amounts, sign: int = 1) -> None:
        """A tenant holds that much more; `sign` -1: less."""
        tenant = self[name]
        for resource in RESOURCES:
            tenant.held[resource] += sign * getattr(amounts, resource)
        tenant.share = self._dominant(tenant.held)

    def count(self, now: float) -> None:
        """Bring all virtual times up to `now`, and those who newly compete up to the others' level."""
        for tenant in self._tenants.values():
            tenant.count(now)
        newcomers = [tenant for tenant in self._tenants.values() if tenant.waiting and not tenant.competing]
        if newcomers:
            level = min(
                (tenant.virtual for tenant in self._tenants.values() if tenant.waiting and tenant.competing),
                default=self._level,
            )
            for tenant in newcomers:
                tenant.virtual = max(tenant.virtual, level)
                tenant.competing = True

    def picked(self, tenant: Tenant, priority: Priority) -> None:
        """A tenant's class was served."""
        self._level = max(self._level, tenant.virtual)
        tenant.passed = tenant.passes[priority]
        tenant.passes[priority] += 1 / PICKS[priority]

    def waits(self, name: str, priority: Priority, *, class_was_empty: bool) -> None:
        """One more of its asks waits."""
        tenant = self[name]
        tenant.waiting += 1
        if class_was_empty:
            tenant.passes[priority] = max(tenant.passes[priority], tenant.passed)

    def waits_no_more(self, name: str) -> None:
        """One of its asks waits no longer."""
        tenant = self[name]
        tenant.waiting -= 1
        if not tenant.waiting:
            tenant.competing = False

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._tenants.values())

    def fraction(self, amounts: Amounts) -> float:
        """The dominant share of these amounts."""
        return self._dominant({name: getattr(amounts, name) for name in RESOURCES})

    def _dominant(self, held: Mapping[str, int]) -> float:
        pool = self._pool
        gpus = sum(held[name] / pool[name] for name in ("gpu", "gpu_memory_mib") if pool.get(name))
        return max(gpus, *(held[name] / pool[name] if pool.get(name) else 0.0 for name in NOT_GPUS))


NOT_GPUS = ("cpu", "memory_mib", "fastio_mib", "jobs")
