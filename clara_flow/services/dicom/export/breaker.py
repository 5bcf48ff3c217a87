"""A destination's circuit breaker, as a pure state machine: no clock, no lock, no I/O.

CLOSED lets everything through. After `Tuning.threshold` failures one after another it is OPEN: nothing is tried until
`until`. Then one who asks gets the TRIAL and it is HALF_OPEN, where everybody else waits; the trial's end closes it, or
opens it for twice as long.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

LONGEST_S = 300.0
JITTER = 0.2  # of a pause, to either side: destinations of one host are not tried in step


class BreakerState(StrEnum):
    """States of a circuit breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Permit(StrEnum):
    """GO on; you are the TRIAL: probe first, and say how it went; WAIT."""

    GO = "go"
    TRIAL = "trial"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Tuning:
    """threshold    failures one after another that open it. first_s: for how long, the first time."""

    threshold: int
    first_s: float


@dataclass(frozen=True, slots=True)
class Breaker:
    """failures     one after another, while closed.
    openings        one after another, without a success between.
    until           when it may be tried again (the caller's clock, seconds).
    """

    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    openings: int = 0
    until: float = 0.0


def ask(breaker: Breaker, now: float) -> tuple[Breaker, Permit]:
    """May something be tried now?"""
    if breaker.state is BreakerState.CLOSED:
        return breaker, Permit.GO
    if breaker.state is BreakerState.OPEN and now >= breaker.until:
        return replace(breaker, state=BreakerState.HALF_OPEN), Permit.TRIAL
    return breaker, Permit.WAIT


def succeeded(breaker: Breaker) -> Breaker:
    """The destination answered as it should, whoever had asked: it works."""
    del breaker
    return Breaker()


def failed(breaker: Breaker, now: float, tuning: Tuning, draw: float) -> Breaker:
    """The destination failed as a whole: unreachable, rejected, aborted, silent.

    draw    evenly in [0, 1): the jitter.

    Who had begun before it opened tells it nothing new.
    """
    if breaker.state is BreakerState.OPEN:
        return breaker
    failures = breaker.failures + 1
    if breaker.state is BreakerState.CLOSED and failures < tuning.threshold:
        return replace(breaker, failures=failures)
    pause_s = min(tuning.first_s * 2 ** min(breaker.openings, 32), LONGEST_S) * (1 + JITTER * (2 * draw - 1))
    return Breaker(BreakerState.OPEN, failures, breaker.openings + 1, now + pause_s)


def untried(breaker: Breaker, now: float) -> Breaker:
    """Who had the trial found nothing to try: the next one may."""
    if breaker.state is not BreakerState.HALF_OPEN:
        return breaker
    return replace(breaker, state=BreakerState.OPEN, until=now)
