"""A PostgreSQL that is killed and comes back: calls are repeated, the doorbell rings again; other errors are not."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from pool_records import OWNER
from waiting import eventually

from clara_flow.errors import InputError, ServiceError, SettingsError
from clara_flow.infra.postgres import EmbeddedPostgres
from clara_flow.records import database, jobs, leases, nodes, payloads, pipelines
from clara_flow.records.database import DatabaseAway, TransactionConflict, persistently
from clara_flow.records.doorbell import RECONNECTED, Doorbell
from clara_flow.records.state_machine import JobEvent, OperatorEvent


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server of this module's own, that its tests kill. What it said is committed is (fsync off loses nothing to a
    kill of the process)."""
    folder = tmp_path_factory.mktemp("killed")
    server = EmbeddedPostgres(folder, log_path=folder / "postgres.log", options={"fsync": "off"})
    server.start()
    database.migrate(server.url())
    yield server
    server.stop()


@pytest.fixture
def lost_engine(server: EmbeddedPostgres) -> Iterator[sa.Engine]:
    server.start()
    engine = database.connect(server.url())
    yield engine
    engine.dispose()


def kill(server: EmbeddedPostgres) -> None:
    """kill -9 of the whole server."""
    pid = server.pid
    assert pid is not None
    children = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    for child in children:
        if child.is_running():
            child.kill()
    eventually(lambda: not server.is_running())


def test_a_whole_job_over_a_database_that_is_killed_again_and_again(
    server: EmbeddedPostgres, lost_engine: sa.Engine
) -> None:
    """Every step is told until it is heard; each is recorded once."""
    names = [f"op-{number}" for number in range(12)]
    pipeline = pipelines.create_pipeline(lost_engine, name="x", definition="", plan={})
    payload = payloads.create_payload(lost_engine)
    job = jobs.create_job(
        lost_engine, name="study", pipeline_id=pipeline.id, payload_id=payload.id, operators=names,
        runtime="process", timeout_s=600,
    )  # fmt: skip
    waits: list[ServiceError] = []
    steps = 0
    due, killed = threading.Semaphore(0), threading.Semaphore(0)

    def tell(call: Callable[..., object], *arguments: object, **facts: object) -> None:
        nonlocal steps
        if steps % 8 == 0:
            due.release()  # the kill comes during the next calls
        elif steps % 8 == 4:
            assert killed.acquire(timeout=60)
        persistently(call, lost_engine, *arguments, patience_s=120, on_wait=waits.append, **facts)
        steps += 1

    def run() -> None:
        tell(jobs.begin_job, job.id, OWNER)
        for name in names:
            tell(jobs.operator_waits, job.id, name, OWNER, message="a GPU")
            tell(leases.ask, job_id=job.id, operator=name, owner=OWNER, amounts={"gpu": 1}, limit_s=60)
            tell(jobs.operator_started, job.id, name, OWNER, attempt=1)
            tell(jobs.operator_ended, job.id, name, OWNER, OperatorEvent.COMPLETE, attempt=1)
        tell(jobs.finish_job, job.id, OWNER, JobEvent.COMPLETE)

    with ThreadPoolExecutor(1) as pool:
        runner = pool.submit(run)
        for _ in range(6):  # of 50 steps
            assert due.acquire(timeout=60)
            told = len(waits)
            kill(server)
            killed.release()
            eventually(lambda told=told: len(waits) > told, within_s=60)
            server.start()
        assert due.acquire(timeout=60)
        killed.release()
        runner.result(60)
    assert all(isinstance(error, DatabaseAway) for error in waits)
    stored = jobs.get_job(lost_engine, job.id)
    assert [line.split()[1] for line in stored.story] == ["create", "start", "begin", "complete"]
    rows = jobs.list_operators(lost_engine, job.id)
    assert {(row.detail, row.attempt) for row in rows} == {("Completed", 1)}
    assert leases.load(lost_engine) == []


def test_patience_ends(server: EmbeddedPostgres, lost_engine: sa.Engine) -> None:
    jobs.list_jobs(lost_engine)
    kill(server)
    waits: list[ServiceError] = []
    began = time.monotonic()
    with pytest.raises(ServiceError, match="cannot be used"):
        persistently(jobs.list_jobs, lost_engine, patience_s=0.5, on_wait=waits.append)
    assert 0.5 <= time.monotonic() - began < 5
    assert 3 <= len(waits) <= 6  # 50, 100, 200 ms, and what is left
    server.start()
    assert isinstance(persistently(jobs.list_jobs, lost_engine, patience_s=0), list)


def test_who_waits_may_give_up(server: EmbeddedPostgres, lost_engine: sa.Engine) -> None:
    def give_up(error: ServiceError) -> None:
        raise KeyboardInterrupt

    kill(server)
    with pytest.raises(KeyboardInterrupt):
        persistently(nodes.list_nodes, lost_engine, patience_s=60, on_wait=give_up)
    server.start()


def test_a_starting_database_is_waited_for(server: EmbeddedPostgres, lost_engine: sa.Engine) -> None:
    kill(server)
    with ThreadPoolExecutor(1) as pool:
        asked = threading.Event()
        answer = pool.submit(
            persistently, nodes.list_nodes, lost_engine, patience_s=60, on_wait=lambda error: asked.set()
        )
        assert asked.wait(10)
        server.start()
        assert answer.result(60) == []


def test_nothing_else_is_repeated(lost_engine: sa.Engine, tmp_path: Path) -> None:
    calls: list[int] = []

    def fail(error: Exception) -> None:
        calls.append(1)
        raise error

    for error in (InputError("no"), ServiceError("Prefect", "is gone", remedy="Wait."), ZeroDivisionError()):
        with pytest.raises(type(error)):
            persistently(fail, error, patience_s=60)
    assert len(calls) == 3
    # Who is not let in will not be later.
    url = lost_engine.url.set(database="nowhere").render_as_string(hide_password=False)
    stranger = database.connect(url)
    with pytest.raises(ServiceError, match='"nowhere" does not exist') as caught:
        persistently(jobs.list_jobs, stranger, patience_s=60)
    assert not isinstance(caught.value, DatabaseAway)
    stranger.dispose()


def test_a_deadlock_is_repeated_at_once(lost_engine: sa.Engine) -> None:
    with lost_engine.begin() as connection:
        connection.execute(sa.text("SET deadlock_timeout = '10ms'"))
        connection.execute(sa.text("CREATE TABLE IF NOT EXISTS pair (id int PRIMARY KEY, value int)"))
        connection.execute(sa.text("TRUNCATE pair"))
        connection.execute(sa.text("INSERT INTO pair VALUES (1, 0), (2, 0)"))
    barrier = threading.Barrier(2)
    conflicts: list[int] = []

    def both(first: int, second: int) -> None:
        with database.transaction(lost_engine) as session:
            for number in (first, second):
                session.execute(sa.text("UPDATE pair SET value = value + 1 WHERE id = :id"), {"id": number})
                if number == first and not barrier.broken:
                    barrier.wait(10)

    def once(first: int, second: int) -> None:
        try:
            both(first, second)
        except TransactionConflict:
            barrier.abort()
            conflicts.append(1)
            raise

    def never(error: ServiceError) -> None:
        raise AssertionError("a conflict is no reason to wait")

    with ThreadPoolExecutor(2) as pool:
        for future in [
            pool.submit(persistently, once, *pair, patience_s=30, on_wait=never) for pair in ((1, 2), (2, 1))
        ]:
            future.result()
    assert 1 <= len(conflicts) <= 2  # PostgreSQL looks at each of them by itself, and may find both at fault
    with lost_engine.connect() as connection:
        assert connection.execute(sa.text("SELECT sum(value) FROM pair")).scalar() == 4


@pytest.mark.parametrize(
    "where", ["me:s3cret@/db?host=/nowhere", "me@/db?host=/nowhere&password=s3cret&sslpassword=s3cret"]
)
def test_passwords_are_never_shown(where: str) -> None:
    engine = database.connect(f"postgresql://{where}")
    with pytest.raises(ServiceError, match=r"\*\*\*.* cannot be used") as caught:
        jobs.list_jobs(engine)
    assert "s3cret" not in str(caught.value)


# The doorbell


def ring(engine: sa.Engine, channel: str, payload: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.select(sa.func.pg_notify(channel, payload)))


@pytest.fixture
def bell(lost_engine: sa.Engine) -> Iterator[Doorbell]:
    bell = Doorbell(lost_engine, ("one", "two"))
    yield bell
    bell.close()
    bell.close()


def test_it_hears_its_channels_in_order(bell: Doorbell, lost_engine: sa.Engine) -> None:
    assert bell.wait(0) == []
    for channel, payload in (("one", '{"n": 1}'), ("three", '{"n": 2}'), ("two", '{"n": 3}'), ("one", "nonsense"),
                             ("one", "[4]"), ("one", '{"n": "☤"}')):  # fmt: skip
        ring(lost_engine, channel, payload)
    notices: list[object] = []
    while len(notices) < 3:
        notices += bell.wait(10)
    assert notices == [("one", {"n": 1}), ("two", {"n": 3}), ("one", {"n": "☤"})]
    assert bell.wait(0.01) == []


def test_it_wakes_at_once(bell: Doorbell, lost_engine: sa.Engine) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bell.wait, 60)
        began = time.monotonic()
        ring(lost_engine, "one", "{}")
        assert waiting.result(10) == [("one", {})]
        assert time.monotonic() - began < 2


def test_it_can_be_interrupted(bell: Doorbell, server: EmbeddedPostgres) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bell.wait, 60)
        bell.interrupt()
        assert waiting.result(10) == []
        assert bell.wait(0.01) == []  # an interruption counts once
        kill(server)
        waiting = pool.submit(bell.wait, 60)  # and also while the database is away
        bell.interrupt()
        assert waiting.result(10) == []
    server.start()


def test_a_lost_database_is_told_once_when_it_is_back(
    bell: Doorbell, server: EmbeddedPostgres, lost_engine: sa.Engine
) -> None:
    for _ in range(2):
        kill(server)
        assert bell.wait(0.2) == []
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(bell.wait, 60)
            server.start()
            assert waiting.result(60) == [RECONNECTED]
        persistently(ring, lost_engine, "two", '{"n": 1}', patience_s=10)
        assert bell.wait(10) == [("two", {"n": 1})]
        assert bell.wait(0) == []


def test_it_may_be_made_while_the_database_is_away(server: EmbeddedPostgres) -> None:
    kill(server)
    bell = Doorbell(server.url(), ("one",))
    assert bell.wait(0) == []
    server.start()
    assert bell.wait(60) == [RECONNECTED]
    bell.close()
    with pytest.raises(SettingsError):
        Doorbell("mysql://x/y", ("one",))


def test_a_doorbell_leaves_nothing_open(server: EmbeddedPostgres, lost_engine: sa.Engine) -> None:
    before = psutil.Process().num_fds()
    for _ in range(5):
        Doorbell(lost_engine, ("one", uuid.uuid4().hex)).close()
    assert psutil.Process().num_fds() <= before
