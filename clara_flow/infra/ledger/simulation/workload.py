"""What a simulation is given: pipelines, arrivals, machines and what happens to them.

Times are seconds of the virtual clock, from 0; memory is MiB.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from clara_flow.infra.ledger.model import Amounts, Node, Priority, Quota

A_RUNNER = Amounts(jobs=1)
NORMAL_P95 = 1.6448536269514722  # 95th percentile of the standard normal distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """How long an operator runs when nobody shares its GPU: log-normal, told by what a hospital can measure.

    median_s    half of the runs are shorter.
    p95_s       95 of 100 runs are shorter; equal to `median_s`: always the same.
    gpu_busy    share of that time in which it keeps its GPU busy, 0 to 1: what it loses where several share a GPU.
    """

    median_s: float
    p95_s: float
    gpu_busy: float = 1.0

    def draw(self, source: random.Random) -> float:
        """One true duration, in seconds."""
        if self.p95_s == self.median_s:
            return self.median_s
        sigma = math.log(self.p95_s / self.median_s) / NORMAL_P95
        return self.median_s * math.exp(sigma * source.gauss(0.0, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class SimOperator:
    """One operator. `limit_s` is its own timeout (None: the job's); it is stopped there."""

    name: str
    amounts: Amounts
    duration: Duration
    upstreams: tuple[str, ...] = ()
    limit_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimPipeline:
    """A pipeline, as far as the ledger sees it. `operators` are in a topological order.

    job         what the job itself holds from its admission to its end; with `gang` all that its operators use.
    limit_s     of the whole job, from its admission; a job that runs longer is stopped.
    grace_s     between the request to stop and the end of what was held: part of every lease's limit.
    """

    name: str
    operators: tuple[SimOperator, ...]
    job: Amounts = A_RUNNER
    gang: bool = False
    preemptible: bool = False
    limit_s: float = 600.0
    grace_s: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One job that somebody starts."""

    at_s: float
    pipeline: str
    tenant: str = "default"
    priority: Priority = Priority.NORMAL


class Becomes(StrEnum):
    """What happens to a node or a GPU.

    FAILED      what runs on it is lost. A GPU's failure is seen at once, a node's when its leases expire.
    DRAINED     what runs on it ends in peace, nothing new is put there.
    USABLE      it is back.
    """

    FAILED = "failed"
    DRAINED = "drained"
    USABLE = "usable"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineEvent:
    """Something that happens to a node, or with `device` (UUID) to one of its GPUs."""

    at_s: float
    node: str
    becomes: Becomes
    device: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Everything that one simulation replays.

    arrivals    by time.
    seed        of the true durations: with the same seed, each job's operators last the same under every policy.
    ageing_s    setting `ageing_s`; lease_ttl_s: setting `lease_ttl_s`, after which a silent node's jobs go elsewhere.
    """

    pipelines: Mapping[str, SimPipeline]
    arrivals: tuple[Arrival, ...]
    nodes: tuple[Node, ...]
    events: tuple[MachineEvent, ...] = ()
    quotas: tuple[Quota, ...] = ()
    seed: int = 0
    ageing_s: float = 900.0
    lease_ttl_s: float = 30.0

    def durations(self, number: int) -> dict[str, float]:
        """True durations of the operators of arrival `number`, by name; the same whatever else is simulated."""
        pipeline = self.pipelines[self.arrivals[number].pipeline]
        return {
            operator.name: operator.duration.draw(random.Random(f"{self.seed}/{number}/{operator.name}"))  # noqa: S311
            for operator in pipeline.operators
        }


def whole_job(pipeline: SimPipeline) -> Amounts:
    """All that a pipeline's operators ask for, at once, as Clara reserved it: it knew no shares of a GPU."""
    total = Amounts(jobs=1, fastio_mib=pipeline.job.fastio_mib)
    for operator in pipeline.operators:
        amounts = operator.amounts
        gpu = amounts.gpu or (1 if amounts.gpu_memory_mib else 0)
        total += Amounts(cpu=amounts.cpu, memory_mib=amounts.memory_mib, gpu=gpu)
    return total


def room_for(amounts: Amounts, node: Node) -> bool:
    """Whether an empty node, all of it usable, holds that."""
    return (
        amounts.cpu <= node.cpu
        and amounts.memory_mib <= node.memory_mib
        and amounts.fastio_mib <= node.fastio_mib
        and amounts.jobs <= node.jobs
        and amounts.gpu <= len(node.devices)
        and (not amounts.gpu_memory_mib or any(amounts.gpu_memory_mib <= d.memory_mib for d in node.devices))
    )
