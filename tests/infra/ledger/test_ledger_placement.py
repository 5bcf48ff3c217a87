"""On which node and devices: best fit, NVLink, NUMA, foreign memory, shares, failed devices."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from infra.ledger.ledger_world import GPU_MIB, World, gpu_node, pairs

from clara_flow.infra.ledger.ledger import missing_for
from clara_flow.infra.ledger.model import Amounts, FitsAfterPreemption, NeverFits, Node, Quota, WaitsFor

QUADS = [*pairs(range(4)), *pairs(range(4, 8))]  # two groups of four, fully linked
TWOS = [(0, 1), (2, 3), (4, 5), (6, 7)]  # NVLink bridges


@pytest.mark.parametrize(
    ("links", "taken", "wanted", "expected"),
    [
        pytest.param(TWOS, [], 2, {0, 1}, id="a bridged pair"),
        pytest.param(TWOS, [0], 2, {2, 3}, id="a whole pair rather than the half of one"),
        pytest.param(TWOS, [2], 1, {3}, id="one: from the pair that is broken already"),
        pytest.param(TWOS, [0, 2], 4, {4, 5, 6, 7}, id="two pairs"),
        pytest.param(QUADS, [], 4, {0, 1, 2, 3}, id="a whole clique"),
        pytest.param(QUADS, [1], 4, {4, 5, 6, 7}, id="the clique that is whole"),
        pytest.param(QUADS, [1], 2, {0, 2}, id="two: from the broken clique"),
        pytest.param(QUADS, [1, 2], 2, {0, 3}, id="what is left of the broken clique"),
        pytest.param([], [0], 2, {1, 2}, id="no links"),
    ],
)
def test_whole_gpus_are_linked_and_leave_the_largest_group_whole(links, taken, wanted, expected):
    world = World(gpu_node(gpus=8, links=links))
    for number in taken:
        world.hold(gpu=1, devices=(f"a{number}",), granted=0, limit_s=100)
    world.ask(gpu=wanted)
    [grant] = world.grants()
    assert set(grant.leases[0].devices) == {f"a{number}" for number in expected}


def test_without_links_devices_of_one_numa_node_are_taken_together():
    world = World(gpu_node(gpus=4, numa=[0, 1, 0, 1]))
    world.hold(gpu=1, devices=("a0",))
    world.ask(gpu=2)
    [grant] = world.grants()
    assert grant.leases[0].devices == ("a1", "a3")


def test_whole_gpus_with_foreign_memory_are_the_last_choice():
    world = World(gpu_node(gpus=3, foreign={0: 500}))
    for _ in range(3):
        world.ask(gpu=1)
    assert [grant.leases[0].devices for grant in world.grants()] == [("a1",), ("a2",), ("a0",)]


def test_shares_are_packed_where_the_least_room_suffices():
    world = World(gpu_node(gpus=3, foreign={2: 10_000}))
    world.hold(gpu_memory_mib=30_000, devices=("a0",))
    world.hold(gpu_memory_mib=60_000, devices=("a1",))
    table = [(20_000, "a1"), (50_000, "a0"), (10_000, "a2"), (65_000, None), (60_000, "a2")]
    for share_mib, expected in table:
        ask = world.ask(gpu_memory_mib=share_mib)
        grants = world.grants()
        assert [grant.leases[0].devices for grant in grants] == ([(expected,)] if expected else [])
        world.ledger.withdraw(ask.id)


def test_gpu_work_goes_where_the_fewest_whole_gpus_stay_and_cpu_work_where_there_are_none():
    world = World(gpu_node("a", gpus=8), gpu_node("b", gpus=2), gpu_node("c", gpus=0))
    one, pair, four, none = (world.ask(gpu=1), world.ask(gpu=1), world.ask(gpu=4), world.ask(cpu=4))
    nodes = {grant.ask.id: grant.leases[0].node for grant in world.grants()}
    assert nodes == {one.id: "b", pair.id: "b", four.id: "a", none.id: "c"}


def test_jobs_that_need_a_gpu_later_are_spread_over_the_gpus():
    world = World(gpu_node("a", gpus=4), gpu_node("b", gpus=2), gpu_node("c", gpus=0))
    for _ in range(12):
        world.ask(jobs=1, first=("reader", Amounts(cpu=1)), needs=(Amounts(gpu=1),))
    nodes = [grant.leases[0].node for grant in world.grants()]
    assert {node: nodes.count(node) for node in "abc"} == {"a": 8, "b": 4, "c": 0}


def test_a_job_goes_only_where_all_its_operators_fit_one_day():
    world = World(gpu_node("a", gpus=8, cpu=4), gpu_node("b", gpus=2, cpu=64))
    world.ask(jobs=1, needs=(Amounts(gpu=1), Amounts(cpu=32)))
    [grant] = world.grants()
    assert grant.leases[0].node == "b"


def test_failed_and_drained_devices_and_nodes_get_nothing_new_and_come_back():
    whole = gpu_node(gpus=2)
    world = World(whole)
    held = world.ask(gpu=1, lasts_s=50)
    world.decide()
    failed = replace(whole, devices=(replace(whole.devices[0], usable=False), whole.devices[1]))
    world.ledger.set_nodes([failed])
    ask = world.ask(gpu=2)
    assert world.grants() == []
    answer = world.ledger.explain(ask.id, world.now)
    assert isinstance(answer, WaitsFor), "a failed device may come back: the job waits"
    assert answer.resource == "gpu"
    other = world.ask(gpu=1)
    [grant] = world.grants()
    assert (grant.ask.id, grant.leases[0].devices) == (other.id, ("a1",))
    world.ledger.set_nodes([replace(whole, usable=False)])
    world.run()
    assert held.id not in world.ledger.leases
    world.ledger.set_nodes([whole])
    world.ledger.invariants()
    [grant] = world.grants()
    assert (grant.ask.id, grant.leases[0].devices) == (ask.id, ("a0", "a1"))


def test_a_node_that_vanishes_and_returns_still_knows_its_leases():
    world = World(gpu_node(gpus=1))
    world.ask(gpu=1, lasts_s=50)
    world.decide()
    world.ledger.set_nodes([])
    waiting = world.ask(gpu=1)
    assert world.grants() == []
    assert isinstance(world.ledger.explain(waiting.id, world.now), WaitsFor)
    world.ledger.set_nodes([gpu_node(gpus=1)])
    assert world.grants() == []
    world.step()
    assert world.started[waiting.id] == 50


NODES = [Node(name="small", cpu=4, memory_mib=8_000), gpu_node("big", gpus=2, cpu=16, memory_mib=64_000)]


@pytest.mark.parametrize(
    ("together", "needs", "hard", "missing"),
    [
        ({"cpu": 4, "gpu": 2}, [], {}, {}),
        ({"cpu": 20}, [], {}, {"cpu": 4}),
        ({"cpu": 1}, [{"gpu": 6}, {"cpu": 20}], {}, {"gpu": 4, "cpu": 4}),
        ({"gpu_memory_mib": GPU_MIB + 5}, [], {}, {"gpu_memory_mib": 5}),
        ({"gpu": 2}, [], {"gpu": 1}, {"quota:gpu": 1}),
        ({}, [{"memory_mib": 70_000}], {"memory_mib": 60_000}, {"memory_mib": 6_000, "quota:memory_mib": 10_000}),
    ],
)
def test_what_will_never_fit_is_known_before_it_waits(together, needs, hard, missing):
    quota = Quota(tenant="default", hard=hard)
    assert missing_for(NODES, quota, Amounts(**together), [Amounts(**need) for need in needs]) == missing
    world = World(*NODES)
    world.ledger.set_quotas([quota])
    ask = world.ask(**together, needs=tuple(Amounts(**need) for need in needs))
    never = world.ledger.would_fit(ask)
    assert (dict(never.missing) if never else {}) == missing
    if missing:
        assert world.grants() == []
        assert world.ledger.explain(ask.id, 0) == NeverFits(missing=missing)


def test_where_no_node_is_known_nothing_is_refused():
    assert missing_for([], None, Amounts(gpu=8)) == {}


def test_who_waits_is_told_for_what_for_whom_and_until_when():
    world = World(gpu_node(gpus=2))
    long, short = (world.ask(gpu=1, lasts_s=lasts_s, limit_s=600, expected_s=lasts_s) for lasts_s in (90, 40))
    world.decide()
    first, second = world.ask(gpu=1), world.ask(gpu=1)
    world.decide()
    queue = world.ledger.queue(world.now)
    assert [ask.id for ask, _ in queue] == [first.id, second.id]
    holders = (short.job_id, long.job_id)
    assert queue[0][1] == WaitsFor(resource="gpu", holders=holders, forecast=40, position=1)
    assert queue[1][1] == WaitsFor(resource="gpu", holders=holders, forecast=None, position=2)
    assert not any(isinstance(answer, FitsAfterPreemption) for _, answer in queue)


def test_the_queue_is_listed_in_the_order_in_which_it_is_served():
    world = World(gpu_node(gpus=1))
    world.ask(gpu=1)
    world.decide()
    for number in range(30):
        world.ask(gpu=1, tenant="abc"[number % 3], priority=1 + number % 4, asked=number / 100)
    world.decide()
    listed = [ask for ask, _ in world.ledger.queue(world.now)]
    assert listed[:5] == [ask for ask, _ in world.ledger.queue(world.now, 5)]
    world.run()
    served = world.picks[1:]
    assert listed[:8] == served[:8], "the emergency lane, then the head"
    for tenant in "abc":
        assert [ask for ask in listed if ask.tenant == tenant] == [ask for ask in served if ask.tenant == tenant]


def test_cliques_of_a_ring_are_grown_from_neighbours():
    world = World(gpu_node(gpus=8, links=[*pairwise(range(8)), (0, 7)]))
    for number in (0, 4):
        world.hold(gpu=1, devices=(f"a{number}",))
    world.ask(gpu=3)
    [grant] = world.grants()
    assert grant.leases[0].devices in (("a1", "a2", "a3"), ("a5", "a6", "a7"))


def test_the_forecast_plays_the_queue_forward():
    world = World(gpu_node(gpus=2))
    for lasts_s in (90, 40):
        world.ask(gpu=1, limit_s=600, expected_s=lasts_s)
    world.decide()
    asks = [world.ask(gpu=gpus, limit_s=600, expected_s=20) for gpus in (1, 2, 1)]
    never = world.ask(gpu=3)
    world.decide()
    #  a0: 90 s running            | 2 | 3
    #  a1: 40 s running | 1 | idle | 2 |
    assert world.ledger.forecast(world.now) == {asks[0].id: 40, asks[1].id: 90, asks[2].id: 110}
    assert world.ledger.forecast(world.now, 1) == {asks[0].id: 40}
    assert set(world.ledger.asks) == {*(ask.id for ask in asks), never.id}, "nothing was decided"
