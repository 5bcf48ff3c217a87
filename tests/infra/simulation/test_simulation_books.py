"""The second books: whoever gives what is not there is caught at once. And the figures' arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest
from infra.simulation.simulation_world import CARD_MIB, arrive, node, pipeline, step, workload

from clara_flow.infra.ledger.model import Amounts, Ask, Decision, Grant, Lease, Priority, Quota, Yield
from clara_flow.infra.ledger.simulation.books import Books, CapacityBroken
from clara_flow.infra.ledger.simulation.engine import Simulation
from clara_flow.infra.ledger.simulation.measures import Fairness, Hourly, Spread, jain, percentile
from clara_flow.infra.ledger.simulation.policy import LEDGER

ASK = Ask(id=UUID(int=1), job_id=UUID(int=1), tenant="t")
HELD = Lease(
    id=UUID(int=1), job_id=UUID(int=1), operator="ai", tenant="t", priority=Priority.NORMAL,
    amounts=Amounts(gpu=1, cpu=10), node="a", devices=("a/0",),
)  # fmt: skip


def another(**facts: object) -> Lease:
    return replace(HELD, id=UUID(int=2), **facts)


@pytest.mark.parametrize(
    ("lease", "ask", "complaint"),
    [
        (HELD, ASK, "granted twice"),
        (another(amounts=Amounts(cpu=7), devices=()), ASK, "takes 17 cpu"),
        (another(amounts=Amounts(gpu=1)), ASK, "held whole by another"),
        (another(amounts=Amounts(gpu_memory_mib=1)), ASK, "held whole by another"),
        (another(amounts=Amounts(gpu=2), devices=("a/1", "a/1")), ASK, "has 2 GPUs"),
        (another(amounts=Amounts(gpu=1), devices=("b/0",)), ASK, "not of a"),
        (another(amounts=Amounts(gpu=1), devices=("a/2",)), ASK, "which is not usable"),
        (another(amounts=Amounts(gpu_memory_mib=CARD_MIB + 1), devices=("a/1",)), ASK, "1001 MiB"),
        (another(amounts=Amounts(gpu=1), devices=("a/1",)), ASK, "hard quota of gpu"),
        (another(amounts=Amounts(), devices=(), node="b"), ASK, "not usable"),
        (another(amounts=Amounts(), devices=()), replace(ASK, node="b"), "its job is on b"),
        (another(amounts=Amounts(), devices=(), tenant="other"), ASK, "somebody else's"),
    ],
)
def test_impossible_leases_are_refused(lease: Lease, ask: Ask, complaint: str) -> None:
    first = node("a", gpus=3)
    first = replace(first, devices=(*first.devices[:2], replace(first.devices[2], usable=False)))
    books = Books([first, replace(node("b"), usable=False)], [Quota(tenant="t", hard={"gpu": 1})])
    books.take(HELD, ASK)
    with pytest.raises(CapacityBroken, match=complaint):
        books.take(lease, ask)


class Liar:
    """A scheduler that answers as it is told."""

    def __init__(self, answer: Callable[[Ask], list[Decision]]) -> None:
        self.answer = answer
        self.asks: list[Ask] = []

    def set_nodes(self, nodes: object) -> None: ...

    def set_quotas(self, quotas: object) -> None: ...

    def ask(self, ask: Ask) -> None:
        self.asks.append(ask)

    def withdraw(self, ask_id: UUID) -> None: ...

    def release(self, lease_id: UUID, now: float) -> None: ...

    def decide(self, now: float) -> list[Decision]:
        asks, self.asks = self.asks, []
        return [decision for ask in asks for decision in self.answer(ask)]


def job_lease(ask: Ask) -> Lease:
    return Lease(
        id=ask.id,
        job_id=ask.job_id,
        operator="",
        tenant=ask.tenant,
        priority=ask.priority,
        amounts=ask.amounts,
        node="a",
    )


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda ask: [Grant(ask=ask, leases=(job_lease(ask),))], "not what was asked for"),
        (lambda ask: [Grant(ask=replace(ask, id=UUID(int=99)), leases=())], "had not asked"),
        (lambda ask: [Yield(job_id=ask.job_id, ask=ask)], "does not run"),
    ],
)
def test_a_scheduler_that_lies_is_caught(answer: Callable[[Ask], list[Decision]], complaint: str) -> None:
    policy = replace(LEDGER, make=lambda ageing_s: Liar(answer))
    load = workload(arrive(), pipelines=(pipeline(step("a", 1)),), nodes=(node(),))
    with pytest.raises(CapacityBroken, match=complaint):
        Simulation(load, policy).run()


def test_percentiles_are_nearest_ranks() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (0, 50, 95, 100)] == [1, 50, 95, 100]
    assert Spread.of([]) == Spread(count=0, p50_s=0, p95_s=0, max_s=0)


def test_jains_index() -> None:
    assert jain([3, 3, 3]) == pytest.approx(1)
    assert jain([1, 0, 0, 0]) == pytest.approx(0.25)
    assert jain([]) == 1


def test_an_integral_knows_its_hours() -> None:
    hourly = Hourly()
    hourly.add(2.0, 3000, 7500)
    assert hourly.total == 9000
    assert dict(hourly.hours) == {0: 1200, 1: 7200, 2: 600}


def test_fairness_is_what_tenants_hold_over_what_their_weights_entitle_them_to() -> None:
    fairness = Fairness({"a": 3.0})
    fairness.add(["a"], {"a": 1.0}, 100)  # nobody to share with
    fairness.add(["a", "b"], {"a": 0.6, "b": 0.2}, 100)
    assert fairness.satisfaction() == pytest.approx({"a": 1.0, "b": 1.0})
    assert fairness.index() == pytest.approx(1)
    fairness.add(["a", "b"], {"a": 0.0, "b": 0.8}, 100)
    assert fairness.satisfaction() == pytest.approx({"a": 0.5, "b": 2.5})
    assert fairness.contended_s == 200
