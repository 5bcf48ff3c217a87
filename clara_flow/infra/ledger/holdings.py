"""Who holds what where, and until when at the latest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from uuid import UUID

from clara_flow.infra.ledger.model import Lease, Node
from clara_flow.infra.ledger.placement import Site


class Holdings:
    """All leases, and the nodes with what is free on them. `sites` is in the order of names."""

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {}
        self.leases: dict[UUID, Lease] = {}
        self._by_node: dict[str, dict[UUID, Lease]] = {}
        self._by_job: dict[UUID, dict[UUID, Lease]] = {}

    def set_nodes(self, nodes: Iterable[Node]) -> bool:
        """Replace all nodes; False when they are the same as before. Leases stay whether their node is there or not."""
        wanted = {node.name: node for node in sorted(nodes, key=lambda node: node.name)}
        if wanted == {name: site.node for name, site in self.sites.items()}:
            return False
        old, self.sites = self.sites, {}
        for name, node in wanted.items():
            site = old.get(name)
            if site is None or site.node != node:
                site = Site(node)
                for lease in self.on(name):
                    site.take(site.free, lease.amounts, site.positions(lease.devices))
            self.sites[name] = site
        return True

    def add(self, lease: Lease) -> None:
        """Somebody holds this from now on."""
        self._file(lease)
        if site := self.sites.get(lease.node):
            site.take(site.free, lease.amounts, site.positions(lease.devices))

    def remove(self, lease_id: UUID) -> Lease:
        """Nobody holds it any longer."""
        lease = self.leases.pop(lease_id)
        for index, key in ((self._by_node, lease.node), (self._by_job, lease.job_id)):
            del index[key][lease_id]  # type: ignore[index]
            if not index[key]:  # type: ignore[index]
                del index[key]  # type: ignore[arg-type]
        if site := self.sites.get(lease.node):
            site.give(site.free, lease.amounts, site.positions(lease.devices))
        return lease

    def replace(self, lease: Lease) -> None:
        """The same lease with another note on it."""
        self._file(lease)

    def on(self, node: str) -> Iterator[Lease]:
        """The leases on a node, the oldest first."""
        return iter(self._by_node.get(node, {}).values())

    def of(self, job_id: UUID) -> Iterator[Lease]:
        """The leases of a job, the oldest first."""
        return iter(self._by_job.get(job_id, {}).values())

    def yields(self, job_id: UUID | None) -> bool:
        """Whether this job was asked to go back to the queue."""
        return job_id is not None and any(lease.yielding for lease in self.of(job_id))

    def end_of(self, lease: Lease, now: float) -> float:
        """When it ends at the latest: at its own limit, with its job; if its job yields, with the job's last operator.
        What should have ended already ends now."""
        end = lease.granted + lease.limit_s
        if lease.operator:
            for other in self.of(lease.job_id):
                if not other.operator:
                    end = min(end, other.granted + other.limit_s)
        elif lease.yielding:
            running = (other.granted + other.limit_s for other in self.of(lease.job_id) if other.operator)
            end = min(end, max(running, default=now))
        return max(end, now)

    def end_for(self, job_id: UUID, limit_s: float, now: float) -> float:
        """When a lease of this job that begins now ends at the latest."""
        return min([now + limit_s, *(lease.granted + lease.limit_s for lease in self.of(job_id) if not lease.operator)])

    def has_slots(self) -> bool:
        """Whether some node that may be used has a runner slot left."""
        return any(site.free.jobs > 0 for site in self.sites.values() if site.node.usable)

    def ends_on(self, node: str, now: float) -> list[tuple[float, Lease]]:
        """The leases on a node by their latest end."""
        return sorted(((self.end_of(lease, now), lease) for lease in self.on(node)), key=lambda entry: entry[0])

    def _file(self, lease: Lease) -> None:
        self.leases[lease.id] = lease
        self._by_node.setdefault(lease.node, {})[lease.id] = lease
        self._by_job.setdefault(lease.job_id, {})[lease.id] = lease


def expected_end(lease: Lease, now: float) -> float:
    """When it will probably end: after its expected duration, else at its limit; now if that is past."""
    duration_s = lease.limit_s if lease.expected_s is None else lease.expected_s
    return max(now, lease.granted + duration_s)
