"""Who is served next: fair shares, classes, the emergency lane, ageing, quotas."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from infra.ledger.ledger_world import World, gpu_node, jain

from clara_flow.infra.ledger.model import Amounts, Grant, Priority, Quota, WaitsFor
from clara_flow.infra.ledger.order import AGED_TURN, starvation_bound_s

FLOODS = [
    # asks per tenant, weight per tenant, seconds of the tenant's operators
    pytest.param({"a": 400, "b": 400}, {}, {}, id="two"),
    pytest.param({"a": 900, "b": 300}, {}, {}, id="two, one floods"),
    pytest.param({"a": 900, "b": 300}, {}, {"a": 30, "b": 7}, id="two, one floods with long ones"),
    pytest.param(dict.fromkeys("abcde", 200), {}, {}, id="five"),
    pytest.param(dict.fromkeys("abcde", 200) | {"a": 2000}, {}, {"c": 25, "d": 3}, id="five, one floods"),
    pytest.param({"a": 600, "b": 600}, {"a": 2.0}, {}, id="2:1"),
    pytest.param({"a": 600, "b": 600, "c": 600}, {"a": 3.0, "b": 2.0}, {"b": 20}, id="3:2:1"),
]


@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize("ageing_s", [900.0, 100.0])
@pytest.mark.parametrize(("asks", "weights", "lasts"), FLOODS)
def test_under_overload_gpu_time_is_shared_by_weight(asks, weights, lasts, gpus, ageing_s):
    world = World(gpu_node(gpus=gpus), ageing_s=ageing_s)
    world.ledger.set_quotas([Quota(tenant=tenant, weight=weight) for tenant, weight in weights.items()])
    for tenant, count in asks.items():  # the flood comes first: order of arrival would serve one tenant after the other
        for _ in range(count * gpus // 2):
            world.ask(tenant=tenant, gpu=1, cpu=1, lasts_s=lasts.get(tenant, 10))
    world.run(until=1000)
    assert all(any(ask.tenant == tenant for ask in world.ledger.asks.values()) for tenant in asks), "no overload"
    assert jain(world.served_s[tenant] / weights.get(tenant, 1.0) for tenant in asks) >= 0.98


def test_a_tenant_that_comes_later_neither_pays_nor_is_paid_for_the_time_before():
    world = World(gpu_node(gpus=2))
    for _ in range(1000):
        world.ask(tenant="a", gpu=1)
    world.run(until=800)
    for _ in range(200):
        world.ask(tenant="b", gpu=1)
    before = world.served_s["a"]
    world.run(until=1600)
    assert world.served_s["b"] == pytest.approx(world.served_s["a"] - before, rel=0.05)


def test_classes_are_picked_1_2_4_and_the_oldest_of_a_class_first():
    world = World(gpu_node(gpus=1))
    for priority in (Priority.LOWER, Priority.NORMAL, Priority.HIGHER):
        for number in range(70):
            world.ask(priority=priority, gpu=1, asked=number / 1000)
    world.run(until=690)
    picks = Counter(ask.priority for ask in world.picks)
    assert picks == {Priority.LOWER: 10, Priority.NORMAL: 20, Priority.HIGHER: 40}
    for priority in picks:
        served = [ask.asked for ask in world.picks if ask.priority == priority]
        assert served == sorted(served)


def test_the_emergency_lane_is_emptied_first():
    world = World(gpu_node(gpus=1), ageing_s=5)
    world.ask(gpu=1, tenant="first")
    world.decide()
    for tenant in "abc":
        world.ask(gpu=1, tenant=tenant, priority=Priority.HIGHER, asked=-1000)  # aged, and next in every other way
    world.decide()
    admission = world.ask(gpu=1, priority=Priority.IMMEDIATE)
    operator = world.ask(gpu=1, priority=Priority.IMMEDIATE, operator="x", node="a", asked=world.now + 1)
    world.run()
    assert [ask.id for ask in world.picks[1:3]] == [operator.id, admission.id]


def test_finishing_goes_before_starting():
    world = World(gpu_node(gpus=1))
    world.ask(gpu=1)
    world.decide()
    admission = world.ask(gpu=1)
    operator = world.ask(gpu=1, operator="segment", node="a")
    world.run()
    assert [ask.id for ask in world.picks[1:]] == [operator.id, admission.id]


def test_the_rest_of_an_operator_that_was_started_early_goes_before_everything():
    world = World(gpu_node(gpus=1))
    world.ask(gpu=1)
    world.decide()
    world.ask(gpu=1, priority=Priority.IMMEDIATE)
    rest = world.ask(gpu=1, operator="segment", node="a", completes=True, priority=Priority.LOWER)
    world.step()
    assert world.picks[1].id == rest.id


def test_every_eighth_pick_is_the_oldest_once_it_is_aged():
    world = World(gpu_node(gpus=1), ageing_s=100)
    old = [world.ask(gpu=1, tenant="small", asked=-200 - number) for number in range(3)]
    world.ledger.set_quotas([Quota(tenant="small", nominal={"gpu": 0})])  # borrows: after everybody else
    for _ in range(100):
        world.ask(gpu=1, tenant="large")
    world.run(until=400)
    places = [number for number, ask in enumerate(world.picks) if ask.tenant == "small"]
    assert places == [0, AGED_TURN, 2 * AGED_TURN]
    assert [ask.id for ask in world.picks if ask.tenant == "small"] == [ask.id for ask in reversed(old)]


@pytest.mark.parametrize("seed", range(8))
def test_nobody_waits_longer_than_the_bound(seed):
    """Big asks among a flood of small ones, of tenants with and without a share of their own."""
    chance = Random(seed)  # noqa: S311
    world = World(gpu_node(gpus=4, jobs=8), gpu_node("b", gpus=2, jobs=4), ageing_s=120)
    world.ledger.set_quotas([Quota(tenant="poor", weight=0.01, nominal={"gpu": 0, "cpu": 0})])
    older: dict[object, int] = {}
    longest_s = 60.0
    for _ in range(400):
        lasts_s = chance.uniform(1, longest_s)
        ask = world.ask(
            tenant=chance.choice(["rich", "rich", "rich", "poor"]),
            priority=chance.choice([Priority.LOWER, Priority.NORMAL, Priority.HIGHER]),
            gpu=chance.choice([0, 1, 1, 1, 1, 2, 4]),
            cpu=chance.choice([1, 8, 40]),
            lasts_s=lasts_s,
            limit_s=lasts_s * chance.choice([1, 1, 2]),
        )
        older[ask.id] = len(world.ledger.asks) - 1
        if chance.random() < 0.6:
            world.decide()
            world.step()
    asks = dict(world.ledger.asks) | {ask.id: ask for ask in world.picks}
    world.run()
    assert not world.ledger.asks
    for ask_id, started in world.started.items():
        bound_s = starvation_bound_s(ageing_s=120, older=older[ask_id], longest_limit_s=2 * longest_s)
        assert started - asks[ask_id].asked <= bound_s


def test_tenants_within_their_nominal_quota_go_before_borrowers():
    world = World(gpu_node(gpus=4))
    world.ledger.set_quotas([Quota(tenant="a", nominal={"gpu": 1}), Quota(tenant="b", nominal={"gpu": 3})])
    for _ in range(10):
        world.ask(tenant="a", gpu=1)
    assert len(world.grants()) == 4  # nobody else wants them: borrowed
    for _ in range(10):
        world.ask(tenant="b", gpu=1)
    world.step()
    held = Counter(lease.tenant for lease in world.ledger.leases.values())
    assert held == {"a": 1, "b": 3}


def test_the_hard_quota_holds_and_keeps_nobody_else_waiting():
    world = World(gpu_node(gpus=4))
    world.ledger.set_quotas([Quota(tenant="a", hard={"gpu": 2, "gpu_memory_mib": 1000})])
    first = [world.ask(tenant="a", gpu=1) for _ in range(3)]
    other = world.ask(tenant="b", gpu=1)
    share = world.ask(tenant="a", gpu_memory_mib=1000)  # counts for itself
    assert {grant.ask.id for grant in world.grants()} == {first[0].id, first[1].id, other.id, share.id}
    answer = world.ledger.explain(first[2].id, world.now)
    assert isinstance(answer, WaitsFor)
    assert answer.resource == "quota:gpu"
    assert set(answer.holders) == {first[0].job_id, first[1].job_id}
    assert answer.forecast == 10.0


def test_a_large_ask_is_not_starved_by_smaller_ones_of_its_tenant_within_the_quota():
    world = World(gpu_node(gpus=8))
    world.ledger.set_quotas([Quota(tenant="a", hard={"gpu": 4})])
    world.ask(tenant="a", gpu=1, lasts_s=50)
    world.decide()
    large = world.ask(tenant="a", gpu=4)
    for _ in range(20):
        world.ask(tenant="a", gpu=1)
    world.run()
    assert world.started[large.id] == 50


def test_early_starts_only_when_nobody_else_could_use_it():
    world = World(gpu_node(gpus=1, cpu=4))
    world.ask(gpu=1, cpu=1)
    world.decide()
    greedy = world.ask(cpu=2, operator="next", node="a", early=True, lasts_s=100)
    modest = world.ask(cpu=1, operator="next", node="a", early=True, lasts_s=100)
    waiting = world.ask(gpu=1, cpu=3, lasts_s=20)
    assert [grant.ask.id for grant in world.grants()] == [modest.id], (
        "3 of 4 cores are what the one that waits will take"
    )
    world.step()
    assert world.started[waiting.id] == 10
    world.step()
    assert world.started[greedy.id] == 30


def test_nothing_is_started_early_while_something_aged_waits():
    world = World(gpu_node(gpus=1), ageing_s=100)
    world.ask(gpu=1, lasts_s=200)
    world.decide()
    world.ask(gpu=1)
    world.now = 101
    world.ask(cpu=1, operator="next", node="a", early=True)
    assert world.grants() == []


def test_asking_again_changes_nothing_and_the_first_operator_comes_with_its_job():
    world = World(gpu_node(gpus=1))
    ask = world.ask(jobs=1, fastio_mib=100, first=("reader", Amounts(cpu=1, gpu=1)))
    world.ledger.ask(ask)
    decisions = world.decide()
    assert len(decisions) == 1
    grant = decisions[0]
    assert isinstance(grant, Grant)
    job, operator = grant.leases
    assert (job.id, job.operator, operator.operator, operator.devices) == (ask.id, "", "reader", ("a0",))
    assert operator.node == job.node == "a"
    world.ledger.ask(ask)
    assert world.decide() == []
    assert not world.ledger.asks


def test_what_cannot_be_served_as_things_are_takes_nobodys_turn():
    world = World(gpu_node(gpus=1), ageing_s=100)
    world.ledger.set_quotas([Quota(tenant="a", hard={"gpu": 1, "memory_mib": 100})])
    for number in range(40):  # more than are looked at in one decision, all aged
        world.ask(tenant="a", gpu=2 + number, asked=-1000)
        world.ask(tenant="a", memory_mib=200 + number, asked=-1000)
        world.ask(tenant="b", gpu=3 + number, asked=-1000, priority=Priority.IMMEDIATE)
    asks = [world.ask(tenant=tenant, gpu=1, asked=-500) for tenant in "ab" for _ in range(10)]
    world.run()
    assert {ask.id for ask in asks} == set(world.started)
