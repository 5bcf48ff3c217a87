"""Clean-up on a real database and real folders: what was delivered goes, whatever is wanted stays."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from postgres_fixture import database_url  # noqa: F401
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.errors import StorageError
from clara_flow.infra.images.catalog import Catalog
from clara_flow.records import database, deliveries, jobs, payloads, pipelines, upkeep
from clara_flow.records.dicom_models import DeliveryState
from clara_flow.records.models import Job
from clara_flow.records.owner import Owner
from clara_flow.records.payload_store import PayloadStore
from clara_flow.records.state_machine import JobEvent
from clara_flow.services.dicom.heartbeats import read_all
from clara_flow.services.dicom.places import Places
from clara_flow.services.results import cleanup
from clara_flow.services.results.cleanup import CleanUp
from clara_flow.settings import load_settings

ME = Owner.of_this_process()
KEPT_S = 28_800
LONG_AGO_S = KEPT_S + 60


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:  # noqa: F811
    engine = database.connect(database_url)
    with engine.begin() as connection:
        tables = "deliveries, delivery_items, leases, nodes, job_operators, jobs, pipelines, payloads"
        connection.execute(sa.text(f"TRUNCATE {tables}"))
    yield engine
    engine.dispose()


class World:
    """Jobs that ended some time ago, and their deliveries."""

    def __init__(self, engine: sa.Engine, folder: Path, **settings: Any) -> None:
        self.engine = engine
        self.house = House(settings=load_settings(data_dir=folder, **settings), engine=engine, catalog=Catalog({}, {}))
        self.store = self.house.store
        self.cleanup = CleanUp(self.house)
        self.pipeline = pipelines.create_pipeline(
            engine, name="tiny", definition="", plan={"name": "tiny", "operators": [{"name": "a"}]}
        )
        self.study = folder / "study"
        self.study.mkdir(exist_ok=True)
        (self.study / "one.dcm").write_bytes(b"voxels")

    def job(self, event: JobEvent | None = JobEvent.FAULT, **facts: Any) -> Job:
        """A job that ended long ago; None: one that runs."""
        folder = self.store.stage(self.study)
        payloads.create_payload(self.engine, payload_id=folder.id)
        more = {"name": "j", "operators": ["a"], "runtime": "process", "timeout_s": 600} | facts
        job = jobs.create_job(self.engine, pipeline_id=self.pipeline.id, payload_id=folder.id, **more)
        jobs.begin_job(self.engine, job.id, ME)
        folder.log_path("a").parent.mkdir(exist_ok=True)
        folder.log_path("a").write_text("what it said\n")
        if event is not None:
            jobs.finish_job(self.engine, job.id, ME, event)
            self.execute(
                "UPDATE jobs SET stopped = now() - make_interval(secs => :s) WHERE id = :id", LONG_AGO_S, job.id
            )
        return job

    def delivery(self, job: Job, state: DeliveryState, *, age_s: float = LONG_AGO_S, **facts: Any) -> uuid.UUID:
        """One of its deliveries; its state, since when."""
        named = {"job_id": job.id, "payload_id": job.payload_id} | facts
        (task,) = deliveries.register(self.engine, agent="archive", uris=["input/one.dcm"], **named)
        if state is DeliveryState.SUCCEEDED:
            deliveries.succeed(self.engine, task.id)
        elif state is DeliveryState.FAILED:
            deliveries.fail(self.engine, task.id, False)
        elif state is DeliveryState.IN_PROGRESS:
            deliveries.take(self.engine, "archive", 1, 3600)
        if state in {DeliveryState.SUCCEEDED, DeliveryState.FAILED}:
            self.execute(
                "UPDATE deliveries SET ended = now() - make_interval(secs => :s) WHERE id = :id", age_s, task.id
            )
        return task.id

    def execute(self, statement: str, seconds: float, row: uuid.UUID) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement), {"s": seconds, "id": row})

    def has_files(self, job: Job) -> bool:
        return self.store.folder(job.payload_id).path.exists()


@pytest.fixture
def world(engine: sa.Engine, tmp_path: Path) -> World:
    return World(engine, tmp_path)


@pytest.mark.parametrize("end", [DeliveryState.SUCCEEDED, DeliveryState.FAILED])
def test_files_go_when_everything_ended_long_enough_ago(world: World, end: DeliveryState) -> None:
    job = world.job()
    world.delivery(job, DeliveryState.SUCCEEDED)
    task = world.delivery(job, end)
    assert world.cleanup.sweep() == [job.payload_id]
    assert not world.has_files(job)
    assert payloads.get_payload(world.engine, job.payload_id).removed is not None
    assert (world.cleanup.archive.folder(job.payload_id) / "a.log").read_text() == "what it said\n"
    assert jobs.get_job(world.engine, job.id).id == job.id  # records stay
    assert deliveries.find_delivery(world.engine, task).state is end
    assert world.cleanup.sweep() == []


@pytest.mark.parametrize("state", [DeliveryState.PENDING, DeliveryState.IN_PROGRESS])
def test_files_stay_while_a_delivery_is_not_over(world: World, state: DeliveryState) -> None:
    job = world.job()
    world.delivery(job, DeliveryState.SUCCEEDED)
    world.delivery(job, state)
    assert world.cleanup.sweep() == []
    assert world.has_files(job)


@pytest.mark.parametrize("state", [DeliveryState.PENDING, DeliveryState.IN_PROGRESS])
@pytest.mark.parametrize("spelling", [str, lambda payload_id: payload_id.hex.upper()])
def test_nobody_else_takes_files_from_a_delivery_either(world: World, state: DeliveryState, spelling: Any) -> None:
    """Housekeeping, that is: when they are old enough for it, or the disk is full."""
    job, now = world.job(), datetime.now(UTC)
    task = world.delivery(job, state, payload_id=spelling(job.payload_id))
    assert upkeep.idle_payloads(world.engine, now) == []
    deliveries.succeed(world.engine, task)
    assert [payload.id for payload in upkeep.idle_payloads(world.engine, now)] == [job.payload_id]


def test_files_stay_until_their_time(world: World) -> None:
    job = world.job()
    world.delivery(job, DeliveryState.SUCCEEDED)
    world.delivery(job, DeliveryState.SUCCEEDED, age_s=KEPT_S - 60)
    assert world.cleanup.sweep() == []


def test_files_of_a_job_that_runs_or_was_gone_on_from_stay(world: World) -> None:
    running, earlier = world.job(None), world.job()
    later = world.job(None, resumes=earlier.id)
    for job in (running, earlier, later):
        world.delivery(job, DeliveryState.SUCCEEDED)
    assert world.cleanup.sweep() == []
    jobs.finish_job(world.engine, later.id, ME, JobEvent.FAULT)
    assert world.cleanup.sweep() == [earlier.payload_id]


def test_a_job_that_registered_nothing_is_never_cleaned(world: World) -> None:
    job = world.job()
    assert world.cleanup.sweep() == []
    assert world.has_files(job)


def test_ids_are_understood_without_dashes_and_a_payload_by_its_job(world: World) -> None:
    plain, by_job, waits = world.job(), world.job(), world.job()
    world.delivery(plain, DeliveryState.SUCCEEDED, job_id="elsewhere", payload_id=plain.payload_id.hex.upper())
    world.delivery(by_job, DeliveryState.SUCCEEDED, payload_id="")
    world.delivery(waits, DeliveryState.SUCCEEDED)
    world.delivery(waits, DeliveryState.PENDING, payload_id="")
    assert set(world.cleanup.sweep()) == {plain.payload_id, by_job.payload_id}
    assert world.has_files(waits)


def test_the_least_retention_holds_and_it_can_be_turned_off(engine: sa.Engine, tmp_path: Path) -> None:
    for settings in ({"least_retention_s": 2 * LONG_AGO_S}, {"results_cleanup": False}):
        world = World(engine, tmp_path, **settings)
        job = world.job()
        world.delivery(job, DeliveryState.SUCCEEDED)
        assert world.cleanup.sweep() == []
        assert world.has_files(job)


def test_one_that_cannot_be_removed_is_tried_again_and_keeps_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, fine = world.job(), world.job()
    for job in (stuck, fine):
        world.delivery(job, DeliveryState.SUCCEEDED)
    real = PayloadStore.remove

    def remove(store: PayloadStore, payload_id: uuid.UUID) -> None:
        if payload_id == stuck.payload_id:
            raise StorageError("read-only file system")
        real(store, payload_id)

    with monkeypatch.context() as broken:
        broken.setattr(PayloadStore, "remove", remove)
        assert world.cleanup.sweep() == [fine.payload_id]
    assert world.has_files(stuck)
    assert world.cleanup.sweep() == [stuck.payload_id]


def test_what_somebody_wants_retried_meanwhile_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.job()
    task = world.delivery(job, DeliveryState.FAILED)
    listed = world.cleanup._delivered()
    deliveries.retry(world.engine, task)
    monkeypatch.setattr(
        world.cleanup, "_delivered", lambda only=None: CleanUp._delivered(world.cleanup, only) if only else listed
    )
    assert world.cleanup.sweep() == []
    assert world.has_files(job)


def test_the_loop_sweeps_puts_silent_tasks_back_and_beats(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "ROUND_S", 0.01)
    job, other = world.job(), world.job()
    world.delivery(job, DeliveryState.SUCCEEDED)
    silent = world.delivery(other, DeliveryState.IN_PROGRESS)
    world.execute("UPDATE deliveries SET lease_expires = now() - :s * interval '1 s' WHERE id = :id", 1, silent)
    stop = threading.Event()
    thread = threading.Thread(target=world.cleanup.run, args=(stop,))
    thread.start()
    try:
        eventually(lambda: not world.has_files(job))
        eventually(lambda: deliveries.find_delivery(world.engine, silent).state is DeliveryState.PENDING)
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
    (beat,) = read_all(Places.of(world.house.settings).heartbeats)
    assert beat.name == "cleanup"
