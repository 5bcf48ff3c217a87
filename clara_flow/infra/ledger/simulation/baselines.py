"""Two ways to share machines that the ledger is compared with. For comparison only: the pool never uses them.

Both answer asks through the ledger's interface, keep one strict order in which nobody passes who must wait, know
neither tenants nor preemption, and look for room in the simplest way: the first node, the first GPUs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count
from uuid import UUID, uuid5

from clara_flow.infra.ledger.model import Amounts, Ask, Decision, Grant, Lease, Node, Priority, Quota
from clara_flow.infra.ledger.simulation.policy import Policy

CLARA_PICKS = {Priority.HIGHER: 4, Priority.NORMAL: 2, Priority.LOWER: 1}  # spec of the Platform API, 9.4


@dataclass(slots=True)
class _Room:
    """What is left of one node: amounts, the memory of each GPU that can be used, and which of these nobody holds."""

    cpu: int
    memory_mib: int
    fastio_mib: int
    jobs: int
    gpus: dict[str, int]
    whole: set[str]

    def take(self, amounts: Amounts) -> tuple[str, ...] | None:
        """Reserve it: the GPUs it gets; None when there is no room, and nothing is reserved."""
        if (
            amounts.cpu > self.cpu
            or amounts.memory_mib > self.memory_mib
            or amounts.fastio_mib > self.fastio_mib
            or amounts.jobs > self.jobs
        ):
            return None
        gpus = tuple(uuid for uuid in self.gpus if uuid in self.whole)[: amounts.gpu]
        if amounts.gpu_memory_mib:
            gpus = tuple(uuid for uuid, free_mib in self.gpus.items() if free_mib >= amounts.gpu_memory_mib)[:1]
        if len(gpus) < (amounts.gpu or bool(amounts.gpu_memory_mib)):
            return None
        self.hold(amounts, gpus)
        return gpus

    def could_ever_hold(self, amounts: Amounts) -> bool:
        """Whether its usable GPUs are enough when nobody holds them; the rest of a node does not fail by parts."""
        return amounts.gpu + bool(amounts.gpu_memory_mib) <= len(self.gpus)

    def hold(self, amounts: Amounts, gpus: Iterable[str]) -> None:
        """So much less is left."""
        self.cpu -= amounts.cpu
        self.memory_mib -= amounts.memory_mib
        self.fastio_mib -= amounts.fastio_mib
        self.jobs -= amounts.jobs
        for uuid in gpus:
            self.whole.discard(uuid)
            if uuid in self.gpus:
                self.gpus[uuid] -= amounts.gpu_memory_mib or self.gpus[uuid]


class StrictOrder(ABC):
    """Serves asks in one order; who cannot be served holds up all behind."""

    def __init__(self) -> None:
        self._nodes: tuple[Node, ...] = ()
        self._asks: dict[UUID, Ask] = {}
        self._leases: dict[UUID, Lease] = {}

    def set_nodes(self, nodes: Sequence[Node]) -> None:
        """See Scheduler."""
        self._nodes = tuple(nodes)

    def set_quotas(self, quotas: Sequence[Quota]) -> None:
        """See Scheduler; there are no quotas here."""
        del quotas

    def ask(self, ask: Ask) -> None:
        """See Scheduler."""
        self._asks[ask.id] = ask

    def withdraw(self, ask_id: UUID) -> None:
        """See Scheduler."""
        self._asks.pop(ask_id, None)

    def release(self, lease_id: UUID, now: float) -> None:
        """See Scheduler."""
        del now
        self._leases.pop(lease_id, None)

    def decide(self, now: float) -> list[Decision]:
        """See Scheduler."""
        decisions: list[Decision] = []
        rooms = {node.name: self._room(node) for node in self._nodes if node.usable}
        while (ask := self._next()) is not None and (leases := _place(ask, rooms, now)):
            self._served(ask)
            del self._asks[ask.id]
            self._leases.update((lease.id, lease) for lease in leases)
            decisions.append(Grant(ask=ask, leases=leases))
        return decisions

    @abstractmethod
    def _next(self) -> Ask | None:
        """Whose turn it is."""

    @abstractmethod
    def _served(self, ask: Ask) -> None:
        """That one had its turn."""

    def _room(self, node: Node) -> _Room:
        gpus = {device.uuid: device.memory_mib - device.foreign_mib for device in node.devices if device.usable}
        room = _Room(node.cpu, node.memory_mib, node.fastio_mib, node.jobs, gpus, set(gpus))
        for lease in self._leases.values():
            if lease.node == node.name:
                room.hold(lease.amounts, lease.devices)
        return room


def _place(ask: Ask, rooms: dict[str, _Room], now: float) -> tuple[Lease, ...]:
    """All of what is asked for, on the first node that has room; () when none has."""
    parts = [(ask.id, ask.operator, ask.amounts)]
    if ask.first is not None:
        parts.append((uuid5(ask.id, f"{ask.first[0]} {now!r}"), *ask.first))
    for name, room in rooms.items():
        if ask.node not in (None, name):
            continue
        trial = replace(room, gpus=dict(room.gpus), whole=set(room.whole))
        taken = [trial.take(amounts) for _, _, amounts in parts]
        if None in taken or not all(trial.could_ever_hold(need) for need in ask.needs):
            continue
        rooms[name] = trial
        return tuple(
            Lease(
                id=lease_id,
                job_id=ask.job_id,
                operator=operator,
                tenant=ask.tenant,
                priority=ask.priority,
                amounts=amounts,
                node=name,
                devices=devices or (),
                granted=now,
                limit_s=ask.limit_s,
                preemptible=ask.preemptible,
            )
            for (lease_id, operator, amounts), devices in zip(parts, taken, strict=True)
        )
    return ()


class FirstComeFirstServed(StrictOrder):
    """Every operator asks for itself; those of the job that came first are served first, whatever its priority."""

    def __init__(self) -> None:
        super().__init__()
        self._place: dict[UUID, int] = {}
        self._order: list[tuple[int, int, UUID]] = []
        self._numbers = count()

    def ask(self, ask: Ask) -> None:
        """See Scheduler."""
        super().ask(ask)
        number = next(self._numbers)
        heappush(self._order, (self._place.setdefault(ask.job_id, number), number, ask.id))

    def _next(self) -> Ask | None:
        while self._order and self._order[0][-1] not in self._asks:
            heappop(self._order)
        return self._asks[self._order[0][-1]] if self._order else None

    def _served(self, ask: Ask) -> None:
        heappop(self._order)


class WholeJobReservation(StrictOrder):
    """Clara's queue of whole jobs: IMMEDIATE ones first, the other classes picked 4:2:1, each in the order of arrival.

    Whoever was picked holds up all but IMMEDIATE ones until it is served.
    """

    def __init__(self) -> None:
        super().__init__()
        self._queues: dict[Priority, deque[UUID]] = {priority: deque() for priority in Priority}
        self._turns = dict.fromkeys(CLARA_PICKS, 0.0)

    def ask(self, ask: Ask) -> None:
        """See Scheduler."""
        super().ask(ask)
        queue = self._queues[ask.priority]
        if not queue and ask.priority in self._turns:  # who was away gets no turns for that time
            others = [self._turns[other] for other in CLARA_PICKS if self._queues[other]]
            self._turns[ask.priority] = max(self._turns[ask.priority], min(others, default=0.0))
        queue.append(ask.id)

    def _next(self) -> Ask | None:
        for queue in self._queues.values():
            while queue and queue[0] not in self._asks:
                queue.popleft()
        if emergency := self._queues[Priority.IMMEDIATE]:
            return self._asks[emergency[0]]
        waiting = [priority for priority in CLARA_PICKS if self._queues[priority]]
        if not waiting:
            return None
        return self._asks[self._queues[min(waiting, key=lambda priority: self._turns[priority])][0]]

    def _served(self, ask: Ask) -> None:
        self._queues[ask.priority].popleft()
        if ask.priority in self._turns:
            self._turns[ask.priority] += 1 / CLARA_PICKS[ask.priority]


WHOLE_JOB = Policy(name="whole-job", make=lambda ageing_s: WholeJobReservation(), whole_job=True)
FIFO = Policy(name="fifo", make=lambda ageing_s: FirstComeFirstServed())
BASELINES = {policy.name: policy for policy in (WHOLE_JOB, FIFO)}
