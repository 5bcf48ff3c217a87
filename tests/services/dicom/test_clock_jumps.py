"""Somebody sets the database's clock by two hours: nothing waits for two hours, and no half of a study becomes a job.

Bounds: what is under way goes by clocks that nobody sets; what waits in the tables waits once more for as long as it
should have at the most; what was to come later comes at once. Fences keep all of it right.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from postgres_fixture import empty_database_url  # noqa: F401
from records.teller import Teller
from services.dicom.study_house import Study
from set_clock import make_settable, set_clock
from tiny.pipelines import scripted, write_definition
from waiting import eventually

from clara_flow.errors import StaleOwner
from clara_flow.records import database, deliveries, inference
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records import dicom_groups as groups
from clara_flow.records.dicom_ingest import GroupingRule, Late
from clara_flow.records.dicom_models import Delivery, DeliveryState, GroupState
from clara_flow.services.dicom.grouping.watch import COME_BACK_S

FORWARD, BACK = timedelta(hours=2), -timedelta(hours=2)
JUMPS = pytest.mark.parametrize("jump", [FORWARD, BACK])


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[sa.Engine]:  # noqa: F811
    database.migrate(empty_database_url)
    engine = database.connect(empty_database_url)
    make_settable(engine)
    set_clock(engine, FORWARD)
    with engine.connect() as connection:
        ahead = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one() - datetime.now(UTC)
    assert abs(ahead - FORWARD) < timedelta(minutes=1)
    set_clock(engine, timedelta())
    yield engine
    engine.dispose()


@pytest.fixture
def study(engine: sa.Engine, tmp_path: Path) -> Study:
    return Study(engine, tmp_path)


@JUMPS
def test_an_open_group_goes_by_no_clock_that_is_set(study: Study, jump: timedelta) -> None:
    study.add_aetitle(timeout="6")
    with study.grouping():
        began = time.monotonic()
        study.send_and_wait()
        set_clock(study.engine, jump)
        study.send_and_wait()
        last = time.monotonic()
        assert study.states() == [GroupState.OPEN]
        eventually(study.is_done, within_s=60)
        assert time.monotonic() - last >= 5.5, "half a study would have been submitted"
        assert time.monotonic() - began < 60
    assert queries.list_groups(study.engine)[0].instances == 2


@JUMPS
def test_a_group_of_an_earlier_process_waits_for_no_longer_than_it_should_and_for_those_who_come_back(
    study: Study, jump: timedelta
) -> None:
    study.add_aetitle(timeout="10")
    with study.grouping():
        study.send_and_wait()
    set_clock(study.engine, jump)
    began = time.monotonic()
    with study.grouping():
        study.send_and_wait()  # its sender was cut off, and came back
        eventually(study.is_done, within_s=60)
        assert time.monotonic() - began >= COME_BACK_S
    assert queries.list_groups(study.engine)[0].instances == 2


def test_a_submission_that_waits_for_its_next_try_is_not_held_by_a_clock_that_was_set_back(
    study: Study, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.yaml"
    study.add_aetitle(missing, timeout="0", jobRetryDelay="60000")
    with study.grouping():
        study.send_and_wait()
        eventually(lambda: any(group.not_before for group in queries.list_groups(study.engine)), within_s=30)
        write_definition(missing, scripted("a"))
        set_clock(study.engine, BACK)
        eventually(study.is_done, within_s=50)


# Deliveries


def register(engine: sa.Engine) -> Delivery:
    (task,) = deliveries.register(engine, job_id="j", agent="Archive", uris=["input/a"])
    return task


@JUMPS
def test_a_delivery_does_not_wait_for_hours_for_its_next_try(engine: sa.Engine, jump: timedelta) -> None:
    task = register(engine)
    (taken,) = deliveries.take(engine, "Archive", 1, 60)
    deliveries.fail(engine, task.id, True, lease=taken.lease, delay_s=60)
    assert deliveries.take(engine, "Archive", 1, 60) == []
    set_clock(engine, jump)
    assert [queue.due for queue in deliveries.queues(engine)] == [1]
    assert [one.id for one in deliveries.take(engine, "Archive", 1, 60)] == [task.id]


def test_a_clock_that_is_set_back_lengthens_no_lease(engine: sa.Engine) -> None:
    task = register(engine)
    (taken,) = deliveries.take(engine, "Archive", 1, 60)
    set_clock(engine, BACK)
    assert deliveries.expire(engine) == 0
    left = _lease_left(engine, task.id)
    assert timedelta(seconds=0) < left <= timedelta(seconds=60)
    assert taken.lease is not None
    deliveries.renew(engine, task.id, taken.lease, 60)
    assert left < _lease_left(engine, task.id) <= timedelta(seconds=60)
    set_clock(engine, BACK + timedelta(seconds=61))
    assert deliveries.expire(engine) == 1


def test_a_clock_that_is_set_forward_ends_a_lease_and_its_agent_is_told(engine: sa.Engine) -> None:
    task = register(engine)
    (first,) = deliveries.take(engine, "Archive", 1, 60)
    set_clock(engine, FORWARD)
    (second,) = deliveries.take(engine, "Archive", 1, 60)
    with pytest.raises(StaleOwner):
        deliveries.succeed(engine, task.id, first.lease)
    assert deliveries.succeed(engine, task.id, second.lease).state is DeliveryState.SUCCEEDED


def _lease_left(engine: sa.Engine, delivery_id: uuid.UUID) -> timedelta:
    expires = deliveries.find_delivery(engine, delivery_id).lease_expires
    assert expires is not None
    with engine.connect() as connection:
        left: timedelta = expires - connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return left


# Others


@JUMPS
def test_an_inference_request_does_not_wait_for_hours_for_its_next_try(engine: sa.Engine, jump: timedelta) -> None:
    inference.submit(engine, "t", {"transactionID": "t"})
    inference.begin(engine, "t")
    inference.retry_later(engine, "t", delay_s=60, message="the archive is away")
    assert inference.due(engine) == []
    set_clock(engine, jump)
    assert [row.transaction_id for row in inference.due(engine)] == ["t"]


def test_what_comes_late_amends_the_last_group_not_the_one_with_the_latest_time(engine: sa.Engine) -> None:
    teller = Teller(engine, BRAIN=GroupingRule(late=Late.RERUN))

    def one_more() -> list[int]:
        """An instance comes, and its group is submitted; the sizes of all groups in the order they were made."""
        opened = teller.open()
        teller.tell(opened, teller.store(opened, uuid.uuid4().hex), teller.close(opened))
        (group,) = queries.list_groups(engine, states=[GroupState.OPEN])
        groups.complete(engine, group.id, [], instances=group.instances, rule="test")
        groups.finish(engine, group.id)
        return sorted(row.instances for row in queries.list_groups(engine))

    assert one_more() == [1]
    set_clock(engine, BACK)
    assert one_more() == [1, 2]
    set_clock(engine, 2 * BACK)
    assert one_more() == [1, 2, 3]
    assert one_more() == [1, 2, 3, 4]
