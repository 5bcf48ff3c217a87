"""How long what is over is kept."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from clara_flow.infra.pool.retention import Rules, early, overdue
from clara_flow.records.upkeep import IdlePayload
from clara_flow.settings import load_settings

NOW = datetime(2026, 1, 2, tzinfo=UTC)
RULES = Rules(completed_s=3600, failed_s=7200, logs_s=0, records_s=0, orphans_s=86400, least_s=600)


def payload(*, age_s: float, completed: bool = True, jobs: int = 1) -> IdlePayload:
    return IdlePayload(
        id=uuid.uuid4(),
        job_ids=tuple(uuid.uuid4() for _ in range(jobs)),
        completed=completed,
        idle_since=NOW - timedelta(seconds=age_s),
    )


def test_each_kind_has_its_time() -> None:
    stays = [payload(age_s=3599), payload(age_s=7199, completed=False), payload(age_s=86399, jobs=0)]
    goes = [payload(age_s=3600), payload(age_s=7200, completed=False), payload(age_s=86400, jobs=0)]
    assert overdue([*stays, *goes], RULES, NOW) == goes


def test_nought_is_for_ever_also_when_the_disk_is_full() -> None:
    rules = replace(RULES, completed_s=0)
    ancient = payload(age_s=10**9)
    assert overdue([ancient], rules, NOW) == []
    assert early([ancient], rules, NOW) == []
    assert rules.before(0, NOW) is None


def test_a_full_disk_takes_the_oldest_first_and_never_what_is_younger_than_the_least() -> None:
    old, older, young = payload(age_s=700), payload(age_s=800, completed=False), payload(age_s=599)
    assert early([old, young, older], RULES, NOW) == [older, old]


def test_the_least_beats_a_shorter_rule() -> None:
    rules = replace(RULES, completed_s=1, least_s=600)
    assert overdue([payload(age_s=599)], rules, NOW) == []
    assert rules.before(1, NOW) == NOW - timedelta(seconds=600)


@given(st.floats(0, 10**6), st.floats(0, 10**6), st.floats(0, 10**5), st.floats(0, 2 * 10**6), st.booleans())
def test_nothing_is_removed_before_its_time(
    completed_s: float, failed_s: float, least_s: float, age_s: float, completed: bool
) -> None:
    rules = replace(RULES, completed_s=completed_s, failed_s=failed_s, least_s=least_s)
    one = payload(age_s=age_s, completed=completed)
    kept_s = completed_s if completed else failed_s
    tolerance_s = 1e-5  # times are kept in microseconds
    if overdue([one], rules, NOW):
        assert kept_s > 0
        assert age_s >= max(kept_s, least_s) - tolerance_s
        assert early([one], rules, NOW) == [one]


def test_the_defaults_keep_what_completed_and_every_record() -> None:
    rules = Rules.of(load_settings())
    assert (rules.completed_s, rules.records_s) == (0, 0)
    assert rules.failed_s > rules.least_s > 0
