"""Whatever happens in whatever order: no device has two masters, no limit is exceeded, nothing idles for nothing."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from clara_flow.infra.ledger.ledger import Ledger
from clara_flow.infra.ledger.model import (
    RESOURCES,
    Amounts,
    Ask,
    Device,
    Grant,
    Lease,
    NeverFits,
    Node,
    Priority,
    Quota,
    WaitsFor,
    Yield,
)

TENANTS = ["a", "b", "c"]
SCALARS = ("cpu", "memory_mib", "fastio_mib", "jobs")

operator_amounts = st.builds(
    Amounts,
    cpu=st.integers(0, 4),
    memory_mib=st.integers(0, 400),
    gpu=st.sampled_from([0, 0, 1, 1, 2, 3]),
) | st.builds(Amounts, cpu=st.integers(0, 2), gpu_memory_mib=st.integers(1, 100))
job_amounts = st.builds(Amounts, jobs=st.just(1), fastio_mib=st.integers(0, 60))
gang_amounts = st.builds(Amounts, jobs=st.just(1), cpu=st.integers(1, 6), gpu=st.integers(0, 3))


@st.composite
def nodes(draw: st.DrawFn) -> list[Node]:
    made = []
    for name in "xyz"[: draw(st.integers(1, 3))]:
        count = draw(st.integers(0, 4))
        names = [f"{name}{number}" for number in range(count)]
        devices = []
        for number, uuid in enumerate(names):
            links = frozenset(draw(st.sets(st.sampled_from(names)))) - {uuid}
            devices.append(Device(uuid=uuid, memory_mib=draw(st.sampled_from([60, 100])), links=links, numa=number % 2))
        made.append(
            Node(
                name=name,
                cpu=draw(st.integers(1, 8)),
                memory_mib=draw(st.integers(100, 800)),
                fastio_mib=100,
                jobs=draw(st.integers(1, 4)),
                devices=tuple(devices),
            )
        )
    return made


class LedgerMachine(RuleBasedStateMachine):
    """Two ledgers get the same events: both must decide the same."""

    def __init__(self) -> None:
        super().__init__()
        self.ledgers = (Ledger(ageing_s=60), Ledger(ageing_s=60))
        self.ledger = self.ledgers[0]
        self.now = 0.0
        self.ids = 0
        self.pool: dict[str, Node] = {}
        self.hard: dict[str, dict[str, int]] = {}

    def id(self) -> UUID:
        self.ids += 1
        return UUID(int=self.ids)

    @initialize(pool=nodes())
    def begin(self, pool: list[Node]) -> None:
        self.pool = {node.name: node for node in pool}
        self.announce()

    def announce(self) -> None:
        for ledger in self.ledgers:
            ledger.set_nodes(self.pool.values())

    def put(self, ask: Ask) -> None:
        for ledger in self.ledgers:
            ledger.ask(ask)

    @rule(
        tenant=st.sampled_from(TENANTS),
        priority=st.sampled_from(Priority),
        amounts=job_amounts | gang_amounts,
        first=st.none() | operator_amounts,
        needs=st.lists(operator_amounts, max_size=2),
        limit_s=st.sampled_from([10.0, 30.0, 100.0]),
        preemptible=st.booleans(),
    )
    def queue_job(self, tenant, priority, amounts, first, needs, limit_s, preemptible) -> None:
        gang = amounts.cpu > 0
        self.put(
            Ask(
                id=self.id(),
                job_id=self.id(),
                tenant=tenant,
                priority=priority,
                amounts=amounts,
                first=("first", first) if first and not gang else None,
                needs=() if gang else tuple(needs),
                asked=self.now,
                limit_s=limit_s,
                preemptible=preemptible,
            )
        )

    @precondition(lambda self: self.ledger.leases)
    @rule(
        data=st.data(),
        amounts=operator_amounts,
        limit_s=st.sampled_from([5.0, 20.0]),
        kind=st.sampled_from(["", "", "early", "completes"]),
    )
    def next_operator(self, data, amounts, limit_s, kind) -> None:
        job = data.draw(st.sampled_from(list(self.ledger.leases.values())))
        self.put(
            Ask(
                id=self.id(),
                job_id=job.job_id,
                operator=f"operator{self.ids}",
                tenant=job.tenant,
                priority=job.priority,
                amounts=amounts,
                node=job.node,
                asked=self.now,
                limit_s=limit_s,
                preemptible=job.preemptible,
                early=kind == "early",
                completes=kind == "completes",
            )
        )

    @precondition(lambda self: self.ledger.asks)
    @rule(data=st.data())
    def withdraw(self, data) -> None:
        ask_id = data.draw(st.sampled_from(list(self.ledger.asks)))
        for ledger in self.ledgers:
            ledger.withdraw(ask_id)
        assert ask_id not in self.ledger.asks

    @precondition(lambda self: self.ledger.leases)
    @rule(data=st.data(), after_s=st.sampled_from([0.0, 1.0, 20.0, 200.0]))
    def release(self, data, after_s) -> None:
        lease_id = data.draw(st.sampled_from(list(self.ledger.leases)))
        self.now += after_s
        for ledger in self.ledgers:
            ledger.release(lease_id, self.now)
        assert lease_id not in self.ledger.leases

    @precondition(lambda self: any(node.devices for node in self.pool.values()))
    @rule(data=st.data(), usable=st.booleans(), foreign_mib=st.sampled_from([0, 0, 30]))
    def device_changes(self, data, usable, foreign_mib) -> None:
        node = data.draw(st.sampled_from([node for node in self.pool.values() if node.devices]))
        number = data.draw(st.integers(0, len(node.devices) - 1))
        devices = list(node.devices)
        devices[number] = replace(devices[number], usable=usable, foreign_mib=foreign_mib)
        self.pool[node.name] = replace(node, devices=tuple(devices))
        self.announce()

    @rule(data=st.data(), usable=st.booleans())
    def node_changes(self, data, usable) -> None:
        name = data.draw(st.sampled_from(sorted(self.pool)))
        self.pool[name] = replace(self.pool[name], usable=usable)
        self.announce()

    @rule(data=st.data())
    def node_is_away_for_a_moment(self, data) -> None:
        name = data.draw(st.sampled_from(sorted(self.pool)))
        for ledger in self.ledgers:
            ledger.set_nodes(node for node in self.pool.values() if node.name != name)
            ledger.invariants()
        self.announce()

    @rule(
        tenant=st.sampled_from(TENANTS),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
        hard=st.dictionaries(st.sampled_from(RESOURCES), st.integers(0, 5)),
        nominal=st.dictionaries(st.sampled_from(RESOURCES), st.integers(0, 3)),
    )
    def quota(self, tenant, weight, hard, nominal) -> None:
        held = self.held(tenant)
        self.hard[tenant] = {name: max(limit, held[name]) for name, limit in hard.items()}  # never below what is held
        quotas = [Quota(tenant=name, hard=limits, weight=weight, nominal=nominal) for name, limits in self.hard.items()]
        for ledger in self.ledgers:
            ledger.set_quotas(quotas)

    @rule()
    def decide(self) -> None:
        before = dict(self.ledger.leases)
        decisions = self.ledger.decide(self.now)
        assert decisions == self.ledgers[1].decide(self.now), "not deterministic"
        assert self.ledger.decide(self.now) == [], "a second call without an event found more"
        assert self.ledgers[1].decide(self.now) == []
        for decision in decisions:
            if isinstance(decision, Grant):
                self.check_grant(decision, before)
            else:
                self.check_yield(decision, before)
        self.check_nothing_idles()

    def check_grant(self, grant: Grant, before: dict[UUID, Lease]) -> None:
        ask = grant.ask
        assert ask.id not in self.ledger.asks
        assert grant.leases[0].id == ask.id
        assert len(grant.leases) == 1 + (ask.first is not None)
        for lease in grant.leases:
            assert lease.id not in before
            assert self.ledger.leases[lease.id].amounts == lease.amounts
            node = self.pool[lease.node]
            assert node.usable or ask.node == node.name  # on a drained node the jobs that run there may end
            assert ask.node in (None, node.name)
            usable = {device.uuid for device in node.devices if device.usable}
            assert set(lease.devices) <= usable
            assert len(lease.devices) == (lease.amounts.gpu or (1 if lease.amounts.gpu_memory_mib else 0))

    def check_yield(self, order: Yield, before: dict[UUID, Lease]) -> None:
        victims = [lease for lease in self.ledger.leases.values() if lease.job_id == order.job_id]
        assert not any(lease.yielding for lease in before.values() if lease.job_id == order.job_id), "asked twice"
        job = next(lease for lease in victims if not lease.operator)
        assert job.yielding
        assert job.preemptible
        assert job.priority < order.ask.priority
        assert order.ask.priority in (Priority.HIGHER, Priority.IMMEDIATE)

    def check_nothing_idles(self) -> None:
        """If all that wait would fit, nobody waits: whoever waits waits for somebody who does not fit."""
        waiting = [
            ask
            for ask in self.ledger.asks.values()
            if not ask.early and not isinstance(self.ledger.explain(ask.id, self.now), NeverFits)
        ]
        answers = [self.ledger.explain(ask.id, self.now) for ask in waiting]
        turns = [answer for answer in answers if isinstance(answer, WaitsFor) and answer.resource == "turn"]
        assert not waiting or len(turns) < len(waiting)

    @invariant()
    def books_agree(self) -> None:
        self.ledger.invariants()

    @invariant()
    def nobody_holds_too_much(self) -> None:
        for node in self.pool.values():
            leases = [lease for lease in self.ledger.leases.values() if lease.node == node.name]
            for name in SCALARS:
                assert sum(getattr(lease.amounts, name) for lease in leases) <= getattr(node, name)
            for device in node.devices:
                holders = [lease for lease in leases if device.uuid in lease.devices]
                if any(lease.amounts.gpu for lease in holders):
                    assert len(holders) == 1
                assert sum(lease.amounts.gpu_memory_mib for lease in holders) <= device.memory_mib
        for tenant, limits in self.hard.items():
            held = self.held(tenant)
            assert all(held[name] <= limit for name, limit in limits.items())

    def held(self, tenant: str) -> dict[str, int]:
        leases = [lease for lease in self.ledger.leases.values() if lease.tenant == tenant]
        return {name: sum(getattr(lease.amounts, name) for lease in leases) for name in RESOURCES}

    def teardown(self) -> None:
        """Every lease can be given back, and then nothing is held."""
        for ledger in self.ledgers:
            for lease_id in list(ledger.leases):
                ledger.release(lease_id, self.now)
            ledger.invariants()
            assert not ledger.leases


LedgerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase
