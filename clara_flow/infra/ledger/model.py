"""The words of the ledger: what there is, what is asked for, what is held, what it answers.

Times are seconds of one clock (the database's, as Unix time; the simulator's virtual one); memory is MiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any
from uuid import UUID

UNLIMITED = float("inf")


class Priority(IntEnum):
    """The Platform API's priorities. IMMEDIATE is the emergency lane: nobody else may delay one that waits."""

    LOWER = 1
    NORMAL = 2
    HIGHER = 3
    IMMEDIATE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """What one holder takes of a node.

    gpu             whole devices, held by nobody else.
    gpu_memory_mib  a share of the memory of ONE device that others may share; excludes `gpu`.
    fastio_mib      shared memory of a job's FastIO volume.
    jobs            runner slots: 1 for an admitted job, 0 for an operator.
    """

    cpu: int = 0
    memory_mib: int = 0
    gpu: int = 0
    gpu_memory_mib: int = 0
    fastio_mib: int = 0
    jobs: int = 0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(**{name: getattr(self, name) + getattr(other, name) for name in RESOURCES})

    def as_json(self) -> dict[str, int]:
        """What is not 0."""
        return {name: amount for name in RESOURCES if (amount := getattr(self, name))}


RESOURCES = tuple(entry.name for entry in fields(Amounts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU (or MIG instance) of a node.

    links       UUIDs of the devices it reaches by NVLink.
    foreign_mib memory that processes other than ours hold; shares are packed beside it, whole-device requests avoid it.
    usable      False: failed (Xid, ECC), lost or drained; what runs on it may end, nothing new is put there.
    """

    uuid: str
    memory_mib: int
    links: frozenset[str] = frozenset()
    numa: int | None = None
    foreign_mib: int = 0
    usable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine of the pool. `usable` False: drained or silent; what runs there may end, nothing new is put there."""

    name: str
    cpu: int
    memory_mib: int
    fastio_mib: int = 0
    jobs: int = 1
    devices: tuple[Device, ...] = ()
    usable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a tenant may hold over the whole pool, by resource name; a name that is missing is unlimited.

    weight      share of the pool relative to other tenants' when all of them want more than there is.
    nominal     what is the tenant's own; while others do not use theirs, it may borrow beyond it.
    hard        never exceeded.
    """

    tenant: str
    weight: float = 1.0
    nominal: Mapping[str, int] = field(default_factory=dict)
    hard: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request that waits: of a queued job to be admitted (`operator` ""), or of a running job's operator.

    amounts     what is leased under this ask's id: an operator's resources; a job's runner slot and FastIO volume, and
                with `scheduling: gang` everything that all of its operators hold together.
    first       a job's first operator and its amounts: leased in the same instant on the same node (operator scheduling
                only), so that an admitted job never waits before its first step.
    needs       distinct amounts of a job's operators, each of which its node must be able to hold one day.
    node        None: any. An operator runs where its job does.
    asked       when it was first asked; ageing counts from here, also after a preemption.
    limit_s     upper bound of how long it will hold what it gets (its timeout and grace).
    expected_s  likely duration, for forecasts only; None: unknown, `limit_s` is taken.
    preemptible its job may be sent back to the queue between two operators.
    early       an operator that would start before its inputs are ready: granted only out of what nobody who waits
                could use, and after everybody else.
    completes   the rest (its GPUs) for an operator that was started early and holds the CPU and memory already: served
                before everybody else, or it could hold what those before it need and wait for ever. `node` is given.
    """

    id: UUID
    job_id: UUID
    operator: str = ""
    tenant: str = "default"
    priority: Priority = Priority.NORMAL
    amounts: Amounts = Amounts()
    first: tuple[str, Amounts] | None = None
    needs: tuple[Amounts, ...] = ()
    node: str | None = None
    asked: float = 0.0
    limit_s: float = UNLIMITED
    expected_s: float | None = None
    preemptible: bool = False
    early: bool = False
    completes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What one holder has. `id` is the ask's, or for a job's first operator a new one: `id` is its fencing token too.

    devices     UUIDs of the GPUs: whole ones for `amounts.gpu`, the one that is shared for `amounts.gpu_memory_mib`.
    yielding    its job was asked to go back to the queue.
    """

    id: UUID
    job_id: UUID
    operator: str
    tenant: str
    priority: Priority
    amounts: Amounts
    node: str
    devices: tuple[str, ...] = ()
    granted: float = 0.0
    limit_s: float = UNLIMITED
    expected_s: float | None = None
    preemptible: bool = False
    yielding: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fits:
    """It can be granted now: there, with these devices."""

    node: str
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FitsAfterPreemption:
    """It fits once these jobs (preemptible, of lower priority) went back to the queue between two operators."""

    node: str
    victims: tuple[UUID, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitsFor:
    """It fits one day.

    resource    a name of RESOURCES, "quota:<resource>" for the tenant's own limit, or "turn": it would fit, others are
                before it.
    holders     jobs that hold what it waits for, the likely earliest end first; for "turn" the jobs before it.
    forecast    when it will probably be granted; None: nothing can be said.
    position    1 = next in the queue of its kind.
    """

    resource: str
    holders: tuple[UUID, ...] = ()
    forecast: float | None = None
    position: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverFits:
    """No node, or no quota, will ever hold it; `missing` amounts by resource, of the node that lacks least."""

    missing: Mapping[str, int]


Answer = Fits | FitsAfterPreemption | WaitsFor | NeverFits


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A decision: this ask is served by these leases (two for a job with a `first` operator, else one)."""

    ask: Ask
    leases: tuple[Lease, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Yield:
    """A decision: this job shall go back to the queue at its next step between operators, for that ask."""

    job_id: UUID
    ask: Ask


Decision = Grant | Yield


def amounts_of(facts: Mapping[str, Any]) -> Amounts:
    """The inverse of `Amounts.as_json`; unknown names are an error (TypeError)."""
    return Amounts(**{name: int(amount) for name, amount in facts.items()})
