"""What answers mean, and what becomes of a delivery."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_flow.records.delivery_states import SENT
from clara_flow.records.dicom_models import ItemState
from clara_flow.services.dicom.export import refusals, retry_policy
from clara_flow.services.dicom.export.retry_policy import Course, Verdict, pause_s, settle, verdict_of

OK = Verdict(ItemState.SENT)
BUSY = verdict_of(0xA700)
BAD = verdict_of(0xA900)


@pytest.mark.parametrize("module", [retry_policy, refusals])
def test_examples(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (0x0000, ItemState.SENT),
        (0xB000, ItemState.SENT),
        (0xB006, ItemState.SENT),
        (0xB007, ItemState.SENT),
        (0xB123, ItemState.SENT),
        (0x0111, ItemState.SENT),
        (0xA700, ItemState.FAILED),
        (0xA7FF, ItemState.FAILED),
        (0x0110, ItemState.FAILED),
        (0x0213, ItemState.FAILED),
        (0x0124, ItemState.FAILED),
        (0x4242, ItemState.FAILED),
        (0x0B00, ItemState.FAILED),  # no warning: those begin with B
        (0x0C00, ItemState.FAILED),
        (0xA900, ItemState.POISON),
        (0xA9FF, ItemState.POISON),
        (0xC000, ItemState.POISON),
        (0xCFFF, ItemState.POISON),
        (0x0122, ItemState.POISON),
    ],
)
def test_statuses(status: int, state: ItemState) -> None:
    assert verdict_of(status).state is state


@given(st.integers(0, 0xFFFF))
def test_every_status_has_a_verdict_that_names_it(status: int) -> None:
    verdict = verdict_of(status)
    assert verdict.state is not ItemState.PENDING
    assert status == 0 or verdict.reason.startswith(f"0x{status:04X} ")


def test_part_of_it_is_no_success() -> None:
    settlement = settle([OK, OK, BUSY], retries=0, maximum_retries=3)
    assert settlement.course is Course.LATER
    assert settlement.message == "2 of 3 files sent; 1 failed (0xA700 out of resources)"


def test_what_can_never_work_fails_at_once() -> None:
    settlement = settle([OK, BAD], retries=0, maximum_retries=3)
    assert settlement.course is Course.FAIL
    assert "1 set aside (0xA900" in settlement.message


def test_the_last_retry_says_how_often_it_was_tried() -> None:
    settlement = settle([BUSY], retries=3, maximum_retries=3, trouble="the destination cannot be reached")
    assert settlement.course is Course.FAIL
    assert settlement.message.startswith("the destination cannot be reached; 0 of 1 files sent")
    assert settlement.message.endswith("tried 4 times")


def test_commitment_is_waited_for() -> None:
    assert settle([OK], retries=0, maximum_retries=1, commitment=True).waits_for_report
    assert (
        settle([Verdict(ItemState.COMMITTED)], retries=0, maximum_retries=1, commitment=True).course is Course.SUCCEED
    )
    assert settle([OK], retries=1, maximum_retries=1, commitment=True).course is Course.FAIL


VERDICTS = st.lists(st.builds(Verdict, st.sampled_from(list(ItemState)), st.text(max_size=5)), min_size=1)


@given(VERDICTS, st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_nothing_lost_is_ever_a_success(verdicts: list[Verdict], retries: int, maximum: int, commitment: bool) -> None:
    settlement = settle(verdicts, retries=retries, maximum_retries=maximum, commitment=commitment)
    wanted = {ItemState.COMMITTED} if commitment else SENT
    assert (settlement.course is Course.SUCCEED) == all(verdict.state in wanted for verdict in verdicts)
    if settlement.course is Course.LATER:
        assert retries < maximum
        assert any(verdict.state not in SENT | {ItemState.POISON} for verdict in verdicts) or commitment


def test_pauses_double() -> None:
    assert [pause_s(n, 5, 0.5) for n in range(4)] == [5, 10, 20, 40]
    assert pause_s(100, 5, 0.5) == retry_policy.LONGEST_S
    assert pause_s(0, 10, 0.0) == pytest.approx(8)
