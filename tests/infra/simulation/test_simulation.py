"""The simulator against cases that were worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from infra.simulation.simulation_world import CARD_MIB, CHECKED, arrive, ends, node, pipeline, run, step, workload

from clara_flow.infra.ledger.model import Priority, Quota
from clara_flow.infra.ledger.order import starvation_bound_s
from clara_flow.infra.ledger.simulation.baselines import FIFO, WHOLE_JOB
from clara_flow.infra.ledger.simulation.jobs import Outcome
from clara_flow.infra.ledger.simulation.policy import Policy
from clara_flow.infra.ledger.simulation.report import report
from clara_flow.infra.ledger.simulation.workload import Becomes, Duration, MachineEvent, Workload

ALL = [CHECKED, FIFO, WHOLE_JOB]
TWO_STEPS = pipeline(step("read", 10), step("ai", 10, "read", gpu=1))


@pytest.mark.parametrize("policy", ALL, ids=lambda policy: policy.name)
def test_one_job_lasts_as_long_as_its_longest_path(policy: Policy) -> None:
    load = workload(
        arrive(5),
        pipelines=(pipeline(step("a", 2), step("b", 10, "a"), step("c", 3, "a"), step("d", 1, "b", "c")),),
        nodes=(node(),),
    )
    simulation = run(load, policy)
    assert ends(simulation) == [5 + 2 + 10 + 1]
    assert simulation.stories[0].wait_s == 0
    assert simulation.stories[0].outcome is Outcome.COMPLETED


def test_figures_of_two_jobs_on_one_gpu() -> None:
    load = workload(arrive(), arrive(), pipelines=(pipeline(step("ai", 10, gpu=1, cpu=4)),), nodes=(node(),))
    figures = report(run(load))
    assert figures.jobs == {"completed": 2, "timed-out": 0, "refused": 0, "unserved": 0}
    assert (figures.makespan_s, figures.jobs_per_hour) == (20, 360)
    assert (figures.waits.p50_s, figures.waits.max_s) == (0, 10)
    assert (figures.gpu_held, figures.gpu_used, figures.cpu_held) == (1, 1, 4 / 16)
    assert figures.longest_wait_s == 10
    assert figures.bound_used == pytest.approx(10 / starvation_bound_s(ageing_s=900, older=1, longest_limit_s=615))
    assert [(hour.hour, hour.arrived) for hour in figures.hours] == [(0, 2)]


def test_a_whole_job_holds_its_gpu_while_it_only_reads() -> None:
    load = workload(arrive(), arrive(), pipelines=(TWO_STEPS,), nodes=(node(),))
    assert ends(run(load)) == [20, 30]
    assert ends(run(load, FIFO)) == [20, 30]
    held = run(load, WHOLE_JOB)
    assert ends(held) == [20, 40]
    assert (report(held).gpu_held, report(held).gpu_used) == (1, 0.5)


def test_a_gang_holds_all_at_once_under_the_ledger_too() -> None:
    gang = pipeline(*TWO_STEPS.operators, gang=True)
    assert ends(run(workload(arrive(), arrive(), pipelines=(gang,), nodes=(node(),)))) == [20, 40]


def test_a_job_larger_than_the_machine_is_refused_or_as_a_whole_one_cut() -> None:
    wide = pipeline(*(step(f"ai{number}", 10, gpu=1) for number in range(3)))
    load = workload(arrive(), pipelines=(wide,), nodes=(node(gpus=2),))
    assert ends(run(load)) == [20]
    cut = run(load, WHOLE_JOB)
    assert (ends(cut), report(cut).cut) == ([20], 1)
    gang = workload(arrive(), pipelines=(pipeline(*wide.operators, gang=True),), nodes=(node(gpus=2),))
    assert run(gang).stories[0].outcome is Outcome.REFUSED


def test_a_hard_quota_refuses_what_exceeds_it_and_holds_back_the_rest() -> None:
    jobs = pipeline(step("ai", 10, gpu=1))
    wide = pipeline(step("ai", 10, gpu=2), name="wide")
    load = workload(
        arrive(), arrive(), arrive(pipeline="wide"),
        pipelines=(jobs, wide), nodes=(node(gpus=4),), quotas=(Quota(tenant="default", hard={"gpu": 1}),),
    )  # fmt: skip
    simulation = run(load)
    assert ends(simulation) == [10, 20, 0]
    assert [story.outcome for story in simulation.stories][2] is Outcome.REFUSED
    assert max(time for time in ends(run(load, FIFO)) if time) == 10


@pytest.mark.parametrize(
    ("busy", "second_at", "expected"),
    [
        (0.5, 0, [10, 10]),  # together they keep the GPU just busy: nobody is slowed down
        (1.0, 0, [20, 20]),
        (1.0, 5, [15, 20]),  # 5 s alone, 10 s at half speed; then the other is alone for its last 5 s
        (0.75, 0, [15, 15]),
    ],
)
def test_who_shares_a_gpu_is_slowed_down_by_what_it_lacks(busy: float, second_at: float, expected: list[float]) -> None:
    shared = pipeline(step("ai", 10, busy=busy, gpu_memory_mib=CARD_MIB // 2))
    simulation = run(workload(arrive(), arrive(second_at), pipelines=(shared,), nodes=(node(),)))
    assert ends(simulation) == pytest.approx(expected)
    assert simulation.gpu_used.total == pytest.approx(20 * busy)


def test_a_node_that_falls_silent_loses_its_jobs_when_their_leases_expire() -> None:
    chain = pipeline(step("one", 10), step("two", 10, "one"))
    events = (MachineEvent(at_s=15, node="a", becomes=Becomes.FAILED),)
    load = workload(arrive(), pipelines=(chain,), nodes=(node("a"), node("b")), events=events, lease_ttl_s=30)
    simulation = run(load)
    assert ends(simulation) == [15 + 30 + 10]  # what had ended is not run again
    assert simulation.stories[0].lost == 1


def test_a_lost_gpu_costs_its_operator_only_and_a_gang_goes_back_to_the_queue() -> None:
    events = (MachineEvent(at_s=15, node="a", device="a/0", becomes=Becomes.FAILED),)
    alone = workload(arrive(), pipelines=(TWO_STEPS,), nodes=(node(gpus=2),), events=events)
    assert ends(run(alone)) == [25]
    gang = pipeline(*TWO_STEPS.operators, gang=True)
    assert ends(run(workload(arrive(), pipelines=(gang,), nodes=(node(gpus=2),), events=events))) == [25]


def test_what_runs_on_a_drained_gpu_ends_in_peace() -> None:
    events = (
        MachineEvent(at_s=5, node="a", device="a/0", becomes=Becomes.DRAINED),
        MachineEvent(at_s=50, node="a", device="a/0", becomes=Becomes.USABLE),
    )
    load = workload(arrive(), arrive(), pipelines=(pipeline(step("ai", 10, gpu=1)),), nodes=(node(),), events=events)
    assert ends(run(load)) == [10, 60]


def test_an_emergency_sends_a_preemptible_job_back_between_two_operators() -> None:
    long = pipeline(step("one", 10, gpu=1), step("two", 10, "one", gpu=1), preemptible=True)
    urgent = pipeline(step("ai", 7, gpu=1), name="urgent")
    load = workload(
        arrive(priority=Priority.LOWER), arrive(3, "urgent", priority=Priority.IMMEDIATE),
        pipelines=(long, urgent), nodes=(node(jobs=1),),
    )  # fmt: skip
    simulation = run(load)
    assert ends(simulation) == [27, 17]
    assert [story.preempted for story in simulation.stories] == [1, 0]
    assert simulation.stories[0].wait_s == 0  # it counts from the first start


def test_limits_stop_jobs_and_operators() -> None:
    slow = pipeline(step("a", 50), name="slow", limit_s=30)
    stuck = pipeline(step("a", 50, limit_s=20), name="stuck")
    simulation = run(workload(arrive(0, "slow"), arrive(1, "stuck"), pipelines=(slow, stuck), nodes=(node(),)))
    assert ends(simulation) == [30, 21]
    assert {story.outcome for story in simulation.stories} == {Outcome.TIMED_OUT}


def test_who_needs_a_machine_that_never_comes_back_is_not_served() -> None:
    events = (MachineEvent(at_s=0, node="a", becomes=Becomes.FAILED),)
    load = workload(arrive(100), pipelines=(TWO_STEPS,), nodes=(node(),), events=events)
    assert run(load).stories[0].outcome is Outcome.UNSERVED


def test_claras_classes_are_picked_4_2_1_and_emergencies_first() -> None:
    one = pipeline(step("ai", 10, gpu=1))
    priorities = [Priority.LOWER, Priority.NORMAL, Priority.HIGHER]
    arrivals = [arrive(priority=priority) for priority in priorities for _ in range(8)]
    load = workload(*arrivals, arrive(1, priority=Priority.IMMEDIATE), pipelines=(one,), nodes=(node(),))
    stories = sorted(run(load, WHOLE_JOB).stories, key=lambda story: story.started or 0)
    assert stories[1].priority is Priority.IMMEDIATE
    first = [story.priority for story in stories if story.priority is not Priority.IMMEDIATE][:7]
    assert [first.count(priority) for priority in priorities] == [1, 2, 4]


def test_first_come_first_served_lets_nobody_pass() -> None:
    wide, narrow = pipeline(step("ai", 10, gpu=2), name="wide"), pipeline(step("ai", 4, gpu=1), name="narrow")
    load = workload(
        arrive(0, "narrow"), arrive(1, "wide"), arrive(2, "narrow"), pipelines=(wide, narrow), nodes=(node(gpus=2),)
    )
    assert ends(run(load, FIFO)) == [4, 14, 18]


def test_the_same_seed_gives_the_same_report_and_every_policy_the_same_durations() -> None:
    vague = replace(step("ai", 10, gpu=1), duration=Duration(median_s=10, p95_s=40))
    load = workload(*(arrive(at) for at in range(20)), pipelines=(pipeline(vague),), nodes=(node(gpus=2),), seed=7)
    once, again = report(run(load)), report(run(load))
    assert once == again
    other = replace(load, seed=8)
    assert report(run(other)) != once

    def work(load: Workload, policy: Policy) -> float:
        return run(load, policy).gpu_used.total

    assert work(load, FIFO) == pytest.approx(work(load, CHECKED)) == pytest.approx(work(load, WHOLE_JOB))
    draws = sorted(Workload.durations(load, 3)["ai"] for load in (replace(load, seed=seed) for seed in range(400)))
    assert draws[200] == pytest.approx(10, rel=0.1)
    assert draws[380] == pytest.approx(40, rel=0.2)


def test_operators_of_a_job_that_came_first_go_before_jobs_that_came_with_it() -> None:
    load = workload(*[arrive()] * 6, pipelines=(TWO_STEPS,), nodes=(node(jobs=2),))
    assert ends(run(load, FIFO)) == [20, 30, 40, 50, 60, 70]
