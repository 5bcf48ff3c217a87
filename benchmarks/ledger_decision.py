"""One decision of the ledger with 64 busy GPUs and 10, 1,000 and 10,000 queued jobs of many tenants and shapes.

Two kinds of events, as the dispatcher sees them: a job ends and another can begin; a job arrives and nothing can. Only
`decide` is timed.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import UUID

from benchmarks.common import Scale, summary, write
from clara_flow.infra.ledger.ledger import Ledger
from clara_flow.infra.ledger.model import Amounts, Ask, Device, Grant, Node, Priority, Quota

NODES, GPUS_PER_NODE, GPU_MIB = 8, 8, 81920
QUEUED = (10, 1_000, 10_000)
TENANTS = tuple(f"AE-{number}" for number in range(20))
PRIORITIES = (Priority.LOWER, Priority.NORMAL, Priority.NORMAL, Priority.HIGHER)
SHAPES = (
    Amounts(cpu=4, memory_mib=8192, gpu=1),
    Amounts(cpu=4, memory_mib=16384, gpu=2),
    Amounts(cpu=8, memory_mib=32768, gpu=4),
    Amounts(cpu=2, memory_mib=4096, gpu_memory_mib=6144),
    Amounts(cpu=2, memory_mib=8192, gpu_memory_mib=24576),
    Amounts(cpu=2, memory_mib=4096),
)
LIMITS_S = (615.0, 915.0, 1815.0)


def main(scale: Scale, results: Path) -> Path:
    """Measure and write the result."""
    rounds = 20 if scale.rounds == 1 else 500
    figures: dict[str, Any] = {"gpus": NODES * GPUS_PER_NODE, "tenants": len(TENANTS)}
    granted = hashlib.sha256()
    for queued in QUEUED:
        pool = Pool(queued)
        for name, event in (("a_job_ends", pool.end_one), ("a_job_arrives", pool.add_one)):
            seconds = []
            for _ in range(rounds):
                event()
                start = perf_counter()
                pool.decide()
                seconds.append(perf_counter() - start)
            figures[f"{queued}_queued_{name}"] = in_ms(seconds)
        pool.ledger.invariants()
        granted.update("".join(pool.story).encode())
    figures["aim"] = {"10000_queued median_ms": 10.0}
    figures["checksum"] = granted.hexdigest()
    return write(results, "ledger_decision", figures)


def in_ms(seconds: list[float]) -> dict[str, float]:
    """The summary in milliseconds: decisions are short."""
    return {name.replace("_s", "_ms"): figure for name, figure in summary([1000 * value for value in seconds]).items()}


class Pool:
    """A ledger in which all that can run runs, and so many jobs wait."""

    def __init__(self, queued: int) -> None:
        self.ledger = Ledger()
        self.ledger.set_nodes(_node(number) for number in range(NODES))
        self.ledger.set_quotas(Quota(tenant=name, weight=1 + at % 3) for at, name in enumerate(TENANTS))
        self.source = random.Random(queued)  # noqa: S311  not for secrets
        self.now = 0.0
        self.jobs = 0
        self.running: list[tuple[UUID, ...]] = []
        self.story: list[str] = []
        while len(self.ledger.asks) < queued:
            for _ in range(queued - len(self.ledger.asks)):
                self.add_one()
            self.decide()

    def add_one(self) -> None:
        """A job arrives."""
        self.now += 1.0
        self.jobs += 1
        shape = self.source.choice(SHAPES)
        self.ledger.ask(
            Ask(
                id=UUID(int=self.jobs),
                job_id=UUID(int=self.jobs),
                tenant=self.source.choice(TENANTS),
                priority=self.source.choice(PRIORITIES),
                amounts=Amounts(jobs=1),
                first=("first", shape),
                needs=(shape,),
                asked=self.now,
                limit_s=self.source.choice(LIMITS_S),
            )
        )

    def end_one(self) -> None:
        """A running job ends, and one arrives, so that as many wait as before."""
        leases = self.running.pop(self.source.randrange(len(self.running)))
        self.add_one()
        for lease_id in leases:
            self.ledger.release(lease_id, self.now)

    def decide(self) -> None:
        """One decision."""
        for decision in self.ledger.decide(self.now):
            if isinstance(decision, Grant):
                self.running.append(tuple(lease.id for lease in decision.leases))
                self.story.append(f"{decision.ask.job_id.int}:{','.join(decision.leases[-1].devices)};")


def _node(number: int) -> Node:
    uuids = [f"GPU-{number}-{gpu}" for gpu in range(GPUS_PER_NODE)]
    devices = (Device(uuid=uuid, memory_mib=GPU_MIB, links=frozenset(uuids) - {uuid}) for uuid in uuids)
    return Node(name=f"node-{number}", cpu=128, memory_mib=2**20, jobs=64, devices=tuple(devices))
