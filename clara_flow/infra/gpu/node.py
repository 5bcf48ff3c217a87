"""What a machine brings into the pool, as its worker announces it and as the ledger counts it."""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from clara_flow.infra.gpu.model import Gpu, leasable
from clara_flow.infra.ledger.model import Device, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInventory:
    """One machine.

    cpu, memory_mib     what its cgroups leave of cores and memory.
    shm_mib             size of /dev/shm; shm_free_mib: free when it was read.
    fastio_limit_mib    what FastIO volumes may take of it; None: half.
    gpus                cards and MIG instances, failed ones too.
    """

    hostname: str
    cpu: int
    memory_mib: int
    shm_mib: int = 0
    shm_free_mib: int = 0
    fastio_limit_mib: int | None = None
    gpus: tuple[Gpu, ...] = ()

    @property
    def fastio_mib(self) -> int:
        """Room for FastIO volumes: never more than /dev/shm has."""
        return self.shm_mib // 2 if self.fastio_limit_mib is None else min(self.fastio_limit_mib, self.shm_mib)

    def to_json(self) -> dict[str, Any]:
        """All facts as JSON values; GPUs stand in the list `gpus`."""
        return asdict(self) | {"gpus": [gpu.to_json() for gpu in self.gpus]}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> NodeInventory:
        """The inverse of `to_json`; what a newer worker tells beyond that is passed over. Raises TypeError."""
        known = {entry.name: facts[entry.name] for entry in fields(cls) if entry.name in facts}
        return cls(**{**known, "gpus": tuple(Gpu.from_json(gpu) for gpu in known.get("gpus", ()))})


def read_node(gpus: Sequence[Gpu] | None = None, *, fastio_limit_mib: int | None = None) -> NodeInventory:
    """This machine as it is now.

    gpus    what a GpuWatch knows of them; None: they are read anew, without the Xids of the past.
    """
    from clara_flow.infra.gpu import machine

    if gpus is None:
        from clara_flow.infra.gpu.inventory import list_gpus

        gpus = list_gpus()
    shm_mib, shm_free_mib = machine.shared_memory_mib()
    return NodeInventory(
        hostname=socket.gethostname(),
        cpu=machine.usable_cpus(),
        memory_mib=machine.usable_memory_mib(),
        shm_mib=shm_mib,
        shm_free_mib=shm_free_mib,
        fastio_limit_mib=fastio_limit_mib,
        gpus=tuple(gpus),
    )


def to_ledger_node(
    inventory: NodeInventory,
    *,
    name: str,
    jobs: int,
    drained_devices: Collection[str] = (),
    usable: bool = True,
) -> Node:
    """The machine as the ledger counts it: without cards that are divided into MIG instances.

    drained_devices     UUIDs; a card's is also for its instances. Drained and failed devices are not usable.
    usable              False for a machine that is drained or silent.
    """
    devices = leasable(inventory.gpus)
    present = {gpu.uuid for gpu in devices}
    return Node(
        name=name,
        cpu=inventory.cpu,
        memory_mib=inventory.memory_mib,
        fastio_mib=inventory.fastio_mib,
        jobs=jobs,
        devices=tuple(
            Device(
                uuid=gpu.uuid,
                memory_mib=max(0, gpu.memory_mib - gpu.reserved_mib),
                links=frozenset(gpu.links) & present,
                numa=gpu.numa,
                foreign_mib=gpu.foreign_mib,
                usable=gpu.is_usable and not {gpu.uuid, gpu.card} & set(drained_devices),
            )
            for gpu in devices
        ),
        usable=usable,
    )
