"""Delivery tasks on a real database: registered once, handed out once, reported on by whoever holds them."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pool_records import OWNER, dead_owner, heard, listening, owner_elsewhere

from clara_flow.errors import Conflict, InputError, NotFound, StaleOwner
from clara_flow.records import deliveries, jobs, payloads
from clara_flow.records.database import connect, transaction
from clara_flow.records.deliveries import ItemNews
from clara_flow.records.delivery_registration import checked_uris
from clara_flow.records.dicom_models import Delivery, DeliveryState, ItemState
from clara_flow.records.models import Job
from clara_flow.records.state_machine import JobEvent

OURS = ("ClaraSCU", "DICOMweb")
LEASE_S = 1800.0


@pytest.fixture
def engine(engine: sa.Engine) -> sa.Engine:
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE deliveries, delivery_items"))
    return engine


def register(engine: sa.Engine, *, agent: str = "Archive", uris: int = 1, **facts: Any) -> Delivery:
    """One task of an agent that is not ours."""
    names = [f"operators/writer/{number}.dcm" for number in range(uris)]
    (task,) = deliveries.register(engine, **{"job_id": "j", "agent": agent, "uris": names} | facts)
    return task


def take(engine: sa.Engine, agent: str = "Archive", size: int = 10, **facts: Any) -> list[Delivery]:
    return deliveries.take(engine, agent, size, **{"lease_s": LEASE_S} | facts)


def now(engine: sa.Engine, task: Delivery) -> Delivery:
    return deliveries.find_delivery(engine, task.id)


def expire(engine: sa.Engine, task: Delivery) -> None:
    """Its lease ends now."""
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE deliveries SET lease_expires = now() - interval '1 ms' WHERE id = :id"), {"id": task.id}
        )


# Registering


def test_a_task_of_another_agent_is_kept_as_given(engine: sa.Engine) -> None:
    task = register(
        engine, agent="renderserver", parameters='["A", "B"]', uris=2, pipeline_id="p", payload_id="x",
    )  # fmt: skip
    stored = now(engine, task)
    assert (stored.agent, stored.parameters, stored.destination) == ("renderserver", '["A", "B"]', "")
    assert (stored.job_id, stored.pipeline_id, stored.payload_id) == ("j", "p", "x")
    assert stored.uris == ["operators/writer/0.dcm", "operators/writer/1.dcm"]
    assert (stored.state, stored.retries, stored.lease, stored.ended) == (DeliveryState.PENDING, 0, None, None)


def test_destinations_of_our_agents_become_a_task_each(engine: sa.Engine) -> None:
    key = uuid.uuid4()
    facts: dict[str, Any] = {"job_id": "j", "agent": "clarascu", "uris": ["/input/a.dcm", "input/a.dcm"]}
    facts |= {"parameters": '["PACS", "Archive ", "pacs"]', "own_agents": OURS, "delivery_id": key}
    tasks = deliveries.register(engine, **facts)
    assert [(task.destination, task.parameters) for task in tasks] == [("PACS", '"PACS"'), ("Archive", '"Archive"')]
    assert [task.id for task in tasks] == [uuid.uuid5(key, "pacs"), uuid.uuid5(key, "archive")]
    assert tasks[0].uris == ["input/a.dcm"]
    assert [task.id for task in deliveries.register(engine, **facts)] == [task.id for task in tasks]
    assert len(deliveries.list_deliveries(engine)) == 2


@pytest.mark.parametrize("parameters", ["", "PACS", '{"a": 1}', "[1]", "[]", '[""]', '"\\u0000"', "[" * 100_000])
def test_parameters_that_name_no_destination_are_one_task(engine: sa.Engine, parameters: str) -> None:
    (task,) = deliveries.register(
        engine, job_id="j", agent="ClaraSCU", uris=["input/a"], parameters=parameters, own_agents=OURS
    )
    assert (task.destination, task.parameters) == ("", parameters)


def test_what_waits_takes_new_files_and_what_was_handed_out_does_not(engine: sa.Engine) -> None:
    key = uuid.uuid4()
    register(engine, delivery_id=key, uris=1)
    assert register(engine, delivery_id=key, uris=2).uris[1:] == ["operators/writer/1.dcm"]
    take(engine)
    assert register(engine, delivery_id=key, uris=2).state is DeliveryState.IN_PROGRESS
    with pytest.raises(Conflict, match="cannot be changed"):
        register(engine, delivery_id=key, uris=3)


def test_many_who_register_the_same_make_one(engine: sa.Engine) -> None:
    key = uuid.uuid4()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: register(engine, delivery_id=key), range(40)))
    assert len(deliveries.list_deliveries(engine)) == 1


@pytest.mark.parametrize("agent", ["", "1a", "a-", "-a", "a_b", "a b", "ä", "a\n", "a" * 3 + "!"])
def test_bad_agents_are_refused(engine: sa.Engine, agent: str) -> None:
    with pytest.raises(InputError, match="letters, digits and hyphens"):
        register(engine, agent=agent)


@pytest.mark.parametrize(
    "uri", ["", "/", "../a", "a/../b", "a//b", "./a", "a/.", "a\0b", "a\nb", "\ud800", "/../etc/passwd", "a/"]
)
def test_uris_that_are_no_file_of_the_payload_are_refused(engine: sa.Engine, uri: str) -> None:
    with pytest.raises(InputError, match="inside the payload"):
        deliveries.register(engine, job_id="j", agent="a", uris=["input/fine.dcm", uri])
    assert deliveries.list_deliveries(engine) == []


@given(st.text())
def test_a_uri_never_leads_out_of_the_payload(uri: str) -> None:
    try:
        (name,) = checked_uris([uri])
    except InputError:
        return
    assert not name.startswith("/")
    assert ".." not in name.split("/")


def test_texts_that_cannot_be_kept_are_refused(engine: sa.Engine) -> None:
    for facts in ({"parameters": "a\0"}, {"job_id": "\ud800"}, {"uris": 0}):
        with pytest.raises(InputError):
            register(engine, **facts)  # type: ignore[arg-type]


def test_only_the_runner_of_a_running_job_registers_for_it(engine: sa.Engine, running: Job) -> None:
    assert register(engine, job_id=running.id, owner=OWNER).job_id == str(running.id)
    with pytest.raises(StaleOwner):
        register(engine, job_id=running.id, owner=owner_elsewhere())
    jobs.finish_job(engine, running.id, OWNER, JobEvent.FAULT)
    with pytest.raises(StaleOwner, match="over"):
        register(engine, job_id=running.id, owner=OWNER)
    assert len(deliveries.list_deliveries(engine)) == 1


# Handing out


def test_the_oldest_come_first_and_agents_are_found_in_any_case(engine: sa.Engine) -> None:
    tasks = [register(engine, agent=agent) for agent in ("Archive", "ARCHIVE", "other", "archive")]
    assert [task.id for task in take(engine, "archivE", 2)] == [tasks[0].id, tasks[1].id]
    (third,) = take(engine)
    assert (third.id, third.state) == (tasks[3].id, DeliveryState.IN_PROGRESS)
    assert third.lease is not None
    assert take(engine) == []


def test_a_destination_may_be_asked_for(engine: sa.Engine) -> None:
    facts: dict[str, Any] = {"job_id": "j", "agent": "ClaraSCU", "uris": ["input/a"], "own_agents": OURS}
    deliveries.register(engine, **facts, parameters='["PACS", "Archive"]')
    deliveries.register(engine, **facts)
    assert [task.destination for task in take(engine, "ClaraSCU", destination="pacs")] == ["PACS"]
    assert [task.destination for task in take(engine, "ClaraSCU", destination="")] == [""]
    assert [task.destination for task in take(engine, "ClaraSCU")] == ["Archive"]


def test_what_shall_wait_is_not_handed_out_before(engine: sa.Engine) -> None:
    register(engine)
    (task,) = take(engine)
    deliveries.fail(engine, task.id, True, "no answer", task.lease, delay_s=3600)
    assert take(engine) == []
    waits = now(engine, task)
    assert waits.retries == 1
    assert waits.not_before is not None
    assert abs(waits.not_before - waits.updated - timedelta(hours=1)) < timedelta(minutes=1)
    assert deliveries.retry(engine, task.id).retries == 1  # somebody does not want to wait
    (again,) = take(engine)
    assert (again.id, again.message) == (task.id, "no answer")


@pytest.mark.parametrize("most", [0, 2])
def test_there_may_be_a_last_try(engine: sa.Engine, most: int) -> None:
    """Reports may be repeated: their answers get lost. A report told twice is one."""
    register(engine)
    for retries in range(most):
        (task,) = take(engine)
        for _ in range(2):
            deliveries.fail(engine, task.id, True, "busy", maximum_retries=most)
        assert (now(engine, task).state, now(engine, task).retries) == (DeliveryState.PENDING, retries + 1)
    (task,) = take(engine)
    for _ in range(2):
        deliveries.fail(engine, task.id, True, "busy", maximum_retries=most)
        ended = now(engine, task)
        assert (ended.state, ended.retries, ended.message) == (
            DeliveryState.FAILED, most, f"busy; tried {most + 1} times",
        )  # fmt: skip
    assert deliveries.retry(engine, task.id).retries == 0


def test_twenty_takers_never_get_one_task_twice(engine: sa.Engine, database_url: str) -> None:
    key = uuid.uuid4()
    for number in range(200):
        register(engine, delivery_id=uuid.uuid5(key, str(number)))
    crowd = connect(database_url, pool_size=20)
    start = threading.Barrier(20)

    def taker(seed: int) -> list[uuid.UUID]:
        sizes, mine = random.Random(seed), []  # noqa: S311
        start.wait()
        while tasks := take(crowd, size=sizes.randint(1, 5)):
            mine += [task.id for task in tasks]
        return mine

    with ThreadPoolExecutor(20) as threads:
        got = Counter(task for mine in threads.map(taker, range(20)) for task in mine)
    crowd.dispose()
    # A taker may find the last ones locked by another and stop: whatever is left nobody got.
    got.update(task.id for task in take(engine, size=1000))
    assert len(got) == 200
    assert set(got.values()) == {1}


def test_agents_hear_of_what_waits_for_them(engine: sa.Engine, database_url: str) -> None:
    with listening(database_url, deliveries.CHANNEL) as listener:
        first = register(engine)
        (task,) = take(engine)
        deliveries.fail(engine, task.id, True)
        (task,) = take(engine)
        expire(engine, task)
        assert deliveries.expire(engine) == 1
        (task,) = take(engine)
        deliveries.give_back(engine, task.id, task.lease or uuid.uuid4())
        (task,) = take(engine)
        deliveries.fail(engine, task.id, False)
        deliveries.retry(engine, task.id)
        notice = (deliveries.CHANNEL, {"delivery": str(first.id), "agent": "Archive", "destination": ""})
        assert heard(listener, 5) == [notice] * 5


def test_queues_tell_what_waits_and_since_when(engine: sa.Engine) -> None:
    first = register(engine)
    register(engine)
    register(engine, agent="other")
    (task,) = take(engine, size=1)
    deliveries.fail(engine, task.id, True, delay_s=3600)
    take(engine, "other")
    archive, other = deliveries.queues(engine)
    assert (archive.agent, archive.pending, archive.due, archive.in_progress) == ("Archive", 2, 1, 0)
    assert archive.oldest == first.created
    assert (other.pending, other.due, other.in_progress, other.oldest) == (0, 0, 1, None)


# Leases and reports


def test_a_lease_that_expires_puts_the_task_back_uncounted(engine: sa.Engine) -> None:
    register(engine)
    (task,) = take(engine, lease_s=0)
    stored = now(engine, task)
    (again,) = take(engine)
    assert (again.id, again.retries, again.lease != task.lease) == (task.id, 0, True)
    assert stored.lease == task.lease


def test_what_a_process_had_that_is_gone_is_offered_at_once(engine: sa.Engine) -> None:
    tasks = {owner: register(engine) for owner in (dead_owner(), OWNER, owner_elsewhere(), None)}
    taken = {owner: take(engine, size=1, owner=owner)[0] for owner in tasks}
    assert deliveries.expire(engine) == 1
    assert deliveries.expire(engine) == 0
    for owner, task in taken.items():
        is_gone = owner is not None and not owner.is_alive()
        assert now(engine, task).state is (DeliveryState.PENDING if is_gone else DeliveryState.IN_PROGRESS)
    dead = taken[next(iter(tasks))]
    assert now(engine, dead).message == "the process that worked at it is gone"
    (again,) = take(engine)
    assert (again.id, again.retries, again.owner) == (dead.id, 0, None)
    with pytest.raises(StaleOwner):  # should it not be gone after all
        deliveries.succeed(engine, dead.id, dead.lease)


def test_whose_lease_it_is_is_known_for_as_long_as_it_is(engine: sa.Engine) -> None:
    register(engine)
    (task,) = take(engine, owner=OWNER)
    owner = now(engine, task).owner
    assert owner is not None
    assert (owner.host, owner.pid, owner.process_start, owner.token) == (
        OWNER.host, OWNER.pid, OWNER.process_start, task.lease,
    )  # fmt: skip
    deliveries.give_back(engine, task.id, task.lease or uuid.uuid4())
    assert now(engine, task).owner is None
    assert now(engine, task).owner_host is None


@pytest.mark.parametrize("taken_again", [False, True])
def test_an_agent_whose_lease_is_over_is_refused(engine: sa.Engine, taken_again: bool) -> None:
    register(engine)
    (stale,) = take(engine)
    expire(engine, stale)
    assert deliveries.expire(engine) == 1
    if taken_again:
        take(engine)
    before = now(engine, stale)
    lease = stale.lease
    assert lease is not None
    refused: list[Callable[[], object]] = [
        lambda: deliveries.succeed(engine, stale.id, lease),
        lambda: deliveries.fail(engine, stale.id, True, lease=lease),
        lambda: deliveries.fail(engine, stale.id, False, lease=lease),
        lambda: deliveries.renew(engine, stale.id, lease, LEASE_S),
        lambda: deliveries.note_items(engine, stale.id, [ItemNews(stale.uris[0], ItemState.SENT)], lease),
    ]
    for call in refused:
        with pytest.raises(StaleOwner):
            call()
    assert now(engine, stale) == before


def test_a_renewed_lease_lasts(engine: sa.Engine) -> None:
    register(engine)
    (task,) = take(engine, lease_s=0)
    assert task.lease is not None
    deliveries.renew(engine, task.id, task.lease, LEASE_S)  # late, but nobody else has it
    assert take(engine) == []
    assert deliveries.succeed(engine, task.id, task.lease).state is DeliveryState.SUCCEEDED


def test_the_same_report_again_is_one_report(engine: sa.Engine) -> None:
    for _ in range(3):
        register(engine)
    first, second, third = take(engine)
    ends = [deliveries.succeed(engine, first.id, first.lease).ended for _ in range(3)]
    assert ends[0] is not None
    assert ends == [ends[0]] * 3
    for _ in range(3):
        deliveries.fail(engine, second.id, True, "away", second.lease)
        deliveries.fail(engine, third.id, False, "gone", third.lease)
    assert (now(engine, second).retries, now(engine, second).state) == (1, DeliveryState.PENDING)
    assert (now(engine, third).state, now(engine, third).message) == (DeliveryState.FAILED, "gone")


def test_reports_without_a_lease_are_believed(engine: sa.Engine) -> None:
    task = register(engine)
    take(engine)
    assert deliveries.fail(engine, task.id, True).retries == 1
    assert deliveries.fail(engine, task.id, True).retries == 1  # its answer was lost
    assert deliveries.succeed(engine, task.id).state is DeliveryState.SUCCEEDED  # of a task that waits
    with pytest.raises(Conflict):
        deliveries.fail(engine, task.id, False)
    with pytest.raises(NotFound):
        deliveries.succeed(engine, uuid.uuid4())


def test_a_late_report_of_an_expired_attempt_is_counted_once(engine: sa.Engine) -> None:
    task = register(engine)
    take(engine)
    expire(engine, task)
    deliveries.expire(engine)
    for _ in range(2):
        assert deliveries.fail(engine, task.id, True).retries == 1


AGENT = """
import sys
from clara_flow.records import deliveries
from clara_flow.records.database import connect

engine = connect(sys.argv[1])
while tasks := deliveries.take(engine, "Archive", 4, 1800):
    for task in tasks:
        print(task.id, flush=True)  # delivered, and not reported
        deliveries.succeed(engine, task.id, task.lease)
"""


def test_an_agent_that_is_killed_loses_nothing(engine: sa.Engine, database_url: str) -> None:
    tasks = {register(engine).id for _ in range(60)}
    delivered: Counter[str] = Counter()
    for kill_after in (1, 7, 2, 13, 0):
        command = [sys.executable, "-c", AGENT, database_url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
            assert agent.stdout is not None
            for count, line in enumerate(agent.stdout, 1):
                delivered[line.strip()] += 1
                if count == kill_after:
                    agent.kill()
                    break
            delivered.update(line.strip() for line in agent.stdout)
        for task in deliveries.list_deliveries(engine, state=DeliveryState.IN_PROGRESS):
            expire(engine, task)
    assert delivered.keys() == {str(task) for task in tasks}
    assert {now(engine, task).state for task in deliveries.list_deliveries(engine)} == {DeliveryState.SUCCEEDED}
    assert sum(delivered.values()) - len(tasks) <= 4  # one for each kill: delivered twice, shown once


# Files, and what people do


def test_files_are_told_one_by_one(engine: sa.Engine) -> None:
    register(engine, uris=4)
    (task,) = take(engine)
    names = task.uris
    deliveries.note_items(engine, task.id, [ItemNews(names[0], ItemState.SENT, sop_instance_uid="1.2")], task.lease)
    deliveries.note_items(engine, task.id, [ItemNews(names[0], ItemState.COMMITTED)], task.lease)
    deliveries.note_items(engine, task.id, [ItemNews(names[1], ItemState.FAILED, "0xA700")], task.lease)
    deliveries.note_items(engine, task.id, [ItemNews(names[2], ItemState.POISON, "0xA900 \0")], task.lease)
    deliveries.note_items(engine, task.id, [ItemNews(names[0], ItemState.FAILED, "late")], task.lease)
    with pytest.raises(InputError, match="has no file"):
        deliveries.note_items(engine, task.id, [ItemNews("other", ItemState.SENT)], task.lease)
    items = deliveries.list_items(engine, task)
    assert [(item.uri, str(item.state), item.reason) for item in items] == [
        (names[0], "COMMITTED", ""), (names[1], "FAILED", "0xA700"), (names[2], "POISON", "0xA900 "),
        (names[3], "PENDING", ""),
    ]  # fmt: skip
    assert items[0].sop_instance_uid == "1.2"


def test_only_what_was_not_sent_is_retried(engine: sa.Engine) -> None:
    register(engine, uris=3)
    (task,) = take(engine)
    told = [ItemState.SENT, ItemState.FAILED, ItemState.POISON]
    news = [ItemNews(uri, state, "why") for uri, state in zip(task.uris, told, strict=True)]
    deliveries.note_items(engine, task.id, news, task.lease)
    with pytest.raises(Conflict, match="cannot be retried"):
        deliveries.retry(engine, task.id)
    deliveries.fail(engine, task.id, False, "two of three failed", task.lease)
    again = deliveries.retry(engine, task.id)
    assert (again.state, again.retries, again.message, again.ended) == (DeliveryState.PENDING, 0, "", None)
    items = deliveries.list_items(engine, task)
    assert [item.state for item in items] == [ItemState.SENT, ItemState.PENDING, ItemState.PENDING]
    assert [item.reason for item in items] == ["why"] * 3
    (task,) = take(engine)
    deliveries.succeed(engine, task.id, task.lease)
    with pytest.raises(Conflict, match="Succeeded"):
        deliveries.retry(engine, task.id)


def test_what_has_no_files_any_more_cannot_be_retried(engine: sa.Engine) -> None:
    payload = payloads.create_payload(engine)
    task = register(engine, payload_id=payload.id)
    deliveries.fail(engine, task.id, False)
    payloads.mark_removed(engine, payload.id)
    with pytest.raises(Conflict, match="were removed"):
        deliveries.retry(engine, task.id)


def test_a_discarded_delivery_is_taken_from_its_agent(engine: sa.Engine) -> None:
    register(engine)
    (task,) = take(engine)
    for reason in ("the patient was moved", "again"):
        discarded = deliveries.discard(engine, task.id, reason)
        assert (discarded.state, discarded.discarded) == (DeliveryState.FAILED, True)
        assert discarded.message == "the patient was moved"
    with pytest.raises(StaleOwner):
        deliveries.succeed(engine, task.id, task.lease)
    with pytest.raises(Conflict):
        deliveries.succeed(engine, task.id)
    assert not deliveries.retry(engine, task.id).discarded
    (task,) = take(engine)
    deliveries.succeed(engine, task.id, task.lease)
    with pytest.raises(Conflict):
        deliveries.discard(engine, task.id)


def test_deliveries_are_found(engine: sa.Engine) -> None:
    job = uuid.uuid4()
    old = register(engine, job_id=job.hex.upper())
    new = register(engine, agent="other", delivery_id=uuid.UUID("abc00000-0000-4000-8000-000000000001"))
    register(engine, agent="other", delivery_id=uuid.UUID("abc00000-0000-4000-8000-000000000002"))
    deliveries.fail(engine, new.id, False)
    found = deliveries.list_deliveries
    assert [task.id for task in found(engine, job_id=str(job))] == [old.id]
    assert [task.id for task in found(engine, agent="OTHER", state=DeliveryState.FAILED)] == [new.id]
    assert [task.id for task in found(engine)][-1] == old.id
    assert len(found(engine, limit=2)) == 2
    assert found(engine, destination="PACS") == []
    assert deliveries.get_delivery(engine, str(old.id)[:12]).id == old.id
    assert deliveries.get_delivery(engine, str(new.id)).id == new.id
    with pytest.raises(InputError, match="several deliveries begin with abc"):
        deliveries.get_delivery(engine, "abc")
    with pytest.raises(InputError, match="hexadecimal"):
        deliveries.get_delivery(engine, "x")
    with pytest.raises(NotFound):
        deliveries.get_delivery(engine, "ffffffff")


# Agents of every kind at once


class Model:
    """What the records must say of one task, told by nobody but the model."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.task = register(engine)
        self.leases: list[uuid.UUID] = []
        self.ended: DeliveryState | None = None

    @property
    def row(self) -> Delivery:
        return now(self.engine, self.task)

    def step(self, action: str, which: int) -> None:
        engine, task_id, before = self.engine, self.task.id, self.row
        lease = self.leases[which % len(self.leases)] if self.leases else uuid.uuid4()
        holds = before.state is DeliveryState.IN_PROGRESS and before.lease == lease
        if action == "take":
            taken = take(engine)
            assert bool(taken) is (before.state is DeliveryState.PENDING)
            self.leases += [task.lease for task in taken if task.lease]
        elif action == "expire":
            expired = before.state is DeliveryState.IN_PROGRESS
            if expired:
                expire(engine, self.task)
            assert deliveries.expire(engine) == expired
            assert self.row.retries == before.retries
        elif action == "renew":
            self.told(lambda: deliveries.renew(engine, task_id, lease, LEASE_S), holds)
        elif action == "succeed":
            self.told(lambda: deliveries.succeed(engine, task_id, lease), holds)
        elif action == "fail":
            self.told(lambda: deliveries.fail(engine, task_id, False, lease=lease), holds)
        elif action == "postpone":
            self.told(lambda: deliveries.fail(engine, task_id, True, lease=lease), holds)
            assert self.row.retries == before.retries + holds
        else:
            self.told(lambda: deliveries.give_back(engine, task_id, lease), holds)
        after = self.row
        if before.state in {DeliveryState.SUCCEEDED, DeliveryState.FAILED}:
            assert after == before

    def told(self, report: Callable[[], object], holds: bool) -> None:
        """Whoever does not hold the task changes nothing."""
        before = self.row
        try:
            report()
        except StaleOwner:
            assert not holds
        if not holds:
            assert self.row == before


ACTIONS = ("take", "expire", "renew", "succeed", "fail", "postpone", "give back")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 5)), max_size=12))
def test_only_who_holds_a_task_changes_it(engine: sa.Engine, steps: list[tuple[str, int]]) -> None:
    with transaction(engine) as session:
        session.execute(sa.text("TRUNCATE deliveries, delivery_items"))
    model = Model(engine)
    for action, which in steps:
        model.step(action, which)
