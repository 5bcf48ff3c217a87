"""What can be simulated: anything that answers asks as the ledger does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from clara_flow.infra.ledger.ledger import Ledger
from clara_flow.infra.ledger.model import Ask, Decision, Node, Quota
from clara_flow.infra.ledger.order import starvation_bound_s


class Scheduler(Protocol):
    """The part of the ledger's interface that a simulation uses; the ledger itself has it."""

    def set_nodes(self, nodes: Sequence[Node]) -> None:
        """The machines as they are now."""

    def set_quotas(self, quotas: Sequence[Quota]) -> None:
        """The tenants' quotas as they are now."""

    def ask(self, ask: Ask) -> None:
        """Somebody waits."""

    def withdraw(self, ask_id: UUID) -> None:
        """Somebody waits no more."""

    def release(self, lease_id: UUID, now: float) -> None:
        """A lease has ended."""

    def decide(self, now: float) -> list[Decision]:
        """Everything that can be granted now."""


class Bound(Protocol):
    """How long an ask may wait at most."""

    def __call__(self, *, ageing_s: float, older: int, longest_limit_s: float) -> float:
        """In seconds, where so many others are older than it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One way to share the machines.

    make        a fresh scheduler for a workload's ageing_s.
    whole_job   every job asks for all that its operators hold together, whether its pipeline says so or not. A job that
                asks for more than the largest machine has gets that machine for itself alone.
    quotas      it keeps to hard quotas.
    bound       the longest wait that it promises (see `order.starvation_bound_s`); None: it promises none.
    """

    name: str
    make: Callable[[float], Scheduler]
    whole_job: bool = False
    quotas: bool = False
    bound: Bound | None = None


LEDGER = Policy(name="ledger", make=lambda ageing_s: Ledger(ageing_s=ageing_s), quotas=True, bound=starvation_bound_s)
