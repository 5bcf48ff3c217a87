"""Small workloads for the simulator's tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clara_flow.infra.ledger.ledger import Ledger
from clara_flow.infra.ledger.model import Amounts, Ask, Decision, Device, Node
from clara_flow.infra.ledger.simulation.engine import Simulation
from clara_flow.infra.ledger.simulation.policy import LEDGER, Policy
from clara_flow.infra.ledger.simulation.workload import (
    Arrival,
    Duration,
    SimOperator,
    SimPipeline,
    Workload,
    whole_job,
)

CARD_MIB = 1000


def node(name: str = "a", gpus: int = 1, **facts: Any) -> Node:
    """A machine with cards of CARD_MIB, named a/0, a/1..."""
    devices = tuple(Device(uuid=f"{name}/{number}", memory_mib=CARD_MIB) for number in range(gpus))
    return Node(name=name, devices=devices, **{"cpu": 16, "memory_mib": 16000, "fastio_mib": 100, "jobs": 8} | facts)


def step(
    name: str, lasts_s: float, *upstreams: str, busy: float = 1.0, limit_s: float | None = None, **amounts: int
) -> SimOperator:
    """An operator that always lasts as long; one core unless it is told otherwise."""
    return SimOperator(
        name=name,
        amounts=Amounts(**{"cpu": 1, "memory_mib": 100} | amounts),
        duration=Duration(median_s=lasts_s, p95_s=lasts_s, gpu_busy=busy),
        upstreams=upstreams,
        limit_s=limit_s,
    )


def pipeline(*operators: SimOperator, name: str = "p", **facts: Any) -> SimPipeline:
    """A pipeline; a gang's job holds all."""
    made = SimPipeline(name=name, operators=operators, **facts)
    return replace(made, job=whole_job(made)) if made.gang else made


def workload(*arrivals: Arrival, pipelines: tuple[SimPipeline, ...], nodes: tuple[Node, ...], **facts: Any) -> Workload:
    """These arrivals of these pipelines on these nodes."""
    return Workload(arrivals=arrivals, pipelines={made.name: made for made in pipelines}, nodes=nodes, **facts)


def arrive(at_s: float = 0.0, pipeline: str = "p", **facts: Any) -> Arrival:
    """A job of the pipeline `p`."""
    return Arrival(at_s=at_s, pipeline=pipeline, **facts)


def run(load: Workload, policy: Policy | None = None) -> Simulation:
    """Simulate it; under the ledger with its invariants checked at every step, unless a policy is given."""
    simulation = Simulation(load, policy or CHECKED)
    simulation.run()
    assert not simulation.books.leases
    assert all(story.outcome is not None for story in simulation.stories)
    return simulation


def ends(simulation: Simulation) -> list[float | None]:
    """When each job ended, in the order of arrival."""
    return [story.ended for story in simulation.stories]


class CheckedLedger(Ledger):
    """The ledger, with its own check after every decision."""

    def ask(self, ask: Ask) -> None:
        assert self.would_fit(ask) is None  # the simulator refuses what the platform refuses
        super().ask(ask)

    def decide(self, now: float) -> list[Decision]:
        decisions = super().decide(now)
        self.invariants()
        return decisions


CHECKED = replace(LEDGER, make=lambda ageing_s: CheckedLedger(ageing_s=ageing_s))
