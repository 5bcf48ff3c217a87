"""Random small workloads with faults: every job ends, nothing is given twice, nobody starves."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from infra.simulation.simulation_world import CARD_MIB, CHECKED, node, pipeline, run, step, workload

from clara_flow.infra.ledger.model import Priority, Quota
from clara_flow.infra.ledger.simulation.baselines import FIFO, WHOLE_JOB
from clara_flow.infra.ledger.simulation.jobs import Outcome
from clara_flow.infra.ledger.simulation.report import report
from clara_flow.infra.ledger.simulation.workload import Arrival, Becomes, MachineEvent, SimPipeline, Workload

TENANTS = ("a", "b", "c")
AMOUNTS = st.sampled_from(
    [{}, {"cpu": 8}, {"gpu": 1}, {"gpu": 2}, {"gpu_memory_mib": CARD_MIB // 3}, {"gpu_memory_mib": CARD_MIB}]
)
DURATIONS = st.sampled_from([0.5, 3.0, 20.0, 200.0])


@st.composite
def pipelines(draw: st.DrawFn, name: str) -> SimPipeline:
    """One to four operators, each reading some of those before it."""
    operators = []
    for number in range(draw(st.integers(1, 4))):
        upstreams = draw(st.sets(st.sampled_from([o.name for o in operators]))) if operators else set()
        busy = draw(st.sampled_from([0.3, 1.0]))
        operators.append(step(f"o{number}", draw(DURATIONS), *sorted(upstreams), busy=busy, **draw(AMOUNTS)))
    return pipeline(
        *operators,
        name=name,
        gang=draw(st.booleans()),
        preemptible=draw(st.booleans()),
        limit_s=draw(st.sampled_from([60.0, 600.0])),
    )


@st.composite
def workloads(draw: st.DrawFn, *, faults: bool, limits: bool) -> Workload:
    """A few pipelines, machines and tenants; what fails comes back."""
    made = tuple(draw(pipelines(name)) for name in ("p", "q"))
    nodes = tuple(
        node(name, gpus=draw(st.integers(0, 3)), jobs=draw(st.integers(1, 4)))
        for name in "xyz"[: draw(st.integers(1, 3))]
    )
    arrivals = draw(
        st.lists(
            st.builds(
                Arrival,
                at_s=st.floats(0, 300),
                pipeline=st.sampled_from(["p", "q"]),
                tenant=st.sampled_from(TENANTS),
                priority=st.sampled_from(Priority),
            ),
            min_size=1,
            max_size=25,
        )
    )
    events: list[MachineEvent] = []
    for _ in range(draw(st.integers(0, 3)) if faults else 0):
        where = draw(st.sampled_from(nodes))
        device = draw(st.sampled_from([None, *(device.uuid for device in where.devices)]))
        at_s, lasts_s = draw(st.floats(0, 300)), draw(st.floats(1, 100))
        becomes = draw(st.sampled_from([Becomes.FAILED, Becomes.DRAINED]))
        events.append(MachineEvent(at_s=at_s, node=where.name, device=device, becomes=becomes))
        events.append(MachineEvent(at_s=at_s + lasts_s, node=where.name, device=device, becomes=Becomes.USABLE))
    quotas = (Quota(tenant="a", weight=3.0), *((Quota(tenant="b", hard={"gpu": 1, "jobs": 1}),) if limits else ()))
    return workload(
        *sorted(arrivals, key=lambda arrival: arrival.at_s),
        pipelines=made,
        nodes=nodes,
        events=tuple(sorted(events, key=lambda event: event.at_s)),
        quotas=quotas,
        ageing_s=60.0,
    )


@settings(max_examples=150, deadline=None)
@given(workloads(faults=True, limits=True))
def test_every_job_ends_whatever_fails(load: Workload) -> None:
    simulation = run(load)
    outcomes = [story.outcome for story in simulation.stories]
    assert len(outcomes) == len(load.arrivals)
    assert Outcome.UNSERVED not in outcomes
    for story in simulation.stories:
        assert story.ended is not None
        assert story.ended >= story.arrived
        assert story.outcome is not Outcome.COMPLETED or story.started is not None


@settings(max_examples=100, deadline=None)
@given(workloads(faults=False, limits=False))
def test_nobody_waits_longer_than_the_ledger_promises(load: Workload) -> None:
    figures = report(run(load))
    assert figures.bound_used is not None
    assert figures.bound_used <= 1
    assert 0 <= figures.gpu_used <= 1 + 1e-9
    assert all(0 <= hour.gpu_used <= 1 + 1e-9 for hour in figures.hours)
    assert figures.losses == 0


@settings(max_examples=60, deadline=None)
@given(workloads(faults=True, limits=False), st.sampled_from([FIFO, WHOLE_JOB]))
def test_the_baselines_keep_within_the_machines_too(load: Workload, policy: object) -> None:
    simulation = run(load, policy)  # type: ignore[arg-type]
    assert Outcome.UNSERVED not in [story.outcome for story in simulation.stories]


@settings(max_examples=40, deadline=None)
@given(workloads(faults=True, limits=True))
def test_a_simulation_repeats_itself(load: Workload) -> None:
    assert report(run(load)).as_json() == report(run(replace(load), CHECKED)).as_json()
