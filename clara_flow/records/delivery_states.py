"""The life of a delivery task, as a pure state machine: a standing and an event in, the new standing out.

No clock, no database, no I/O. The states and the first four events are those of Clara's results service (4.3 of the
specification of the command line and the results service); the others are ours. Succeeded and Failed are final for
agents: the same report again changes nothing, since clients repeat a report whose answer they lost; another one is
refused. Only people bring a failed task back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from clara_flow.errors import Conflict
from clara_flow.records.dicom_models import DeliveryState, ItemState


class DeliveryEvent(StrEnum):
    """What can happen to a delivery task."""

    HAND_OUT = "be handed out"
    SUCCEED = "succeed"  # its agent reported success
    POSTPONE = "be tried again later"  # its agent reported failure, and wants to try again (RetryLater)
    FAIL = "fail"  # its agent reported failure for good
    EXPIRE = "expire"  # its agent said nothing for the time of its lease
    GIVE_BACK = "be given back"  # its agent did not get to it: that is no failure
    RETRY = "be retried"  # somebody wants it tried again
    DISCARD = "be discarded"  # somebody gave it up


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a delivery task stands.

    retries     how often it failed and was put back.
    owed        it was handed out, that expired, and no report came since: one that comes late is of that attempt.
    """

    state: DeliveryState = DeliveryState.PENDING
    retries: int = 0
    owed: bool = False
    discarded: bool = False


Step = Callable[[Standing], Standing]

PENDING = DeliveryState.PENDING
IN_PROGRESS = DeliveryState.IN_PROGRESS
SUCCEEDED = DeliveryState.SUCCEEDED
FAILED = DeliveryState.FAILED


def _same(standing: Standing) -> Standing:
    return standing


def _to(state: DeliveryState) -> Step:
    return lambda standing: replace(standing, state=state, owed=False)


def _postponed(standing: Standing) -> Standing:
    return replace(standing, state=PENDING, owed=False, retries=standing.retries + 1)


def _postponed_late(standing: Standing) -> Standing:
    return _postponed(standing) if standing.owed else standing


def _expired(standing: Standing) -> Standing:
    return replace(standing, state=PENDING, owed=True)


def _anew(standing: Standing) -> Standing:
    del standing
    return Standing()


def _discarded(standing: Standing) -> Standing:
    return replace(standing, state=FAILED, owed=False, discarded=True)


# What is missing is refused.
TRANSITIONS: dict[tuple[DeliveryState, DeliveryEvent], Step] = {
    (PENDING, DeliveryEvent.HAND_OUT): _to(IN_PROGRESS),
    # Reports on a pending task come late, from whom a lease expired for; or they are repeated.
    (PENDING, DeliveryEvent.SUCCEED): _to(SUCCEEDED),
    (PENDING, DeliveryEvent.POSTPONE): _postponed_late,
    (PENDING, DeliveryEvent.FAIL): _to(FAILED),
    (PENDING, DeliveryEvent.EXPIRE): _same,
    (PENDING, DeliveryEvent.GIVE_BACK): _same,
    (PENDING, DeliveryEvent.RETRY): _same,  # without the wait that was put before it
    (PENDING, DeliveryEvent.DISCARD): _discarded,
    (IN_PROGRESS, DeliveryEvent.SUCCEED): _to(SUCCEEDED),
    (IN_PROGRESS, DeliveryEvent.POSTPONE): _postponed,
    (IN_PROGRESS, DeliveryEvent.FAIL): _to(FAILED),
    (IN_PROGRESS, DeliveryEvent.EXPIRE): _expired,
    (IN_PROGRESS, DeliveryEvent.GIVE_BACK): _to(PENDING),
    (IN_PROGRESS, DeliveryEvent.DISCARD): _discarded,
    (SUCCEEDED, DeliveryEvent.SUCCEED): _same,
    (FAILED, DeliveryEvent.FAIL): _same,
    (FAILED, DeliveryEvent.RETRY): _anew,
    (FAILED, DeliveryEvent.DISCARD): _discarded,
}


def advance(standing: Standing, event: DeliveryEvent, *, task: str = "") -> Standing:
    """The standing after `event`. Raises Conflict where there is no such step; `task` names it."""
    step = TRANSITIONS.get((standing.state, event))
    if step is None:
        state = "Failed (discarded)" if standing.discarded else str(standing.state)
        raise Conflict(f"delivery {task} is {state}: it cannot {event}", state=standing.state, event=event)
    return step(standing)


SENT = frozenset({ItemState.SENT, ItemState.COMMITTED})


def advance_item(now: ItemState, told: ItemState) -> ItemState:
    """The state of a file of a delivery, of which its agent tells `told`.

    What the peer has committed itself to stays so. What it had taken can be failed again: it would not commit itself.
    """
    return now if now is ItemState.COMMITTED else told


def retried_item(now: ItemState) -> ItemState:
    """The state of a file once somebody wants its delivery retried: what was sent is not sent again."""
    return now if now in SENT else ItemState.PENDING
