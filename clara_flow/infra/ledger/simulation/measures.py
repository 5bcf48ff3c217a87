"""The figures of a simulation: percentiles, Jain's index, and integrals over virtual time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

HOUR_S = 3600.0


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` (sorted, at least one) that `percent` of them do not exceed (nearest rank).

    >>> percentile([1.0, 2.0, 3.0, 4.0], 50)
    2.0
    """
    return values[max(0, math.ceil(len(values) * percent / 100) - 1)]


def jain(values: Collection[float]) -> float:
    """Jain's fairness index (Jain, Chiu, Hawe 1984): 1.0 when all are served alike, 1/n when one gets everything.

    >>> jain([2.0, 2.0, 2.0]), jain([1.0, 0.0])
    (1.0, 0.5)
    """
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How long something took, in seconds, over `count` cases."""

    count: int
    p50_s: float
    p95_s: float
    max_s: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Spread:
        """The spread of these; all 0 where there are none."""
        found = sorted(seconds)
        if not found:
            return cls(count=0, p50_s=0.0, p95_s=0.0, max_s=0.0)
        return cls(count=len(found), p50_s=percentile(found, 50), p95_s=percentile(found, 95), max_s=found[-1])


class Hourly:
    """The integral of a quantity over time: whole, and for each hour of the clock."""

    def __init__(self) -> None:
        self.total = 0.0
        self.hours: defaultdict[int, float] = defaultdict(float)

    def add(self, level: float, start_s: float, end_s: float) -> None:
        """`level` lasted from `start_s` to `end_s`."""
        if not level:
            return
        self.total += level * (end_s - start_s)
        while start_s < end_s:
            hour = int(start_s // HOUR_S)
            until = min(end_s, (hour + 1) * HOUR_S)
            self.hours[hour] += level * (until - start_s)
            start_s = until


class Fairness:
    """Whether tenants that all want more get what their weights entitle them to.

    While at least two tenants wait for something, what these hold together (each one's dominant share of the pool) is
    divided by their weights: that is what each is entitled to. A tenant's satisfaction is what it held over what it
    was entitled to, in all such time; the index is Jain's over the satisfactions. It says something where tenants wait
    for long: in a few seconds of waiting nobody can get his share.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = weights
        self.contended_s = 0.0
        self.held: defaultdict[str, float] = defaultdict(float)
        self.entitled: defaultdict[str, float] = defaultdict(float)

    def add(self, waiting: Collection[str], shares: Mapping[str, float], seconds: float) -> None:
        """For so long these tenants waited and held these shares of the pool (0 to 1)."""
        if len(waiting) < 2 or not seconds:
            return
        self.contended_s += seconds
        total_share = sum(shares.get(tenant, 0.0) for tenant in waiting)
        total_weight = sum(self.weights.get(tenant, 1.0) for tenant in waiting)
        for tenant in waiting:
            self.held[tenant] += shares.get(tenant, 0.0) * seconds
            self.entitled[tenant] += total_share * self.weights.get(tenant, 1.0) / total_weight * seconds

    def satisfaction(self) -> dict[str, float]:
        """What each tenant got over what it was entitled to; 1.0 is exactly its due."""
        return {
            tenant: self.held[tenant] / entitled for tenant, entitled in sorted(self.entitled.items()) if entitled > 0
        }

    def index(self) -> float:
        """Jain's index over the satisfactions; 1.0 where nothing was ever contended."""
        found = self.satisfaction()
        return jain(found.values()) if found else 1.0
