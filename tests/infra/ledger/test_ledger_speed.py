"""A decision is quick whatever waits: 10,000 asks of 20 tenants, 64 GPUs on 8 nodes."""

from __future__ import annotations

from random import Random
from statistics import median
from time import process_time

import pytest
from infra.ledger.ledger_world import World, gpu_node, pairs

from clara_flow.infra.ledger.model import Amounts, Priority

OPERATORS = [
    Amounts(cpu=cpu, memory_mib=memory_mib, gpu=gpu)
    for cpu, memory_mib, gpu in [(1, 1024, 0), (2, 4096, 1), (4, 8192, 1), (8, 32_768, 2), (2, 8192, 4), (1, 512, 8)]
] + [Amounts(cpu=2, memory_mib=4096, gpu_memory_mib=share_mib) for share_mib in (6_000, 20_000, 40_000)]


@pytest.mark.parametrize("jobs", [12, 64], ids=["runner slots are short", "GPUs are short"])
def test_a_decision_takes_milliseconds_with_ten_thousand_waiting(jobs):
    chance = Random(3)  # noqa: S311
    world = World(*(gpu_node(name, 8, links=pairs(range(8)), jobs=jobs) for name in "abcdefgh"))
    for number in range(10_000):
        operator = OPERATORS[number % len(OPERATORS)]
        world.ask(
            jobs=1,
            first=("first", operator),
            needs=(operator,),
            tenant=f"tenant {number % 20}",
            priority=chance.choice([Priority.LOWER, Priority.NORMAL, Priority.NORMAL, Priority.HIGHER]),
            asked=number / 100,
            limit_s=600,
        )
    world.now = 100.0
    world.decide()
    took_s = []
    for _ in range(60):
        world.now += 5
        jobs_now = sorted({lease.job_id for lease in world.ledger.leases.values()})
        ended = chance.choice(jobs_now)
        for lease in [lease for lease in world.ledger.leases.values() if lease.job_id == ended]:
            world.ledger.release(lease.id, world.now)
        before = process_time()
        world.ledger.decide(world.now)
        took_s.append(process_time() - before)
    world.ledger.invariants()
    assert len(world.ledger.asks) > 9_000
    assert median(took_s) < 0.010
