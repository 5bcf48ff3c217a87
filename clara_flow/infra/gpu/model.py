"""The words for GPUs: a device with what is known of it, and its health. Needs nothing but Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any


class Health(StrEnum):
    """OK and DEGRADED devices get work; a FAILED one gets nothing new."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, or one MIG instance of a GPU. None: the driver does not say.

    uuid            what containers and CUDA_VISIBLE_DEVICES take: `GPU-...`, an instance's `MIG-...`.
    index           NVML's; an instance has its card's.
    memory_mib      all of it; `reserved_mib` of that is the driver's own and never free.
    foreign_mib     memory that processes hold that are no operators of ours.
    pci             address of its card, `domain:bus:device.function` in hexadecimal, as in sysfs; "" unknown.
    numa            NUMA node of the CPUs that it is attached to.
    links           UUIDs of the GPUs of this machine that it reaches by NVLink, sorted.
    card            UUID of the card that this MIG instance is a part of; None: it is a card itself.
    mig             a card that is divided into instances: only they take work.
    slowdowns       why its clocks are lowered now, in NVIDIA's words.
    uncorrected     memory errors (ECC) that could not be corrected since the driver was loaded or the GPU was reset;
                    `uncorrected_ever` counts from its making on.
    repair_pending  a memory row or page is set aside at the next reset; repair_failed: there was no spare one.
    reason          why it is not OK, for people.
    """

    uuid: str
    index: int
    name: str
    memory_mib: int
    reserved_mib: int = 0
    used_mib: int | None = None
    foreign_mib: int = 0
    pci: str = ""
    numa: int | None = None
    links: tuple[str, ...] = ()
    card: str | None = None
    mig: bool = False
    temperature_c: int | None = None
    slowdowns: tuple[str, ...] = ()
    uncorrected: int | None = None
    uncorrected_ever: int | None = None
    repair_pending: bool | None = None
    repair_failed: bool | None = None
    health: Health = Health.OK
    reason: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether new work may be put there."""
        return self.health is not Health.FAILED and not self.mig

    def to_json(self) -> dict[str, Any]:
        """All facts as JSON values."""
        return asdict(self) | {"links": list(self.links), "slowdowns": list(self.slowdowns)}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Gpu:
        """The inverse of `to_json`; what a newer worker tells beyond that is passed over. Raises TypeError."""
        known = {entry.name: facts[entry.name] for entry in fields(cls) if entry.name in facts}
        lists = {name: tuple(known.get(name, ())) for name in ("links", "slowdowns")}
        return cls(**{**known, **lists, "health": Health(known.get("health", Health.OK))})


def leasable(gpus: Iterable[Gpu]) -> tuple[Gpu, ...]:
    """The devices that the ledger counts: all but cards that are divided into MIG instances; failed ones too."""
    return tuple(gpu for gpu in gpus if not gpu.mig)
