"""How long asks wait, against what the policy promises."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from clara_flow.infra.ledger.model import Ask, Priority
from clara_flow.infra.ledger.simulation.policy import Policy
from clara_flow.infra.ledger.simulation.workload import Workload


@dataclass(frozen=True, slots=True)
class _Since:
    """When it asked, behind how many, and what had been by then."""

    now: float
    older: int
    returns: int
    emergency_s: float


class Patience:
    """The ledger's promise, watched: it holds for asks that are not IMMEDIATE, of tenants without a hard quota, on
    machines that do not fail, and is prolonged by the time in which an IMMEDIATE ask waits.

    longest_s   the longest wait of any ask that was granted.
    bound_used  the largest part of its bound that one waited; None where the policy promises nothing.
    """

    def __init__(self, workload: Workload, policy: Policy) -> None:
        self.longest_s = 0.0
        self.bound_used: float | None = 0.0 if policy.bound and not workload.events else None
        self._bound, self._ageing_s = policy.bound, workload.ageing_s
        self._bounded = {quota.tenant for quota in workload.quotas if quota.hard}
        self._longest_limit_s = max((p.limit_s + p.grace_s for p in workload.pipelines.values()), default=0.0)
        self._since: dict[UUID, _Since] = {}
        self._ordinary = self._emergencies = self._returns = 0
        self._emergency_s = 0.0

    def advance(self, seconds: float) -> None:
        """Time goes on."""
        if self._emergencies:
            self._emergency_s += seconds

    def asked(self, ask: Ask, now: float) -> None:
        """It waits from now on. One that asked long ago comes back: it is older than others think."""
        self._returns += ask.asked < now
        self._since[ask.id] = _Since(now, self._ordinary, self._returns, self._emergency_s)
        self._count(ask, 1)

    def withdrawn(self, ask: Ask) -> None:
        """It waits no more."""
        del self._since[ask.id]
        self._count(ask, -1)

    def granted(self, ask: Ask, now: float) -> None:
        """Its wait has come to an end."""
        since = self._since[ask.id]
        self.withdrawn(ask)
        wait_s = now - since.now
        self.longest_s = max(self.longest_s, wait_s)
        promised = ask.priority is not Priority.IMMEDIATE and ask.tenant not in self._bounded
        if self._bound is not None and self.bound_used is not None and promised:
            bound_s = self._bound(
                ageing_s=self._ageing_s,
                older=since.older + self._returns - since.returns,
                longest_limit_s=self._longest_limit_s,
            )
            self.bound_used = max(self.bound_used, wait_s / (bound_s + self._emergency_s - since.emergency_s))

    def _count(self, ask: Ask, change: int) -> None:
        if ask.priority is Priority.IMMEDIATE:
            self._emergencies += change
        else:
            self._ordinary += change
