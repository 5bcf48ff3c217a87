"""The ledger: who gets which resources next. Pure: no clock, no I/O, no randomness; every time is an argument."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from uuid import UUID, uuid5

from clara_flow.infra.ledger.model import (
    RESOURCES,
    Amounts,
    Answer,
    Ask,
    Decision,
    Fits,
    Grant,
    Lease,
    NeverFits,
    Node,
    Priority,
    Quota,
    WaitsFor,
)


class Ledger:
    """Snapshot, decide, reserve."""

    def __init__(self, *, ageing_s: float = 900.0) -> None:
        self._ageing_s = ageing_s
        self._nodes: dict[str, Node] = {}
        self._quotas: dict[str, Quota] = {}
        self._asks: dict[UUID, Ask] = {}
        self._leases: dict[UUID, Lease] = {}

    @property
    def asks(self) -> Mapping[UUID, Ask]:
        """What waits, by id."""
        return MappingProxyType(self._asks)

    @property
    def leases(self) -> Mapping[UUID, Lease]:
        """What is held, by id."""
        return MappingProxyType(self._leases)

    def set_nodes(self, nodes: Iterable[Node]) -> None:
        """Replace all nodes; leases on nodes and devices that are gone stay until they are released."""
        self._nodes = {node.name: node for node in sorted(nodes, key=lambda node: node.name)}

    def set_quotas(self, quotas: Iterable[Quota]) -> None:
        """Replace all quotas; what is held beyond a new limit stays until it is released."""
        self._quotas = {quota.tenant: quota for quota in quotas}

    def ask(self, ask: Ask) -> None:
        """Wait; the same id again, waiting or granted, changes nothing."""
        if ask.id not in self._leases:
            self._asks.setdefault(ask.id, ask)

    def withdraw(self, ask_id: UUID) -> None:
        """Wait no longer; an unknown id changes nothing."""
        self._asks.pop(ask_id, None)

    def restore(self, lease: Lease) -> None:
        """A lease that was granted before this ledger was made."""
        self._asks.pop(lease.id, None)
        self._leases[lease.id] = lease

    def release(self, lease_id: UUID, now: float) -> None:
        """The holder is done; an unknown id changes nothing."""
        self._leases.pop(lease_id, None)

    def decide(self, now: float) -> list[Decision]:
        """Grant what can be granted now; the grants are applied when this returns."""
        decisions: list[Decision] = []
        for ask in self._order():
            if grant := self._try(ask, now):
                decisions.append(grant)
                del self._asks[ask.id]
                self._leases.update((lease.id, lease) for lease in grant.leases)
        return decisions

    def explain(self, ask_id: UUID, now: float) -> Answer:
        """Why this ask waits. Raises KeyError for an id that does not wait."""
        ask = self._asks[ask_id]
        if never := self.would_fit(ask):
            return never
        if grant := self._try(ask, now):
            return Fits(node=grant.leases[0].node, devices=grant.leases[-1].devices)
        return WaitsFor(resource="turn", position=[waiting.id for waiting in self._order()].index(ask_id) + 1)

    def would_fit(self, ask: Ask) -> NeverFits | None:
        """What is missing for ever; None: it can be granted one day."""
        together = ask.amounts + ask.first[1] if ask.first else ask.amounts
        missing = missing_for(self._nodes.values(), self._quotas.get(ask.tenant), together, ask.needs)
        return NeverFits(missing=missing) if missing else None

    def queue(self, now: float, limit: int | None = None) -> list[tuple[Ask, Answer]]:
        """What waits, in the order in which it would be served, with the answers of `explain`."""
        return [(ask, self.explain(ask.id, now)) for ask in self._order()[:limit]]

    def invariants(self) -> None:
        """Raises AssertionError, which says what is broken."""

    def _order(self) -> list[Ask]:
        return sorted(
            self._asks.values(),
            key=lambda ask: (
                not ask.completes,
                ask.early,
                ask.priority != Priority.IMMEDIATE,
                -ask.priority,
                not ask.operator,
                ask.asked,
                ask.id,
            ),
        )

    def _try(self, ask: Ask, now: float) -> Grant | None:
        parts = [(ask.id, ask.operator, ask.amounts)]
        if ask.first:
            parts.append((uuid5(ask.id, ask.first[0]), *ask.first))
        for node in self._nodes.values():
            if not node.usable or (ask.node and ask.node != node.name):
                continue
            free = {name: getattr(node, name) for name in ("cpu", "memory_mib", "fastio_mib", "jobs")}
            memory = {device.uuid: device.memory_mib - device.foreign_mib for device in node.devices if device.usable}
            whole = set(memory)
            for lease in self._leases.values():
                if lease.node == node.name:
                    for name in free:
                        free[name] -= getattr(lease.amounts, name)
                    for uuid in lease.devices:
                        whole.discard(uuid)
                        if uuid in memory:
                            memory[uuid] -= lease.amounts.gpu_memory_mib or memory[uuid]
            leases = []
            for lease_id, operator, amounts in parts:
                devices: list[str] = sorted(whole)[: amounts.gpu]
                if amounts.gpu_memory_mib:
                    devices = [uuid for uuid, room in sorted(memory.items()) if room >= amounts.gpu_memory_mib][:1]
                if len(devices) < (amounts.gpu or bool(amounts.gpu_memory_mib)):
                    break
                for uuid in devices:
                    whole.discard(uuid)
                    memory[uuid] -= amounts.gpu_memory_mib or memory[uuid]
                for name in free:
                    free[name] -= getattr(amounts, name)
                leases.append(
                    Lease(
                        id=lease_id,
                        job_id=ask.job_id,
                        operator=operator,
                        tenant=ask.tenant,
                        priority=ask.priority,
                        amounts=amounts,
                        node=node.name,
                        devices=tuple(devices),
                        granted=now,
                        limit_s=ask.limit_s,
                        expected_s=ask.expected_s,
                        preemptible=ask.preemptible,
                    )
                )
            if len(leases) == len(parts) and min(free.values()) >= 0:
                return Grant(ask=ask, leases=tuple(leases))
        return None


def missing_for(
    nodes: Iterable[Node], quota: Quota | None, together: Amounts, needs: Iterable[Amounts] = ()
) -> dict[str, int]:
    """What no node and no quota will ever give, by resource ("quota:<resource>" for the hard limit); {}: it can fit.

    together    held at once on one node; needs: held one at a time on that same node.
    """
    wanted = [together, *needs]
    lacks = [_lacks(node, wanted) for node in nodes]
    missing = min(lacks, key=lambda lack: (len(lack), sum(lack.values())), default={})
    if quota:
        for name in RESOURCES:
            over = max(getattr(amounts, name) for amounts in wanted) - quota.hard.get(name, 2**63)
            if over > 0:
                missing[f"quota:{name}"] = over
    return missing


def _lacks(node: Node, wanted: list[Amounts]) -> dict[str, int]:
    has = {name: getattr(node, name) for name in ("cpu", "memory_mib", "fastio_mib", "jobs")}
    has["gpu"] = len(node.devices)
    has["gpu_memory_mib"] = max((device.memory_mib for device in node.devices), default=0)
    return {
        name: most - has[name]
        for name in RESOURCES
        if (most := max(getattr(amounts, name) for amounts in wanted)) > has[name]
    }
