"""Second books beside the ledger's own: every grant is checked against what the machines really have.

They share no code with the ledger, so that a mistake there shows here, at the step where it is made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from uuid import UUID

from clara_flow.infra.ledger.model import Ask, Device, Lease, Node, Quota
from clara_flow.infra.ledger.simulation.measures import Fairness, Hourly

OF_NODE = ("cpu", "memory_mib", "fastio_mib", "jobs")


class CapacityBroken(AssertionError):
    """A scheduler gave something that is not there. A bug of the scheduler."""


class Books:
    """Who holds what, kept by the simulation itself. Raises CapacityBroken when a lease is impossible.

    enforced    whether hard quotas count; weights always do, for the index of fairness.
    """

    def __init__(self, nodes: Iterable[Node], quotas: Iterable[Quota], *, enforced: bool = True) -> None:
        self.nodes: dict[str, Node] = {}
        self.devices: dict[str, Device] = {}
        quotas = tuple(quotas)
        self.hard: dict[str, Mapping[str, int]] = {quota.tenant: quota.hard for quota in quotas if enforced}
        self.leases: dict[UUID, Lease] = {}
        self.on_node: defaultdict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(OF_NODE, 0))
        self.of_tenant: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.gpus_of_tenant: defaultdict[str, float] = defaultdict(float)
        self.whole: dict[str, UUID] = {}
        self.shares: defaultdict[str, dict[UUID, int]] = defaultdict(dict)
        self.gpu_held, self.cpu_held = Hourly(), Hourly()
        self.fairness = Fairness({quota.tenant: quota.weight for quota in quotas})
        self.now = 0.0
        self.set_nodes(nodes)
        self.gpus_in_all = max(1, len(self.devices))
        self.in_all: dict[str, int] = {
            name: max(1, sum(getattr(node, name) for node in self.nodes.values())) for name in OF_NODE
        }

    def set_nodes(self, nodes: Iterable[Node]) -> None:
        """The machines as they are from now on."""
        self.nodes = {node.name: node for node in nodes}
        self.devices = {device.uuid: device for node in self.nodes.values() for device in node.devices}

    def advance(self, now: float, waiting: Collection[str]) -> None:
        """Time goes on to `now`; `waiting`: tenants that wanted more all the while."""
        if now <= self.now:
            return
        self.gpu_held.add(sum(self.gpus_of_tenant.values()), self.now, now)
        self.cpu_held.add(sum(node["cpu"] for node in self.on_node.values()), self.now, now)
        if len(waiting) > 1:
            self.fairness.add(waiting, {tenant: self.dominant_share(tenant) for tenant in waiting}, now - self.now)
        self.now = now

    def dominant_share(self, tenant: str) -> float:
        """The largest of the tenant's shares of what the pool has: GPUs, cores, memory, FastIO, runners."""
        held = self.of_tenant[tenant]
        gpus = self.gpus_of_tenant[tenant] / self.gpus_in_all
        return max(gpus, *(held[name] / total for name, total in self.in_all.items()))

    def take(self, lease: Lease, ask: Ask) -> None:
        """A lease was granted for that ask."""
        node = self.nodes[lease.node]
        self._demand(lease.id not in self.leases, lease, "is granted twice")
        # on a drained node the jobs that run there may end
        self._demand(node.usable or ask.node == node.name, lease, f"is on {node.name}, which is not usable")
        self._demand(ask.node in (None, lease.node), lease, f"is on {lease.node}, its job is on {ask.node}")
        self._demand((lease.tenant, lease.job_id) == (ask.tenant, ask.job_id), lease, "is somebody else's")
        self._take_devices(lease, node)
        held, tenants = self.on_node[lease.node], self.of_tenant[lease.tenant]
        for name in OF_NODE:
            held[name] += getattr(lease.amounts, name)
            self._demand(held[name] <= getattr(node, name), lease, f"takes {held[name]} {name} of {node.name}")
        hard = self.hard.get(lease.tenant, {})
        for name in (*OF_NODE, "gpu", "gpu_memory_mib"):
            tenants[name] += getattr(lease.amounts, name)
            self._demand(name not in hard or tenants[name] <= hard[name], lease, f"exceeds the hard quota of {name}")
        self.gpus_of_tenant[lease.tenant] += self.gpus(lease)
        self.leases[lease.id] = lease

    def give(self, lease_id: UUID) -> Lease:
        """A lease ended."""
        lease = self.leases.pop(lease_id)
        for name in OF_NODE:
            self.on_node[lease.node][name] -= getattr(lease.amounts, name)
        for name in (*OF_NODE, "gpu", "gpu_memory_mib"):
            self.of_tenant[lease.tenant][name] -= getattr(lease.amounts, name)
        self.gpus_of_tenant[lease.tenant] -= self.gpus(lease)
        for uuid in lease.devices:
            self.whole.pop(uuid, None)
            self.shares[uuid].pop(lease.id, None)
        return lease

    def gpus(self, lease: Lease) -> float:
        """How many GPUs a lease holds; a share counts as its part of the card's memory."""
        if lease.amounts.gpu_memory_mib:
            return lease.amounts.gpu_memory_mib / self.devices[lease.devices[0]].memory_mib
        return float(lease.amounts.gpu)

    def _take_devices(self, lease: Lease, node: Node) -> None:
        own = {device.uuid: device for device in node.devices}
        wanted = lease.amounts.gpu or (1 if lease.amounts.gpu_memory_mib else 0)
        self._demand(len(set(lease.devices)) == len(lease.devices) == wanted, lease, f"has {len(lease.devices)} GPUs")
        for uuid in lease.devices:
            self._demand(uuid in own, lease, f"has GPU {uuid}, which is not of {node.name}")
            device = own[uuid]
            self._demand(device.usable, lease, f"has GPU {uuid}, which is not usable")
            self._demand(uuid not in self.whole, lease, f"has GPU {uuid}, which is held whole by another")
            if lease.amounts.gpu:
                self._demand(not self.shares[uuid], lease, f"has the whole of GPU {uuid}, which others share")
                self.whole[uuid] = lease.id
            else:
                self.shares[uuid][lease.id] = lease.amounts.gpu_memory_mib
                taken = sum(self.shares[uuid].values()) + device.foreign_mib
                self._demand(taken <= device.memory_mib, lease, f"takes {taken} MiB of GPU {uuid}")

    def _demand(self, holds: bool, lease: Lease, otherwise: str) -> None:
        if not holds:
            what = f"operator {lease.operator!r}" if lease.operator else "the job"
            raise CapacityBroken(f"at {self.now:.3f} s, the lease of {what} of job {lease.job_id} {otherwise}")
