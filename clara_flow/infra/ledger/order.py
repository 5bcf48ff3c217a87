"""In which order asks are looked at.

1. `completes`, the oldest first.
2. The emergency lane: operators of IMMEDIATE jobs, then admissions of IMMEDIATE jobs, the oldest first. While one waits
   others are served only where that does not delay it: were they not served at all, the jobs that hold the runner slot
   for which it waits would never end.
3. The head: once something else than these had to wait for a node, it is next until it is served.
4. Operators of admitted jobs, the oldest first: finishing beats starting. Shares and classes are a matter of admission;
   a job that were admitted and then held back would only use up its own time limit.
5. Admissions: every AGED_TURN-th time the oldest of all, if it waits longer than `ageing_s`; otherwise of the tenant
   with the least rank (see tenants.py), those who stay within their nominal quota before those who borrow; of this
   tenant the class that is due (LOWER:NORMAL:HIGHER are picked 1:2:4), the oldest first.
6. `early`, the oldest first, if nothing above was left unlooked at and nothing aged waits.

Asks with equal demands form a *line*: while its first waits the others need not be looked at, so the work of a decision
depends on how many different demands there are, not on how many asks. Per decision at most DEPTH lines of one tenant
(and of each of 1, 2, 4 and 6) that have to wait are looked at, and at most BREADTH of all tenants; who has ROUND that
wait comes after those who have fewer.

Ageing takes turns, because an overload makes everything old: were all old asks to go first, a pool that is short for an
hour would serve one tenant's flood in the order of arrival and know neither shares nor classes any more.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from uuid import UUID
from weakref import WeakValueDictionary

from clara_flow.infra.ledger.demand import Demand
from clara_flow.infra.ledger.lanes import Age, Kind, Lane, Line, age_of, age_of_line, oldest_first
from clara_flow.infra.ledger.model import Ask, Priority
from clara_flow.infra.ledger.preview import fair_order
from clara_flow.infra.ledger.tenants import PICKS, Tenant, Tenants

DEPTH = 16
BREADTH = 160
ROUND = 4
AGED_TURN = 8


@dataclass(slots=True)
class Look:
    """What one look through the queue found out.

    blocked     lines whose first ask has to wait.
    set_aside   those of them that wait for their tenant's own limit, or for what no node has as things are.
    no_slots    no node has a runner slot left: further admissions of the ordinary lanes need not be looked at.
    cut         some lines were not looked at.
    """

    blocked: set[Line] = field(default_factory=set)
    set_aside: set[Line] = field(default_factory=set)
    no_slots: bool = False
    cut: bool = False


class Order:
    """All asks that wait."""

    def __init__(self, tenants: Tenants, ageing_s: float) -> None:
        self._tenants = tenants
        self._ageing_s = ageing_s
        self._lines: dict[Demand, Line] = {}
        self._kinds: WeakValueDictionary[tuple[object, ...], Kind] = WeakValueDictionary()
        self._place: dict[UUID, tuple[Line, Age]] = {}
        self._numbers = 0
        self._completes, self._early, self._oldest = Lane(), Lane(), Lane()
        self._operators = Lane()
        self._emergency = {False: Lane(), True: Lane()}  # by: is an admission
        self._lanes: dict[tuple[str, Priority, bool], Lane] = {}
        self._head: Line | None = None
        self._aged: Line | None = None  # whose turn it was last because of its age
        self._since_aged = AGED_TURN

    def add(self, ask: Ask) -> None:
        """It waits from now on."""
        demand = Demand.of(ask)
        if (line := self._lines.get(demand)) is None:
            same = (demand.parts, demand.needs, demand.node)
            if (kind := self._kinds.get(same)) is None:
                kind = self._kinds[same] = Kind()
            line = self._lines[demand] = Line(demand, kind, self._lanes_of(demand))
        age = (ask.asked, self._numbers)
        self._numbers += 1
        self._place[ask.id] = (line, age)
        if _is_ordinary(demand):
            self._tenants.waits(
                demand.tenant, demand.priority, class_was_empty=not self._has_class(demand.tenant, demand.priority)
            )
        self._leave(line)
        insort(line.waiting, (age, ask))
        self._enter(line)

    def remove(self, ask_id: UUID) -> None:
        """It waits no longer."""
        line, age = self._place.pop(ask_id)
        self._leave(line)
        del line.waiting[bisect_left(line.waiting, age, key=age_of)]
        if _is_ordinary(line.demand):
            self._tenants.waits_no_more(line.demand.tenant)
        if line.waiting:
            self._enter(line)
        else:
            del self._lines[line.demand]
            if line is self._head:
                self._head = None

    def served(self, line: Line) -> None:
        """The first of the line was granted: called before it is removed."""
        if not _is_ordinary(line.demand):
            return
        if line is self._head:
            self._head = None
        if not line.demand.admission:
            return
        self._tenants.picked(self._tenants[line.demand.tenant], line.demand.priority)
        self._since_aged = 1 if line is self._aged else self._since_aged + 1
        if line is self._aged:
            self._aged = None

    def held_up(self, line: Line) -> None:
        """The first of the line has to wait for a node: it is the head, unless there is one."""
        if self._head is None and _is_ordinary(line.demand):
            self._head = line

    def let_go(self, line: Line) -> None:
        """What the line waits for has no known end: it is the head no longer."""
        if line is self._head:
            self._head = None

    def may_preempt(self, line: Line) -> bool:
        """The emergency lane, and HIGHER when it is next."""
        priority = line.demand.priority
        return priority == Priority.IMMEDIATE or (priority == Priority.HIGHER and line is self._head)

    def line_of(self, ask_id: UUID) -> Line:
        """The line in which it waits."""
        return self._place[ask_id][0]

    def forget_sites(self) -> None:
        """The nodes are others now."""
        for kind in self._kinds.values():
            kind.sites = None

    def position(self, ask_id: UUID) -> int:
        """How many of its tenant, class and kind are older, plus 1."""
        line, age = self._place[ask_id]
        return 1 + sum(bisect_left(other.waiting, age, key=age_of) for _, other in line.lanes[0].lines)

    def preview(self, now: float, limit: int | None) -> list[Ask]:
        """The asks in the order in which they would be served if everything fitted, the first `limit`."""
        aged = (ask for (asked, _), ask in oldest_first(self._oldest) if now - asked > self._ageing_s)
        special = (self._completes, self._emergency[False], self._emergency[True])
        before = (ask for lane in special for _, ask in oldest_first(lane))
        head = [self._head.first] if self._head else []
        operators = (ask for _, ask in oldest_first(self._operators) if ask not in head)
        ordinary = fair_order(
            self._tenants,
            self._lanes,
            chain(before, head, operators),
            aged,
            AGED_TURN - self._since_aged,
            AGED_TURN,
        )
        after = oldest_first(self._early)
        return list(islice(chain(ordinary, (ask for _, ask in after)), limit))

    def candidates(self, now: float, look: Look) -> Iterator[Line]:
        """Lines whose first ask is to be looked at, in order.

        The caller either grants the first ask of a line and removes it, or adds the line to `look.blocked`.
        """
        for lane in (self._completes, self._emergency[False], self._emergency[True]):
            yield from self._take(lane, look)
        if self._head is not None and self._head not in look.blocked:
            yield self._head
        yield from self._take(self._operators, look)
        yield from self._fair(now, look)
        oldest = self._oldest.lines[0][0][0] if self._oldest.lines else now
        if not look.cut and now - oldest <= self._ageing_s:
            yield from self._take(self._early, look)

    def _take(self, lane: Lane, look: Look) -> Iterator[Line]:
        depth = DEPTH
        while (line := lane.next(look.blocked)) is not None:
            if not depth:
                look.cut = True
                return
            yield line
            depth -= line in look.blocked and line not in look.set_aside

    def _aged_turn(self, now: float, look: Look) -> Iterator[Line]:
        """The oldest ask, if it is aged; those that are set aside miss their turn."""
        while (line := self._oldest.next(look.set_aside)) is not None and now - line.age[0] > self._ageing_s:
            if line in look.blocked:
                return
            self._aged = line
            yield line
            if line not in look.set_aside:
                return

    def _fair(self, now: float, look: Look) -> Iterator[Line]:
        waited: Counter[str] = Counter()
        breadth = 0
        due = [(0, *entry) for tenant in self._tenants if tenant.waiting and (entry := self._due(tenant, look))]
        heapq.heapify(due)
        while due:
            if breadth >= BREADTH:
                look.cut = True
                return
            if self._since_aged >= AGED_TURN:
                yield from self._aged_turn(now, look)
            *_, name, line = heapq.heappop(due)
            if line.waiting and line not in look.blocked:  # else it was the aged one
                yield line
            waits = line in look.blocked and line not in look.set_aside
            waited[name] += waits
            breadth += waits
            tenant = self._tenants[name]
            if tenant.waiting and (entry := self._due(tenant, look)):
                if waited[name] < DEPTH:
                    heapq.heappush(due, (waited[name] // ROUND, *entry))
                else:
                    look.cut = True

    def _due(self, tenant: Tenant, look: Look) -> tuple[bool, float, Age, str, Line] | None:
        """The line of a tenant that is next, with the tenant's rank before it."""
        for priority in sorted(PICKS, key=lambda priority: (tenant.passes[priority], -priority)):
            lane = self._lanes.get((tenant.name, priority, True))
            if lane and (line := lane.next(look.blocked)):
                if look.no_slots:
                    look.cut = True
                    continue
                return tenant.borrows(line.demand.total), tenant.rank, line.age, tenant.name, line
        return None

    def _lanes_of(self, demand: Demand) -> tuple[Lane, ...]:
        if demand.completes:
            return (self._completes,)
        if demand.early:
            return (self._early,)
        if demand.priority == Priority.IMMEDIATE:
            return (self._emergency[demand.admission],)
        own = self._lanes.setdefault((demand.tenant, demand.priority, demand.admission), Lane())
        return (own, self._oldest if demand.admission else self._operators)

    def _has_class(self, tenant: str, priority: Priority) -> bool:
        return any(
            (lane := self._lanes.get((tenant, priority, admission))) and lane.lines for admission in (False, True)
        )

    def _enter(self, line: Line) -> None:
        for lane in line.lanes:
            insort(lane.lines, (line.age, line))

    def _leave(self, line: Line) -> None:
        if line.waiting:
            for lane in line.lanes:
                del lane.lines[bisect_left(lane.lines, line.age, key=age_of_line)]


def _is_ordinary(demand: Demand) -> bool:
    return not (demand.completes or demand.early or demand.priority == Priority.IMMEDIATE)


def starvation_bound_s(*, ageing_s: float, older: int, longest_limit_s: float) -> float:
    """See the ledger's docstring: within this time of being asked an ask is granted."""
    return ageing_s + AGED_TURN * (older + 1) * 2 * longest_limit_s
