"""The queue as it would be served if everything fitted: the order of order.py, played through without granting."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

from clara_flow.infra.ledger.lanes import Lane, oldest_first
from clara_flow.infra.ledger.model import Ask, Priority
from clara_flow.infra.ledger.tenants import HOLDING_S, PICKS, Tenant, Tenants


@dataclass(slots=True)
class _Turn:
    """Where a tenant would be after the picks played so far."""

    tenant: Tenant
    classes: dict[Priority, Iterator[Ask]]
    passes: dict[Priority, float]
    rank: float
    nexts: dict[Priority, Ask] = field(default_factory=dict)

    def next(self, listed: set[UUID]) -> Ask | None:
        for priority, asks in self.classes.items():
            ask = self.nexts.get(priority)
            if ask is None or ask.id in listed:
                ask = next((ask for ask in asks if ask.id not in listed), None)
                if ask is None:
                    self.nexts.pop(priority, None)
                else:
                    self.nexts[priority] = ask
        due = min(self.nexts, key=lambda priority: (self.passes[priority], -priority), default=None)
        return None if due is None else self.nexts[due]

    def pick(self, ask: Ask, tenants: Tenants) -> None:
        self.passes[ask.priority] += 1 / PICKS[ask.priority]
        self.charge(ask, tenants)

    def charge(self, ask: Ask, tenants: Tenants) -> None:
        taken = ask.amounts + ask.first[1] if ask.first else ask.amounts
        self.rank += HOLDING_S * tenants.fraction(taken) / self.tenant.quota.weight


def _of_class(lanes: dict[tuple[str, Priority, bool], Lane], tenant: str, priority: Priority) -> Iterator[Ask]:
    """Operators, then admissions."""
    for admission in (False, True):
        if lane := lanes.get((tenant, priority, admission)):
            yield from (ask for _, ask in oldest_first(lane))


def fair_order(
    tenants: Tenants,
    lanes: dict[tuple[str, Priority, bool], Lane],
    ahead: Iterable[Ask],
    aged: Iterator[Ask],
    picks_to_aged: int,
    aged_turn: int,
) -> Iterator[Ask]:
    """What goes `ahead`, then the ordinary lanes; `aged` are the asks that wait too long, the oldest first."""
    turns: dict[str, _Turn] = {}
    for tenant in tenants:
        if tenant.waiting:
            classes = {priority: _of_class(lanes, tenant.name, priority) for priority in PICKS}
            turns[tenant.name] = _Turn(tenant, classes, dict(tenant.passes), tenant.rank)
    listed: set[UUID] = set()

    def entry(turn: _Turn) -> tuple[bool, float, float, str, Ask] | None:
        ask = turn.next(listed)
        if ask is None:
            return None
        return turn.tenant.borrows(ask.amounts), turn.rank, ask.asked, turn.tenant.name, ask

    def serve(ask: Ask) -> Ask:
        listed.add(ask.id)
        turns[ask.tenant].pick(ask, tenants)
        return ask

    for ask in ahead:
        listed.add(ask.id)
        if ask.tenant in turns:
            turns[ask.tenant].charge(ask, tenants)
        yield ask
    due = [found for turn in turns.values() if (found := entry(turn))]
    heapq.heapify(due)
    while due:
        if picks_to_aged <= 0:
            oldest = next((ask for ask in aged if ask.id not in listed), None)
            picks_to_aged = aged_turn
            if oldest is not None:
                yield serve(oldest)
                picks_to_aged -= 1
        *_, name, ask = heapq.heappop(due)
        if ask.id not in listed:
            yield serve(ask)
            picks_to_aged -= 1
        if found := entry(turns[name]):
            heapq.heappush(due, found)
