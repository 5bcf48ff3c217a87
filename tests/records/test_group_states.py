"""The group's state machine: every pair of state and event, and random walks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_flow.errors import Conflict, InvalidTransition
from clara_flow.records.dicom_models import GroupState
from clara_flow.records.group_states import BY_PEOPLE, GroupEffect, GroupEvent, Standing, advance

O, C, S, F, D = GroupState  # noqa: E741
E = GroupEvent
# Columns: INSTANCE RELEASED ABORTED TICK COMPLETED LATE SUBMITTED FAILED RETRY DISCARD; "-" is refused.
TABLE = {
    O: "O O O O C - - - C D",
    C: "- C C C C C S C C D",
    S: "- S S S - S S - - -",
    F: "- F F F - F - F C D",
    D: "D D D D - - - - - D",
}
LETTERS = {"O": O, "C": C, "S": S, "F": F, "D": D}
PAIRS = [
    (state, event, letter)
    for state, row in TABLE.items()
    for event, letter in zip(GroupEvent, row.split(), strict=True)
]  # fmt: skip


@pytest.mark.parametrize(("state", "event", "letter"), PAIRS)
def test_every_pair(state: GroupState, event: GroupEvent, letter: str) -> None:
    if letter == "-":
        with pytest.raises(
            Conflict if event in BY_PEOPLE else InvalidTransition, match=f"is {state}: it cannot {event}"
        ):
            advance(Standing(state), event, retries=1, group="g")
    else:
        after, _ = advance(Standing(state), event, retries=1, group="g")
        assert after.state is LETTERS[letter]


def test_the_table_is_whole() -> None:
    assert len(PAIRS) == len(GroupState) * len(GroupEvent)


@given(retries=st.integers(0, 5))
def test_it_fails_after_its_retries(retries: int) -> None:
    standing = Standing(GroupState.COMPLETE)
    for attempt in range(retries):
        standing, effects = advance(standing, E.FAILED, retries=retries)
        assert (standing, effects) == (Standing(GroupState.COMPLETE, attempt + 1), {GroupEffect.SUBMIT})
    standing, effects = advance(standing, E.FAILED, retries=retries)
    assert (standing.state, effects) == (GroupState.FAILED, frozenset())
    assert advance(standing, E.RETRY)[0] == Standing(GroupState.COMPLETE)


@given(events=st.lists(st.sampled_from(GroupEvent), max_size=40), retries=st.integers(0, 3))
def test_random_walks(events: list[GroupEvent], retries: int) -> None:
    """What is over stays over, what was closed takes no instance, and files go only when nobody needs them."""
    standing, was_closed = Standing(), False
    for event in events:
        before = standing
        try:
            standing, effects = advance(standing, event, retries=retries)
        except (Conflict, InvalidTransition):
            assert standing == before
            continue
        if before.state in {GroupState.SUBMITTED, GroupState.DISCARDED}:
            assert standing == before
        if event is E.INSTANCE:
            assert not was_closed or standing.state is GroupState.DISCARDED
        if GroupEffect.REMOVE_FILES in effects:
            assert standing.state in {GroupState.SUBMITTED, GroupState.DISCARDED}
        if GroupEffect.AMEND in effects:
            assert was_closed
        was_closed = was_closed or standing.state is not GroupState.OPEN
        assert standing.attempts <= retries + 1
