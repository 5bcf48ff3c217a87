"""A simulated job: its present, and its story for the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

from clara_flow.infra.ledger.model import Amounts, Priority
from clara_flow.infra.ledger.simulation.workload import Arrival, SimOperator, SimPipeline


class Outcome(StrEnum):
    """How a job ended. REFUSED: no machine could ever hold it. UNSERVED: the machines that it needs never came back."""

    COMPLETED = "completed"
    TIMED_OUT = "timed-out"
    REFUSED = "refused"
    UNSERVED = "unserved"


@dataclass(slots=True, kw_only=True)
class Story:
    """What became of one arrival. Times are those of the clock, `started` that of its first operator."""

    number: int
    pipeline: str
    tenant: str
    priority: Priority
    arrived: float
    started: float | None = None
    ended: float | None = None
    outcome: Outcome | None = None
    preempted: int = 0
    lost: int = 0
    cut: bool = False

    @property
    def wait_s(self) -> float:
        """From arrival to the first operator's start; to the end of one that never started."""
        end = self.started if self.started is not None else self.ended
        return (end if end is not None else self.arrived) - self.arrived


@dataclass(slots=True, kw_only=True)
class Run:
    """One operator at work. `left_s`: work that was left at `since`; `rate`: how fast it goes, 1 when undisturbed."""

    operator: SimOperator
    lease_id: UUID | None
    devices: tuple[str, ...]
    left_s: float
    since: float
    rate: float = 1.0
    version: int = 0


@dataclass(slots=True, kw_only=True)
class Job:
    """A job's present. `holds_all`: its own lease is everything that its operators use; `free` is what they leave.

    incarnation counts its admissions; `deadline` is of the present one.
    """

    id: UUID
    arrival: Arrival
    pipeline: SimPipeline
    durations: dict[str, float]
    story: Story
    holds_all: bool
    amounts: Amounts
    node: str | None = None
    yielding: bool = False
    incarnation: int = 0
    deadline: float = 0.0
    done: set[str] = field(default_factory=set)
    asks: dict[str, UUID] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    free: Amounts = field(default_factory=Amounts)
    free_gpus: list[str] = field(default_factory=list)

    def ready(self) -> list[SimOperator]:
        """Operators whose upstreams have ended and that neither run nor ask."""
        return [
            operator
            for operator in self.pipeline.operators
            if operator.name not in self.done
            and operator.name not in self.runs
            and operator.name not in self.asks
            and self.done.issuperset(operator.upstreams)
        ]
