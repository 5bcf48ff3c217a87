"""The circuit breaker: whatever happens in whatever order, its promises hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clara_flow.services.dicom.export import breaker as breakers
from clara_flow.services.dicom.export.breaker import Breaker, BreakerState, Permit, Tuning

TUNING = Tuning(threshold=3, first_s=2.0)


def opened(openings: int = 1) -> Breaker:
    """A breaker that has just opened for the `openings`-th time, at 0."""
    breaker = Breaker()
    for _ in range(TUNING.threshold):
        breaker = breakers.failed(breaker, 0.0, TUNING, 0.5)
    for _ in range(openings - 1):
        breaker, _ = breakers.ask(breaker, breaker.until)
        breaker = breakers.failed(breaker, 0.0, TUNING, 0.5)
    return breaker


def test_it_opens_at_the_threshold_and_not_before() -> None:
    breaker = Breaker()
    for count in range(1, TUNING.threshold):
        breaker = breakers.failed(breaker, 0.0, TUNING, 0.5)
        assert (breaker.state, breaker.failures) == (BreakerState.CLOSED, count)
        assert breakers.ask(breaker, 0.0)[1] is Permit.GO
    assert breakers.failed(breaker, 0.0, TUNING, 0.5).state is BreakerState.OPEN


def test_a_success_between_failures_counts_anew() -> None:
    breaker = breakers.failed(Breaker(), 0.0, TUNING, 0.5)
    assert breakers.succeeded(breaker) == Breaker()


def test_open_lets_nothing_through_until_its_time_and_then_one() -> None:
    breaker = opened()
    assert breakers.ask(breaker, breaker.until - 0.001)[1] is Permit.WAIT
    half_open, permit = breakers.ask(breaker, breaker.until)
    assert (half_open.state, permit) == (BreakerState.HALF_OPEN, Permit.TRIAL)
    assert breakers.ask(half_open, breaker.until + 1000)[1] is Permit.WAIT


def test_a_trial_without_anything_to_try_leaves_it_to_the_next() -> None:
    half_open, _ = breakers.ask(opened(), 100.0)
    assert breakers.ask(breakers.untried(half_open, 100.0), 100.0)[1] is Permit.TRIAL


def test_pauses_double_up_to_the_longest() -> None:
    assert [opened(n).until for n in (1, 2, 3, 4)] == [2.0, 4.0, 8.0, 16.0]
    assert opened(40).until == breakers.LONGEST_S


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "succeeded", "failed", "untried"]),
        st.floats(0, 400, allow_nan=False),
        st.floats(0, 1, exclude_max=True),
    )
)


@given(EVENTS)
def test_its_promises_hold_in_every_story(story: list[tuple[str, float, float]]) -> None:
    breaker, now, trials = Breaker(), 0.0, 0
    for event, passed_s, draw in story:
        before, now = breaker, now + passed_s
        if event == "ask":
            breaker, permit = breakers.ask(breaker, now)
            assert (permit is Permit.GO) == (before.state is BreakerState.CLOSED)
            trials += permit is Permit.TRIAL
            assert permit is not Permit.TRIAL or before.until <= now
        elif event == "succeeded":
            breaker, trials = breakers.succeeded(breaker), 0
        elif event == "failed":
            breaker = breakers.failed(breaker, now, TUNING, draw)
            trials = 0 if breaker.state is not BreakerState.HALF_OPEN else trials
        else:
            breaker = breakers.untried(breaker, now)
            trials = 0 if breaker.state is not BreakerState.HALF_OPEN else trials
        assert trials <= 1, "two trials at once"
        assert (trials == 1) == (breaker.state is BreakerState.HALF_OPEN)
        assert breaker.state is not BreakerState.CLOSED or breaker.failures < TUNING.threshold
        assert breaker.until - now <= breakers.LONGEST_S * (1 + breakers.JITTER)
