"""When a group is complete: silence, releases, and what attributes and earlier groups let expect."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_flow.records.dicom_group_queries import GroupFacts, SeriesFacts
from clara_flow.records.dicom_lines import SERIES_TAG, STUDY_TAG
from clara_flow.records.dicom_models import StepStatus
from clara_flow.records.dicom_steps import StepFacts
from clara_flow.services.dicom.grouping.completeness import (
    HELD_OPEN_S,
    Expected,
    Performed,
    Verdict,
    from_attributes,
    from_history,
    from_steps,
    verdict,
)
from clara_flow.services.dicom.grouping.watch import COME_BACK_S, Watch

TEN = Expected(10, "somebody")


def facts(*series: SeriesFacts, **more: Any) -> GroupFacts:
    count = sum(one.instances for one in series)
    return GroupFacts(uuid.uuid4(), "BRAIN", "MR", "1.2", instances=more.pop("instances", count), series=series, **more)


def series(instances: int, description: str = "T1", **more: Any) -> SeriesFacts:
    return SeriesFacts("MR", description, instances, **more)


def test_silence_makes_a_group_complete() -> None:
    assert not verdict(facts(instances=3), idle_s=1.9, timeout_s=2).is_complete
    assert verdict(facts(instances=3), idle_s=1.5, timeout_s=2).wait_s == pytest.approx(0.5)
    assert verdict(facts(instances=3), idle_s=2, timeout_s=2).rule == "nothing came for 2 s"


def test_a_sender_that_pauses_has_not_finished() -> None:
    held = facts(instances=3, open_associations=1)
    assert verdict(held, idle_s=2, timeout_s=0).wait_s == HELD_OPEN_S - 2
    assert verdict(held, idle_s=HELD_OPEN_S, timeout_s=0).is_complete
    assert not verdict(held, idle_s=HELD_OPEN_S, timeout_s=60).is_complete


def test_all_that_was_expected_is_complete_at_once_when_its_associations_ended() -> None:
    whole = facts(instances=10)
    assert verdict(whole, idle_s=0, timeout_s=60, expected=TEN).rule == "all 10 expected instances came (somebody)"
    assert not verdict(replace(whole, open_associations=1), idle_s=0, timeout_s=60, expected=TEN).is_complete
    assert not verdict(facts(instances=9), idle_s=0, timeout_s=60, expected=TEN).is_complete


def test_silence_counts_also_when_more_was_expected() -> None:
    found = verdict(facts(instances=9), idle_s=60, timeout_s=60, expected=TEN)
    assert found.rule == "nothing came for 60 s, 9 of 10 expected (somebody)"


def test_what_was_not_released_waits() -> None:
    aborted = verdict(facts(instances=10, unreleased=4), idle_s=999, timeout_s=1, expected=TEN)
    assert (aborted.is_complete, aborted.wait_s) == (False, None)
    assert "4 instances of an aborted association to be sent again" in aborted.waits
    still_open = verdict(facts(instances=10, unreleased=4, open_associations=1), idle_s=999, timeout_s=1)
    assert "to be released" in still_open.waits


@given(
    instances=st.integers(1, 20), opened=st.integers(0, 2), unreleased=st.integers(0, 3),
    idle_s=st.floats(0, 20), timeout_s=st.floats(0, 10), expected=st.none() | st.integers(1, 20),
    performed=st.sampled_from([None, Performed(waits="more"), Performed(whole=3)]), mpps_timeout_s=st.floats(0, 15),
)  # fmt: skip
def test_a_group_never_waits_for_nothing(
    instances: int,
    opened: int,
    unreleased: int,
    idle_s: float,
    timeout_s: float,
    expected: int | None,
    performed: Performed | None,
    mpps_timeout_s: float,
) -> None:
    """It is complete, or a time is known at which it is, or an event is that it waits for."""
    one = facts(instances=instances, open_associations=opened, unreleased=unreleased)
    told = Expected(expected, "x") if expected else None

    def after(silence_s: float) -> Verdict:
        return verdict(
            one,
            idle_s=silence_s,
            timeout_s=timeout_s,
            expected=told,
            performed=performed,
            mpps_timeout_s=mpps_timeout_s,
        )

    found = after(idle_s)
    if found.is_complete:
        assert not unreleased
    elif not unreleased:
        assert found.wait_s is not None
        assert found.wait_s > 0
        assert after(idle_s + found.wait_s + 1e-6).is_complete


@pytest.mark.parametrize(
    ("one", "tag", "expected"),
    [
        (facts(series(3), study_instances=7), STUDY_TAG, 7),
        (facts(series(3), study_instances=7), "00100020", None),  # a patient has other studies
        (facts(series(3, related=3), series(2, related=4)), STUDY_TAG, None),  # other series may come
        (facts(series(3, related=3), series(2, related=4), study_series=2), STUDY_TAG, 7),
        (facts(series(3, related=3), series(2, acquisition=4), study_series=2), STUDY_TAG, 7),
        (facts(series(3, related=3), series(2), study_series=2), STUDY_TAG, None),
        (facts(series(3, related=3), study_series=2), STUDY_TAG, None),
        (facts(series(3, related=5)), SERIES_TAG, 5),
        (facts(series(3, acquisition=5)), SERIES_TAG, 5),
        (facts(series(3)), SERIES_TAG, None),
    ],
)
def test_attributes(one: GroupFacts, tag: str, expected: int | None) -> None:
    found = from_attributes(one, tag)
    assert (found.instances if found else None) == expected


T1, T2 = ("MR", "T1"), ("MR", "T2")


@pytest.mark.parametrize(
    ("one", "earlier", "expected"),
    [
        (facts(series(3)), [{T1: 3}] * 2, None),  # too few
        (facts(series(3)), [{T1: 3}] * 3, 3),
        (facts(series(3)), [{T1: 3}] * 3 + [{T1: 3, T2: 20}], 23),  # it could become that one
        (facts(series(3)), [{T1: 2}] * 9, None),  # it is more than any of them
        (facts(series(3), series(2, "T2")), [{T1: 3, T2: 2}] * 3, 5),
        (facts(series(1), series(2)), [{T1: 3}] * 3, 3),  # two series of one description
        (facts(series(3, "")), [{("MR", ""): 3}] * 3, None),
        (facts(), [{T1: 3}] * 3, None),
    ],
)
def test_history(one: GroupFacts, earlier: list[Any], expected: int | None) -> None:
    found = from_history(one, earlier)
    assert (found.instances if found else None) == expected


IN_PROGRESS, COMPLETED, DISCONTINUED = StepStatus
GOES_ON = Performed(waits="the end of a procedure step")


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], None),
        ([StepFacts(IN_PROGRESS)], GOES_ON),
        ([StepFacts(COMPLETED, 3, 3, 0)], Performed(whole=3)),
        ([StepFacts(COMPLETED, 3, 3, 0), StepFacts(IN_PROGRESS)], GOES_ON),
        ([StepFacts(COMPLETED, 3, 3, 0), StepFacts(COMPLETED, 2, 2, 0)], Performed(whole=5)),
        (
            [StepFacts(COMPLETED, 3, 3, 0), StepFacts(COMPLETED, 2, 0, 2)],
            Performed(waits="2 of 5 instances that its modality made"),
        ),
        ([StepFacts(COMPLETED, 3, 2, 0)], None),  # the third is in an earlier group
        ([StepFacts(COMPLETED, 3, 0, 0)], None),  # all of it is
        ([StepFacts(COMPLETED, 3, 0, 0), StepFacts(COMPLETED, 2, 2, 0)], Performed(whole=2)),
        ([StepFacts(COMPLETED)], None),  # it made nothing
        ([StepFacts(COMPLETED), StepFacts(COMPLETED, 2, 2, 0)], Performed(whole=2)),
        ([StepFacts(DISCONTINUED, 3, 2, 1)], None),
        ([StepFacts(DISCONTINUED)], None),
        ([StepFacts(DISCONTINUED, 3, 2, 1), StepFacts(COMPLETED, 2, 2, 0)], None),
        ([StepFacts(DISCONTINUED, 3, 0, 0), StepFacts(COMPLETED, 2, 2, 0)], Performed(whole=2)),
        ([StepFacts(DISCONTINUED), StepFacts(IN_PROGRESS)], GOES_ON),
    ],
)
def test_steps(steps: list[StepFacts], expected: Performed | None) -> None:
    assert from_steps(steps) == expected


def test_what_the_modality_says_counts_before_all_others() -> None:
    whole, eleven = facts(instances=11), Expected(99, "somebody")
    found = verdict(whole, idle_s=0, timeout_s=60, expected=eleven, performed=Performed(whole=10))
    assert found.rule == "all 10 expected instances came (its modality, by MPPS)"
    held = verdict(whole, idle_s=999, timeout_s=1, expected=TEN, performed=GOES_ON, mpps_timeout_s=1000)
    assert (held.is_complete, held.wait_s) == (False, 1)
    assert verdict(whole, idle_s=1000, timeout_s=1, performed=GOES_ON, mpps_timeout_s=1000).is_complete
    sending = replace(whole, open_associations=1)
    assert not verdict(sending, idle_s=0, timeout_s=1, performed=Performed(whole=10)).is_complete
    assert verdict(sending, idle_s=HELD_OPEN_S, timeout_s=1, performed=Performed(whole=10)).is_complete
    assert not verdict(replace(whole, unreleased=1), idle_s=9, timeout_s=1, performed=Performed(whole=10)).is_complete


def test_two_steps_that_made_the_same_instance() -> None:
    found = verdict(facts(instances=3), idle_s=0, timeout_s=60, performed=Performed(whole=4))
    assert found.rule == "all 3 expected instances came (its modality, by MPPS)"


def test_clocks_that_are_set_change_nothing() -> None:
    now = 100.0
    watch, group = Watch(lambda: now), uuid.uuid4()
    watch.arrived(group, 5)
    assert watch.due() == set()
    now += 5
    assert (watch.due(), watch.idle_s(group)) == ({group}, 5)
    # Of an earlier process; the last two of each: somebody set the database's clock meanwhile.
    for timeout_s, left_s, waits_s in (
        (60, 30, 30),
        (60, -3600, COME_BACK_S),
        (60, 3600, 60),
        (1, -3600, 1),
        (0, 9, 0),
    ):
        watch.resume(group, timeout_s, left_s)
        assert (group in watch.due()) == (waits_s == 0)
        assert watch.idle_s(group) == timeout_s - waits_s
    watch.look_in(group, None)
    now += 10_000
    assert watch.due() == set()
    watch.drop(group)
    assert len(watch) == 0
