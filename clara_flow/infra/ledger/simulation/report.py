"""What a simulation says: plain figures, ready for a table or JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from clara_flow.infra.ledger.simulation.engine import Simulation
from clara_flow.infra.ledger.simulation.jobs import Outcome, Story
from clara_flow.infra.ledger.simulation.measures import HOUR_S, Spread

DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """One hour of the clock: jobs that arrived in it, how long these waited, and how busy the GPUs were (0 to 1)."""

    hour: int
    arrived: int
    wait_p95_s: float
    gpu_used: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The figures of one policy.

    jobs            how many ended how, by `Outcome`.
    cut             jobs that asked for more than the largest machine has and got all of that instead (whole-job only).
    makespan_s      from the first arrival to the last end.
    jobs_per_hour   completed ones, over the makespan.
    waits           from arrival to the first operator's start: of all, by priority, by tenant.
    turnarounds     from arrival to the end, of completed jobs: of all, by priority, by pipeline.
    gpu_held, cpu_held  share of all there are that was leased, 0 to 1, over the makespan.
    gpu_used        share of the GPUs' time in which operators really kept them busy.
    preemptions     how often a job went back to the queue for a more urgent one.
    losses          how often a job or an operator was lost with a machine or a GPU and began again.
    longest_wait_s  of any ask, of a job or an operator, until it was granted; `bound_used` is the largest part of what
                    the policy promises that any ask waited, at most 1 (None: it promises nothing).
    fairness        Jain's index over tenants while several of them wait (`measures.Fairness`); `contended_s` is for how
                    long that was, `satisfaction` what each got over what its weight entitles it to.
    """

    policy: str
    jobs: Mapping[str, int]
    cut: int
    makespan_s: float
    jobs_per_hour: float
    waits: Spread
    waits_by_priority: Mapping[str, Spread]
    waits_by_tenant: Mapping[str, Spread]
    turnarounds: Spread
    turnarounds_by_priority: Mapping[str, Spread]
    turnarounds_by_pipeline: Mapping[str, Spread]
    gpu_held: float
    gpu_used: float
    cpu_held: float
    preemptions: int
    losses: int
    longest_wait_s: float
    bound_used: float | None
    fairness: float
    contended_s: float
    satisfaction: Mapping[str, float]
    hours: tuple[Hour, ...]

    def as_json(self) -> dict[str, Any]:
        """The figures, rounded to what is worth reading."""
        facts: dict[str, Any] = _rounded(asdict(self))
        return facts


def report(simulation: Simulation) -> Report:
    """The figures of a simulation that has run."""
    stories = [story for story in simulation.stories if story.outcome is not Outcome.REFUSED]
    completed = [story for story in stories if story.outcome is Outcome.COMPLETED]
    start = min((story.arrived for story in stories), default=0.0)
    end = max((story.ended for story in stories if story.ended is not None), default=start)
    books, makespan_s = simulation.books, end - start
    outcomes = [story.outcome for story in simulation.stories]
    return Report(
        policy=simulation.policy.name,
        jobs={str(outcome): outcomes.count(outcome) for outcome in Outcome},
        cut=sum(story.cut for story in stories),
        makespan_s=makespan_s,
        jobs_per_hour=_over(len(completed) * HOUR_S, makespan_s),
        waits=_waits(stories),
        waits_by_priority=_grouped(_by_priority(stories), _priority, _waits),
        waits_by_tenant=_grouped(stories, lambda story: story.tenant, _waits),
        turnarounds=_turnarounds(completed),
        turnarounds_by_priority=_grouped(_by_priority(completed), _priority, _turnarounds),
        turnarounds_by_pipeline=_grouped(completed, lambda story: story.pipeline, _turnarounds),
        gpu_held=_over(books.gpu_held.total, makespan_s * books.gpus_in_all),
        gpu_used=_over(simulation.gpu_used.total, makespan_s * books.gpus_in_all),
        cpu_held=_over(books.cpu_held.total, makespan_s * books.in_all["cpu"]),
        preemptions=sum(story.preempted for story in stories),
        losses=sum(story.lost for story in stories),
        longest_wait_s=simulation.patience.longest_s,
        bound_used=simulation.patience.bound_used,
        fairness=books.fairness.index(),
        contended_s=books.fairness.contended_s,
        satisfaction=books.fairness.satisfaction(),
        hours=_hours(simulation, stories),
    )


def _hours(simulation: Simulation, stories: Iterable[Story]) -> tuple[Hour, ...]:
    by_hour: dict[int, list[Story]] = defaultdict(list)
    for story in stories:
        by_hour[int(story.arrived // HOUR_S)].append(story)
    gpu_s = simulation.books.gpus_in_all * HOUR_S
    return tuple(
        Hour(
            hour=hour,
            arrived=len(by_hour[hour]),
            wait_p95_s=_waits(by_hour[hour]).p95_s,
            gpu_used=simulation.gpu_used.hours[hour] / gpu_s,
        )
        for hour in sorted(by_hour)
    )


def _grouped(
    stories: Iterable[Story], key: Callable[[Story], str], measure: Callable[[Iterable[Story]], Spread]
) -> dict[str, Spread]:
    groups: dict[str, list[Story]] = {}
    for story in stories:
        groups.setdefault(key(story), []).append(story)
    return {name: measure(group) for name, group in groups.items()}


def _by_priority(stories: Iterable[Story]) -> list[Story]:
    return sorted(stories, key=lambda story: -story.priority)


def _priority(story: Story) -> str:
    return story.priority.name.lower()


def _waits(stories: Iterable[Story]) -> Spread:
    return Spread.of(story.wait_s for story in stories)


def _turnarounds(stories: Iterable[Story]) -> Spread:
    return Spread.of(story.ended - story.arrived for story in stories if story.ended is not None)


def _over(amount: float, of: float) -> float:
    return amount / of if of else 0.0


def _rounded(facts: Any) -> Any:
    if isinstance(facts, float):
        return round(facts, DIGITS)
    if isinstance(facts, dict):
        return {str(key): _rounded(value) for key, value in facts.items()}
    if isinstance(facts, list | tuple):
        return [_rounded(value) for value in facts]
    return facts
