"""The pool's machines and devices as people see them: what is there, who holds it, what is out of service."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from clara_flow.errors import InputError
from clara_flow.infra.gpu.model import Gpu
from clara_flow.infra.gpu.node import NodeInventory, read_node
from clara_flow.records import jobs, leases, nodes

SHORTEST = len("GPU-12345678")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who has a device. operator "": the job as a whole; gpu_memory_mib None: all of the device."""

    job_id: UUID
    job_name: str
    operator: str
    tenant: str
    gpu_memory_mib: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """One machine.

    jobs                how many it may run at once.
    is_silent           its worker was not heard of for longer than a lease lasts.
    held                amounts that are leased there, by the ledger's names.
    holders             by UUID of the device; the UUID of one that vanished may still be there.
    """

    name: str
    inventory: NodeInventory
    jobs: int = 0
    drained: bool = False
    drained_devices: frozenset[str] = frozenset()
    is_silent: bool = False
    held: Mapping[str, int] = field(default_factory=dict)
    holders: Mapping[str, tuple[Holder, ...]] = field(default_factory=dict)

    def is_drained(self, gpu: Gpu) -> bool:
        """Whether the device takes no new work because somebody said so: it, its card, or its machine."""
        return self.drained or bool({gpu.uuid, gpu.card} & self.drained_devices)

    def holders_on(self, gpu: Gpu) -> tuple[Holder, ...]:
        """Who holds the device or, when it is divided, one of its instances."""
        parts = [part.uuid for part in self.inventory.gpus if gpu.uuid in {part.uuid, part.card}]
        return tuple(holder for uuid in parts for holder in self.holders.get(uuid, ()))

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "name": self.name,
            "drained": self.drained,
            "silent": self.is_silent,
            "jobs": self.jobs,
            "held": dict(self.held),
            **{key: value for key, value in self.inventory.to_json().items() if key != "gpus"},
            "gpus": [
                gpu.to_json()
                | {
                    "drained": self.is_drained(gpu),
                    "holders": [_holder_json(h) for h in self.holders.get(gpu.uuid, ())],
                }
                for gpu in self.inventory.gpus
            ],
        }


def pool_status(engine: sa.Engine) -> list[NodeStatus]:
    """All machines of the pool by name. Raises ServiceError when the database cannot be reached."""
    granted = [row for row in leases.load(engine) if row.state == leases.LeaseState.GRANTED]
    names = jobs.names(engine, {row.job_id for row in granted})
    now = time.time()
    found = []
    for row in sorted(nodes.list_nodes(engine), key=lambda row: row.name):
        here = [lease for lease in granted if lease.node == row.name]
        held: Counter[str] = Counter()
        holders: dict[str, tuple[Holder, ...]] = {}
        for lease in here:
            held.update(lease.amounts)
            holder = Holder(
                job_id=lease.job_id,
                job_name=names.get(lease.job_id, ""),
                operator=lease.operator,
                tenant=lease.tenant,
                gpu_memory_mib=lease.amounts.get("gpu_memory_mib"),
            )
            for uuid in lease.devices:
                holders[uuid] = (*holders.get(uuid, ()), holder)
        found.append(
            NodeStatus(
                name=row.name,
                inventory=NodeInventory.from_json(row.inventory),
                jobs=row.jobs,
                drained=row.drained,
                drained_devices=frozenset(row.drained_devices),
                is_silent=row.expires.timestamp() <= now,
                held=dict(held),
                holders=holders,
            )
        )
    return found


def this_machine() -> NodeStatus:
    """This machine alone, as it is now: no pool knows it."""
    inventory = read_node()
    return NodeStatus(name=inventory.hostname, inventory=inventory)


def find(machines: Sequence[NodeStatus], reference: str) -> tuple[NodeStatus, Gpu | None]:
    """The machine of that name (then None), or the device whose UUID begins so. Raises InputError."""
    for machine in machines:
        if machine.name == reference:
            return machine, None
    found = [(m, gpu) for m in machines for gpu in m.inventory.gpus if gpu.uuid.lower().startswith(reference.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"{reference!r} is the beginning of {len(found)} GPUs' UUIDs ({', '.join(gpu.uuid for _, gpu in found)}). "
            "Write more of it."
        )
    names = ", ".join(machine.name for machine in machines) or "none"
    raise InputError(
        f"there is no machine {reference!r} in the pool (there are: {names}), nor a GPU whose UUID begins so. "
        "`clara-flow gpu status` shows them all."
    )


def short(uuid: str, among: Iterable[str]) -> str:
    """The shortest beginning of a UUID that no other one has, of at least 8 digits."""
    others = [other for other in among if other != uuid]
    for length in range(SHORTEST, len(uuid)):
        if not any(other.startswith(uuid[:length]) for other in others):
            return uuid[:length]
    return uuid


def _holder_json(holder: Holder) -> dict[str, Any]:
    return asdict(holder) | {"job_id": str(holder.job_id)}
