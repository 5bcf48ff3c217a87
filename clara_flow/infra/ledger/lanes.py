"""Where asks wait: lines of equal demands, in lanes of lines. The oldest is always first."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from clara_flow.infra.ledger.demand import Demand
from clara_flow.infra.ledger.model import Ask
from clara_flow.infra.ledger.placement import Site

Age = tuple[float, int]  # asked, and a number that tells asks of the same moment apart


@dataclass(slots=True, eq=False, weakref_slot=True)
class Kind:
    """What lines of all tenants and classes share that need the same. `sites`: where it can be served one day; None: to
    be looked up."""

    sites: list[Site] | None = None


@dataclass(slots=True, eq=False)
class Line:
    """Asks with equal demands, the oldest first."""

    demand: Demand
    kind: Kind
    lanes: tuple[Lane, ...]
    waiting: list[tuple[Age, Ask]] = field(default_factory=list)

    @property
    def sites(self) -> list[Site]:
        """Where its asks can be served one day, once that was looked up."""
        return self.kind.sites or []

    @property
    def first(self) -> Ask:
        """The oldest."""
        return self.waiting[0][1]

    @property
    def age(self) -> Age:
        """Of the oldest."""
        return self.waiting[0][0]


@dataclass(slots=True, eq=False)
class Lane:
    """Lines that are served in the order of their oldest asks."""

    lines: list[tuple[Age, Line]] = field(default_factory=list)

    def next(self, blocked: set[Line]) -> Line | None:
        """The line with the oldest ask that is not blocked."""
        for _, line in self.lines:
            if line not in blocked:
                return line
        return None


def age_of(entry: tuple[Age, Ask]) -> Age:
    """Of an entry of `Line.waiting`."""
    return entry[0]


def age_of_line(entry: tuple[Age, Line]) -> Age:
    """Of an entry of `Lane.lines`."""
    return entry[0]


def oldest_first(lane: Lane) -> Iterator[tuple[Age, Ask]]:
    """All asks of a lane."""
    return heapq.merge(*(line.waiting for _, line in lane.lines))
