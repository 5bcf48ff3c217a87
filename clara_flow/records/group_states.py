"""The life of a group of instances, as a pure state machine: a standing and an event in, new standing and effects out.

No clock, no database, no I/O. Whether an open group is complete is decided elsewhere, by
`services.dicom.grouping.completeness`; the machine is told with COMPLETED then. The caller stores the standing first,
then performs the effects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from clara_flow.errors import Conflict, InvalidTransition
from clara_flow.records.dicom_models import GroupState


class GroupEvent(StrEnum):
    """What can happen to a group."""

    INSTANCE = "take an instance"
    RELEASED = "see an association released"
    ABORTED = "see an association aborted"  # or lost
    TICK = "be looked at"
    COMPLETED = "be complete"
    LATE = "see a late instance"  # one of its key came when it took none any more
    SUBMITTED = "be submitted"
    FAILED = "fail"  # one of its jobs could not be made
    RETRY = "be retried"  # somebody wants its jobs made now
    DISCARD = "be discarded"  # somebody gave it up, or a rule did


class GroupEffect(StrEnum):
    """What has to be done once the new standing is stored."""

    LOOK = "see whether it is complete"
    AMEND = "do with the late instance what the AE title's rule says"
    SUBMIT = "make its jobs"
    REMOVE_FILES = "remove its files from the spool"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a group stands; attempts: how often making its jobs failed since somebody last asked for it."""

    state: GroupState = GroupState.OPEN
    attempts: int = 0


Outcome = tuple[Standing, frozenset[GroupEffect]]
Step = Callable[[Standing, int], Outcome]

OPEN = GroupState.OPEN
COMPLETE = GroupState.COMPLETE
SUBMITTED = GroupState.SUBMITTED
FAILED = GroupState.FAILED
DISCARDED = GroupState.DISCARDED


def _same(*effects: GroupEffect) -> Step:
    return lambda standing, retries: (standing, frozenset(effects))


def _to(state: GroupState, *effects: GroupEffect) -> Step:
    return lambda standing, retries: (replace(standing, state=state), frozenset(effects))


def _anew(standing: Standing, retries: int) -> Outcome:
    del standing, retries
    return Standing(COMPLETE), frozenset({GroupEffect.SUBMIT})


def _failed(standing: Standing, retries: int) -> Outcome:
    attempts = standing.attempts + 1
    if attempts > retries:
        return Standing(FAILED, attempts), frozenset()
    return Standing(COMPLETE, attempts), frozenset({GroupEffect.SUBMIT})


E = GroupEvent
_ENDED = {E.RELEASED: _same(), E.ABORTED: _same(), E.TICK: _same()}  # nothing of that matters any more

# What is missing is refused: to people with Conflict, to programs with InvalidTransition.
TRANSITIONS: dict[tuple[GroupState, GroupEvent], Step] = {
    (OPEN, E.INSTANCE): _same(GroupEffect.LOOK),
    (OPEN, E.RELEASED): _same(GroupEffect.LOOK),
    (OPEN, E.ABORTED): _same(GroupEffect.LOOK),
    (OPEN, E.TICK): _same(GroupEffect.LOOK),
    (OPEN, E.COMPLETED): _to(COMPLETE, GroupEffect.SUBMIT),
    (OPEN, E.RETRY): _anew,  # do not wait for more
    (OPEN, E.DISCARD): _to(DISCARDED, GroupEffect.REMOVE_FILES),
    **{(COMPLETE, event): step for event, step in _ENDED.items()},
    (COMPLETE, E.TICK): _same(GroupEffect.SUBMIT),
    (COMPLETE, E.COMPLETED): _same(),
    (COMPLETE, E.LATE): _same(GroupEffect.AMEND),
    (COMPLETE, E.SUBMITTED): _to(SUBMITTED, GroupEffect.REMOVE_FILES),
    (COMPLETE, E.FAILED): _failed,
    (COMPLETE, E.RETRY): _anew,
    (COMPLETE, E.DISCARD): _to(DISCARDED, GroupEffect.REMOVE_FILES),
    **{(SUBMITTED, event): step for event, step in _ENDED.items()},
    (SUBMITTED, E.LATE): _same(GroupEffect.AMEND),
    (SUBMITTED, E.SUBMITTED): _same(),
    **{(FAILED, event): step for event, step in _ENDED.items()},
    (FAILED, E.LATE): _same(GroupEffect.AMEND),
    (FAILED, E.FAILED): _same(),
    (FAILED, E.RETRY): _anew,
    (FAILED, E.DISCARD): _to(DISCARDED, GroupEffect.REMOVE_FILES),
    **{(DISCARDED, event): step for event, step in _ENDED.items()},
    (DISCARDED, E.INSTANCE): _same(GroupEffect.REMOVE_FILES),  # late ones, where the AE title ignores them
    (DISCARDED, E.DISCARD): _same(),
}
BY_PEOPLE = frozenset({E.RETRY, E.DISCARD})


def advance(standing: Standing, event: GroupEvent, *, retries: int = 0, group: str = "") -> Outcome:
    """The standing after `event`, and what has to be done.

    retries     how often making its jobs is tried again. group: its id, for messages.

    Raises Conflict for what somebody asked for and cannot be, InvalidTransition for every other step that there is not.
    """
    step = TRANSITIONS.get((standing.state, event))
    if step is not None:
        return step(standing, retries)
    message = f"group {group} is {standing.state}: it cannot {event}"
    if event in BY_PEOPLE:
        raise Conflict(message, state=standing.state)
    raise InvalidTransition(message, state=standing.state, event=event)
