"""A ledger on a virtual clock: jobs of one operator that last as long as they say."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from clara_flow.infra.ledger.ledger import Ledger
from clara_flow.infra.ledger.model import Amounts, Ask, Decision, Device, Grant, Lease, Node, Priority, Yield

GPU_MIB = 80_000


def gpu_node(name: str = "a", gpus: int = 4, *, links: Iterable[tuple[int, int]] = (), **facts: Any) -> Node:
    """A node with GPUs named <node>0, <node>1...; `links` are pairs of their numbers."""
    reach: dict[int, set[str]] = {number: set() for number in range(gpus)}
    for one, other in links:
        reach[one].add(f"{name}{other}")
        reach[other].add(f"{name}{one}")
    numa = facts.pop("numa", [None] * gpus)
    foreign = facts.pop("foreign", {})
    devices = tuple(
        Device(
            uuid=f"{name}{number}",
            memory_mib=GPU_MIB,
            links=frozenset(reach[number]),
            numa=numa[number],
            foreign_mib=foreign.get(number, 0),
        )
        for number in range(gpus)
    )
    facts = {"cpu": 64, "memory_mib": 512_000, "fastio_mib": 64_000, "jobs": 64} | facts
    return Node(name=name, devices=devices, **facts)


def pairs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Every one linked with every other."""
    numbers = list(numbers)
    return [(one, other) for one in numbers for other in numbers if one < other]


class World:
    """Asks, lets time pass, releases."""

    def __init__(self, *nodes: Node, **options: Any) -> None:
        self.ledger = Ledger(**options)
        self.ledger.set_nodes(nodes)
        self.now = 0.0
        self.started: dict[UUID, float] = {}
        self.served_s: Counter[str] = Counter()  # GPU seconds by tenant
        self.picks: list[Ask] = []
        self.yields: list[Yield] = []
        self._ids = 0
        self._durations: dict[UUID, float] = {}
        self._ends: list[tuple[float, int, UUID]] = []

    def id(self) -> UUID:
        self._ids += 1
        return UUID(int=self._ids)

    def ask(self, *, lasts_s: float = 10.0, job_id: UUID | None = None, **facts: Any) -> Ask:
        """One ask for what is among `facts` of Amounts; it is released `lasts_s` after its grant."""
        amounts = Amounts(**{name: facts.pop(name) for name in Amounts().__slots__ if name in facts})
        ask = Ask(
            id=self.id(),
            job_id=job_id or self.id(),
            amounts=amounts,
            asked=facts.pop("asked", self.now),
            limit_s=facts.pop("limit_s", lasts_s),
            **facts,
        )
        self._durations[ask.id] = lasts_s
        self.ledger.ask(ask)
        return ask

    def hold(self, *, node: str = "a", devices: tuple[str, ...] = (), **facts: Any) -> Lease:
        """A lease that is there already."""
        amounts = Amounts(**{name: facts.pop(name) for name in Amounts().__slots__ if name in facts})
        lease = Lease(
            id=self.id(),
            job_id=facts.pop("job_id", None) or self.id(),
            operator=facts.pop("operator", ""),
            tenant=facts.pop("tenant", "default"),
            priority=facts.pop("priority", Priority.NORMAL),
            amounts=amounts,
            node=node,
            devices=devices,
            **facts,
        )
        self.ledger.restore(lease)
        return lease

    def decide(self) -> list[Decision]:
        decisions = self.ledger.decide(self.now)
        for decision in decisions:
            if isinstance(decision, Yield):
                self.yields.append(decision)
                continue
            ask = decision.ask
            self.picks.append(ask)
            self.started[ask.id] = self.now
            for lease in decision.leases:
                self._ids += 1
                end = self.now + min(self._durations[ask.id], lease.limit_s)
                heapq.heappush(self._ends, (end, self._ids, lease.id))
                self.served_s[lease.tenant] += (end - self.now) * lease.amounts.gpu
        return decisions

    def grants(self) -> list[Grant]:
        """Decide; only what was granted."""
        return [decision for decision in self.decide() if isinstance(decision, Grant)]

    def step(self) -> bool:
        """To the next end of a lease; False when nothing runs."""
        if not self._ends:
            return False
        self.now = max(self.now, self._ends[0][0])
        while self._ends and self._ends[0][0] <= self.now:
            self.ledger.release(heapq.heappop(self._ends)[2], self.now)
        self.decide()
        return True

    def run(self, until: float = float("inf")) -> None:
        """Decide and let time pass until then, or until nothing runs."""
        self.decide()
        while self._ends and self._ends[0][0] <= until and self.step():
            pass


def jain(values: Iterable[float]) -> float:
    """Jain's fairness index: 1 = all equal."""
    values = list(values)
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))
