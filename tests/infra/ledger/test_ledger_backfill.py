"""Who passes whom: back-fill that delays nobody who is served before it, and preemption."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from infra.ledger.ledger_world import World, gpu_node

from clara_flow.infra.ledger.model import Amounts, Fits, FitsAfterPreemption, Priority, WaitsFor


def test_what_ends_before_the_reservation_passes_and_what_does_not_waits():
    world = World(gpu_node(gpus=2))
    running = world.ask(gpu=1, lasts_s=60)
    world.decide()
    head = world.ask(gpu=2)
    long = world.ask(gpu=1, lasts_s=61)
    short = world.ask(gpu=1, lasts_s=60)
    beside = world.ask(cpu=1, lasts_s=1000)
    assert {grant.ask.id for grant in world.grants()} == {short.id, beside.id}
    assert world.ledger.explain(long.id, world.now) == WaitsFor(
        resource="gpu", holders=(running.job_id, short.job_id), forecast=None, position=3 - 1
    )
    world.run()
    assert world.started[head.id] == 60


def test_who_would_fit_but_for_a_reservation_is_told_that_it_is_not_its_turn():
    world = World(gpu_node(gpus=2))
    world.ask(gpu=1, lasts_s=60)
    world.decide()
    head = world.ask(gpu=2)
    long = world.ask(gpu=1, lasts_s=61)
    assert world.grants() == []
    answer = world.ledger.explain(long.id, world.now)
    assert isinstance(answer, WaitsFor)
    assert (answer.resource, answer.holders) == ("turn", (head.job_id,))


def test_an_operator_ends_with_its_job_whatever_its_own_limit_says():
    """Else jobs that hold the runner slot for which the head waits would wait for the head in turn."""
    world = World(gpu_node(gpus=1, jobs=1))
    job = world.ask(jobs=1, lasts_s=100)
    world.decide()
    world.ask(jobs=1, first=("x", Amounts(gpu=1)))
    operator = world.ask(gpu=1, job_id=job.job_id, operator="segment", node="a", lasts_s=50, limit_s=600)
    assert [grant.ask.id for grant in world.grants()] == [operator.id]


def test_explain_before_a_decision_knows_what_fits():
    world = World(gpu_node(gpus=1))
    ask = world.ask(gpu=1)
    assert world.ledger.explain(ask.id, 0) == Fits(node="a", devices=("a0",))


JOBS = st.lists(
    st.fixed_dictionaries(
        {
            "gpu": st.sampled_from([0, 1, 1, 2, 4]),
            "cpu": st.integers(1, 8),
            "lasts_s": st.integers(1, 50),
        }
    ),
    max_size=8,
)
LATER = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.fixed_dictionaries(
            {
                "gpu": st.sampled_from([0, 1, 1, 2, 4]),
                "cpu": st.integers(1, 8),
                "lasts_s": st.integers(1, 50),
                "tenant": st.sampled_from("ab"),
                "priority": st.sampled_from([Priority.LOWER, Priority.NORMAL, Priority.HIGHER]),
            }
        ),
    ),
    max_size=8,
)


@given(running=JOBS, head=JOBS.filter(len), others=LATER)
@settings(max_examples=300, deadline=None)
def test_the_head_never_starts_later_with_back_fill_than_without(running, head, others):
    """Limits are true here: each lease lasts exactly to its limit. The others come after so many leases have ended."""
    starts = []
    for back_fill in (False, True):
        world = World(gpu_node(gpus=4, cpu=10), gpu_node("b", gpus=2, cpu=8))
        for facts in running:
            world.ask(**facts)
        world.decide()
        for ask_id in list(world.ledger.asks):
            world.ledger.withdraw(ask_id)
        first = world.ask(**head[0])
        for step in range(4):
            world.decide()
            for after, facts in others if back_fill else []:
                if after == step:
                    world.ask(**facts)
            world.step()
        world.run()
        starts.append(world.started[first.id])
    assert starts[1] <= starts[0]


def preemptible_job(world: World, **facts: object):
    return world.hold(**({"jobs": 1, "limit_s": 1000.0, "preemptible": True, "priority": Priority.NORMAL} | facts))


def test_the_youngest_preemptible_job_of_lower_priority_yields_once_and_what_it_frees_is_kept():
    world = World(gpu_node(gpus=1, jobs=4))
    preemptible_job(world, granted=1.0)
    preemptible_job(world, granted=9.0, preemptible=False)
    preemptible_job(world, granted=8.0, priority=Priority.IMMEDIATE)
    young = preemptible_job(world, granted=5.0)
    operator = world.hold(job_id=young.job_id, operator="x", gpu=1, devices=("a0",), granted=5.0, limit_s=100.0)
    emergency = world.ask(jobs=1, priority=Priority.IMMEDIATE)
    others = [world.ask(jobs=1, priority=Priority.HIGHER) for _ in range(3)]
    world.decide()
    assert [(order.job_id, order.ask.id) for order in world.yields] == [(young.job_id, emergency.id)]
    assert world.ledger.leases[young.id].yielding
    answer = world.ledger.explain(emergency.id, world.now)
    assert answer == FitsAfterPreemption(node="a", victims=(young.job_id,))
    world.now = 20
    assert world.decide() == [], "it is not asked twice"
    world.ledger.release(operator.id, world.now)
    assert world.decide() == [], "its operator ended; its runner slot is not free yet"
    world.ledger.release(young.id, world.now)
    granted = [grant.ask.id for grant in world.grants()]
    assert granted == [emergency.id]
    assert all(other.id in world.ledger.asks for other in others)


def test_as_few_jobs_as_possible_yield():
    world = World(gpu_node(gpus=0, jobs=4, fastio_mib=400))
    for number, fastio_mib in enumerate((100, 200, 50, 50)):
        preemptible_job(world, granted=float(number), fastio_mib=fastio_mib)
    world.ask(fastio_mib=180, priority=Priority.HIGHER)
    world.decide()
    assert [world.ledger.leases[lease].yielding for lease in world.ledger.leases] == [False, True, False, False]


def test_nobody_yields_for_what_an_operator_gives_back_anyway_or_for_normal_priority():
    world = World(gpu_node(gpus=1, jobs=2))
    job = preemptible_job(world)
    world.hold(job_id=job.job_id, operator="x", gpu=1, devices=("a0",), limit_s=100.0)
    emergency = world.ask(gpu=1, priority=Priority.IMMEDIATE)
    assert world.decide() == []
    assert isinstance(world.ledger.explain(emergency.id, 0), WaitsFor)
    preemptible_job(world, priority=Priority.LOWER)
    world.ask(jobs=1)
    assert world.decide() == []


def test_a_gang_yields_its_gpus_to_one_higher_ask_at_a_time():
    world = World(gpu_node(gpus=2))
    gangs = [preemptible_job(world, gpu=1, devices=(f"a{number}",), granted=float(number)) for number in range(2)]
    higher = [world.ask(gpu=1, priority=Priority.HIGHER) for _ in range(2)]
    world.decide()
    assert [order.job_id for order in world.yields] == [gangs[1].job_id]
    world.ledger.release(gangs[1].id, 1)
    world.now = 1
    decisions = world.decide()
    assert [decision.ask.id for decision in decisions] == [higher[0].id, higher[1].id]
    assert [order.job_id for order in world.yields] == [gangs[1].job_id, gangs[0].job_id]


def test_a_job_that_yields_when_the_ledger_is_made_anew_is_not_asked_again():
    world = World(gpu_node(gpus=1))
    world.hold(gpu=1, devices=("a0",), preemptible=True, yielding=True, limit_s=1000.0)
    world.hold(jobs=1, preemptible=True, limit_s=1000.0)
    emergency = world.ask(gpu=1, priority=Priority.IMMEDIATE)
    assert world.decide() == []
    assert isinstance(world.ledger.explain(emergency.id, 0), FitsAfterPreemption)


def test_if_the_owed_device_fails_meanwhile_somebody_else_yields():
    node = gpu_node(gpus=2)
    world = World(node)
    old = preemptible_job(world, gpu=1, devices=("a0",), granted=1.0)
    young = preemptible_job(world, gpu=1, devices=("a1",), granted=2.0)
    world.ask(gpu=1, priority=Priority.IMMEDIATE)
    world.decide()
    world.ledger.set_nodes([replace(node, devices=(node.devices[0], replace(node.devices[1], usable=False)))])
    world.ledger.release(young.id, 5)
    world.decide()
    assert [order.job_id for order in world.yields] == [young.job_id, old.job_id]


def test_the_next_operator_of_a_job_that_yields_is_not_started_and_keeps_nobody_else_waiting():
    world = World(gpu_node(gpus=1, jobs=2))
    yielding = preemptible_job(world)
    other = preemptible_job(world, preemptible=False)
    world.ask(jobs=1, priority=Priority.IMMEDIATE)
    world.decide()
    held_back = world.ask(cpu=1, job_id=yielding.job_id, operator="x", node="a", preemptible=True)
    served = world.ask(cpu=1, job_id=other.job_id, operator="x", node="a")
    assert [grant.ask.id for grant in world.grants()] == [served.id]
    assert world.ledger.explain(held_back.id, 0) == WaitsFor(resource="turn", position=1)
