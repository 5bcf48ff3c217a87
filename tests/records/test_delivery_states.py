"""The life of a delivery task: every pair of a state and an event, and walks of any length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_flow.errors import Conflict
from clara_flow.records.delivery_states import DeliveryEvent, Standing, advance, advance_item, retried_item
from clara_flow.records.dicom_models import DeliveryState, ItemState

P, I, S, F = DeliveryState  # noqa: E741
E = DeliveryEvent
FINAL = {S, F}

# (state, event) -> state afterwards, and by how much `retries` grows. What is missing is refused.
LEGAL = {
    (P, E.HAND_OUT): (I, 0), (P, E.SUCCEED): (S, 0), (P, E.POSTPONE): (P, 0), (P, E.FAIL): (F, 0),
    (P, E.EXPIRE): (P, 0), (P, E.GIVE_BACK): (P, 0), (P, E.RETRY): (P, 0), (P, E.DISCARD): (F, 0),
    (I, E.SUCCEED): (S, 0), (I, E.POSTPONE): (P, 1), (I, E.FAIL): (F, 0), (I, E.EXPIRE): (P, 0),
    (I, E.GIVE_BACK): (P, 0), (I, E.DISCARD): (F, 0),
    (S, E.SUCCEED): (S, 0),
    (F, E.FAIL): (F, 0), (F, E.RETRY): (P, -2), (F, E.DISCARD): (F, 0),
}  # fmt: skip


@pytest.mark.parametrize("event", E)
@pytest.mark.parametrize("state", DeliveryState)
def test_every_pair(state: DeliveryState, event: DeliveryEvent) -> None:
    before = Standing(state, retries=2)
    if (state, event) not in LEGAL:
        with pytest.raises(Conflict, match=f"delivery 7 is {state}: it cannot {event}"):
            advance(before, event, task="7")
        return
    after = advance(before, event)
    expected, more = LEGAL[state, event]
    assert (after.state, after.retries) == (expected, 2 + more)
    assert after.owed is (event is E.EXPIRE and state is I)
    assert after.discarded is (event is E.DISCARD)


def test_a_report_that_comes_after_the_lease_counts_once() -> None:
    late = advance(Standing(I, retries=1), E.EXPIRE)
    once = advance(late, E.POSTPONE)
    assert once == Standing(P, retries=2)
    assert advance(once, E.POSTPONE) == once


def test_what_was_discarded_says_so_and_comes_back_whole() -> None:
    discarded = advance(Standing(I, retries=3), E.DISCARD)
    with pytest.raises(Conflict, match="discarded"):
        advance(discarded, E.SUCCEED)
    assert advance(discarded, E.RETRY) == Standing()


@given(st.lists(st.sampled_from(E)))
def test_agents_never_change_an_end_and_repeats_change_nothing(events: list[DeliveryEvent]) -> None:
    standing = Standing()
    for event in events:
        try:
            after = advance(standing, event)
        except Conflict:
            continue
        if standing.state in FINAL and event not in {E.RETRY, E.DISCARD}:
            assert after == standing
        assert after.retries in {0, standing.retries, standing.retries + 1}
        assert not after.owed or after.state is P
        assert not after.discarded or after.state is F
        if event in {E.SUCCEED, E.POSTPONE, E.FAIL}:
            assert advance(after, event) == after
        standing = after


@pytest.mark.parametrize("told", ItemState)
@pytest.mark.parametrize("now", ItemState)
def test_files(now: ItemState, told: ItemState) -> None:
    after = advance_item(now, told)
    assert after is (ItemState.COMMITTED if now is ItemState.COMMITTED else told)
    sent = {ItemState.SENT, ItemState.COMMITTED}
    assert retried_item(now) is (now if now in sent else ItemState.PENDING)
