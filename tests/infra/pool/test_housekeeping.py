"""Housekeeping on a real database, real folders, real processes: what is left behind goes, what is used stays."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from postgres_fixture import database_url  # noqa: F401
from waiting import eventually

from clara_flow.errors import ServiceError
from clara_flow.infra.fastio.volumes import FastIOVolumes
from clara_flow.infra.launchers.process import ProcessLauncher
from clara_flow.infra.pool.housekeeping import Housekeeping, last_report
from clara_flow.records import database, jobs, payloads, pipelines, upkeep
from clara_flow.records.models import Job, PayloadKind
from clara_flow.records.owner import Owner, process_start
from clara_flow.records.payload_store import PayloadStore
from clara_flow.records.state_machine import JobEvent, JobState, JobStatus, OperatorEvent
from clara_flow.settings import Settings, load_settings

ME = Owner.of_this_process()
NODE = "here"


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:  # noqa: F811
    engine = database.connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE leases, nodes, job_operators, jobs, pipelines, payloads"))
    yield engine
    engine.dispose()


class House:
    """A machine with a store, and jobs in every state that a crash can leave."""

    def __init__(self, engine: sa.Engine, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self.store = PayloadStore(settings.data_dir / "payloads")
        self.fastio = FastIOVolumes(settings.data_dir / "shm", may_mount=False)
        self.launcher = ProcessLauncher(settings.data_dir / "operators")
        self.keeper = Housekeeping(engine, self.store, [self.launcher], self.fastio, settings)
        self.pipeline = pipelines.create_pipeline(
            engine, name="tiny", definition="api-version: 0.4.0", plan={"name": "tiny", "operators": [{"name": "a"}]}
        )
        self.study = settings.data_dir / "study"
        self.study.mkdir(parents=True)
        (self.study / "slice.dcm").write_bytes(b"voxels")

    def job(self, **keys: Any) -> Job:
        """A queued job with its payload."""
        folder = self.store.stage(self.study)
        payloads.create_payload(self.engine, payload_id=folder.id)
        facts = {"name": "j", "operators": ["a"], "runtime": "process", "timeout_s": 600} | keys
        return jobs.create_job(self.engine, pipeline_id=self.pipeline.id, payload_id=folder.id, **facts)

    def lease(self, job: Job, operator: str = "", *, owner: uuid.UUID | None = None, age_s: float = 0.0) -> uuid.UUID:
        """A granted lease of it; the job's own admits it."""
        lease_id = uuid.uuid4()
        self.execute(
            "INSERT INTO leases (id, job_id, operator, tenant, priority, amounts, state, node, owner, asked, granted, "
            "expires, limit_s) VALUES (:id, :job, :operator, 'default', 2, '{}', 'GRANTED', :node, :owner, now(), "
            "now() - make_interval(secs => :age_s), now() + interval '1 minute', 60)",
            id=lease_id, job=job.id, operator=operator, node=NODE, owner=owner, age_s=age_s,
        )  # fmt: skip
        if not operator:
            self.execute("UPDATE jobs SET node = :node WHERE id = :job", node=NODE, job=job.id)
        return lease_id

    def node(self, *, heard_s_ago: float = 0.0) -> None:
        """This machine among the pool's nodes."""
        self.execute(
            "INSERT INTO nodes (name, session, owner_pid, owner_process_start, inventory, jobs, heartbeat, expires) "
            "VALUES (:name, :session, 1, '', '{}', 4, now() - make_interval(secs => :ago), "
            "now() - make_interval(secs => :ago) + interval '30 seconds')",
            name=NODE, session=uuid.uuid4(), ago=heard_s_ago,
        )  # fmt: skip

    def stopped(self, *, age_s: float, event: JobEvent = JobEvent.COMPLETE) -> Job:
        """A job that ended some time ago."""
        job = self.job()
        jobs.begin_job(self.engine, job.id, ME)
        jobs.operator_started(self.engine, job.id, "a", ME, attempt=1)
        jobs.operator_ended(self.engine, job.id, "a", ME, OperatorEvent.COMPLETE, exit_code=0)
        jobs.finish_job(self.engine, job.id, ME, event)
        self.age(job, age_s)
        return self.now(job)

    def age(self, job: Job, age_s: float) -> None:
        """Move its end into the past."""
        self.execute("UPDATE jobs SET stopped = now() - make_interval(secs => :s) WHERE id = :job", s=age_s, job=job.id)

    def now(self, job: Job) -> Job:
        """As it is."""
        return jobs.get_job(self.engine, job.id)

    def leases(self) -> set[uuid.UUID]:
        """All lease rows."""
        with self.engine.connect() as connection:
            return set(connection.execute(sa.text("SELECT id FROM leases")).scalars())

    def execute(self, statement: str, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement), values)

    def tidy(self) -> Mapping[str, int]:
        """One round that has no problem; what it did."""
        before = self.keeper.report().repairs
        after = self.keeper.tidy()
        assert after.problems == {}
        return {kind: times - before.get(kind, 0) for kind, times in after.repairs.items() if times != before.get(kind)}


@pytest.fixture
def make_house(engine: sa.Engine, tmp_path: Path) -> Callable[..., House]:
    return lambda **settings: House(engine, load_settings(data_dir=tmp_path, node_name=NODE, **settings))


@pytest.fixture
def here(make_house: Callable[..., House]) -> House:
    return make_house()


def dead_owner() -> Owner:
    """A process of this host that has ended."""
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    owner = Owner(ME.host, child.pid, process_start(child.pid))
    child.communicate(b"\n")
    return owner


def test_a_job_whose_runner_died_goes_on(here: House) -> None:
    lost, mine = here.job(), here.job()
    jobs.begin_job(here.engine, lost.id, dead_owner())
    jobs.begin_job(here.engine, mine.id, ME)
    held = here.lease(mine, owner=ME.token)
    here.lease(lost, owner=here.now(lost).fence)
    assert here.tidy() == {"jobs queued again": 1}
    assert (here.now(lost).state, here.now(lost).requeues) == (JobState.PENDING, 1)
    assert here.now(mine).state is JobState.RUNNING
    assert here.leases() == {held}
    assert here.tidy() == {}


def test_a_job_that_shall_not_be_resumed_is_evicted(here: House) -> None:
    job = here.job(on_restart="evict")
    jobs.begin_job(here.engine, job.id, dead_owner())
    assert here.tidy() == {"jobs ended": 1}
    assert (here.now(job).state, here.now(job).status) == (JobState.STOPPED, JobStatus.EVICTED)


def test_an_admitted_job_that_nobody_begins_is_admitted_anew(here: House) -> None:
    here.node()
    late, fresh, created = here.job(), here.job(), here.job(start=False)
    here.lease(late, age_s=1000)
    here.lease(late, "a", age_s=1000)
    kept = {here.lease(fresh), here.lease(fresh, "a")}
    assert here.tidy() == {"jobs queued again": 1}
    assert here.leases() == kept
    assert (here.now(late).node, here.now(fresh).node) == (None, NODE)
    assert here.now(created).phase == "created"
    assert here.tidy() == {}


def test_a_job_admitted_to_a_silent_node_is_admitted_anew(here: House) -> None:
    here.node(heard_s_ago=10**6)
    job = here.job()
    here.lease(job)
    here.execute("UPDATE nodes SET expires = heartbeat")  # it left
    assert here.tidy() == {"jobs queued again": 1}
    assert here.leases() == set()


def test_leases_of_what_is_over_are_deleted_and_announced(here: House) -> None:
    stopped, running = here.stopped(age_s=0), here.job()
    jobs.begin_job(here.engine, running.id, ME)
    here.lease(stopped, "a", owner=ME.token)
    here.execute("UPDATE jobs SET node = NULL WHERE id = :id", id=stopped.id)
    here.lease(running, "a", owner=uuid.uuid4())
    mine = here.lease(running, owner=ME.token)
    assert here.tidy() == {"leases deleted": 2}
    assert here.leases() == {mine}


def test_leases_that_were_put_right_meanwhile_stay(here: House) -> None:
    job = here.job()
    jobs.begin_job(here.engine, job.id, ME)
    mine = here.lease(job, owner=ME.token)
    assert upkeep.release_astray(here.engine, job.id, here.keeper._astray) == []
    assert here.leases() == {mine}


async def test_processes_and_volumes_of_the_dead_go_and_those_of_the_living_stay(here: House) -> None:
    job = here.job()
    maker = f"""
import json, os, sys, uuid
from pathlib import Path
from clara_flow.infra.fastio.volumes import FastIOVolumes
from clara_flow.infra.launchers.owner import Owner
FastIOVolumes(Path({str(here.fastio.root)!r}), may_mount=False).create({str(job.id)!r}, 1)
folder = Path({str(here.launcher.state_dir)!r})
folder.mkdir(parents=True)
entry = {{"job_id": {str(job.id)!r}, "owner": str(Owner.current())}}
(folder / "{"0" * 32}.json").write_text(json.dumps(entry))
"""
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", maker], check=True)
    mine = here.fastio.create(uuid.uuid4(), 1)
    mark = {**os.environ, "CLARA_FLOW_ATTEMPT": "0" * 32}
    orphan = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, env=mark)  # noqa: ASYNC220
    done = await asyncio.to_thread(here.tidy)
    assert done == {"operators ended": 1, "volumes removed": 1}
    assert await asyncio.to_thread(orphan.wait, 10) == -9
    assert orphan.stdin is not None
    orphan.stdin.close()
    assert mine.path.is_dir()
    assert here.fastio.total_mib() == 1
    mine.remove()


def test_partial_folders_of_jobs_that_are_over_go(here: House) -> None:
    over, going = here.stopped(age_s=0), here.job()
    for job in (over, going):
        folder = here.store.folder(job.payload_id)
        (folder.open_outputs("a", attempt=3) / "half").write_bytes(b"x")
    assert here.tidy() == {"partial folders removed": 1}
    assert [path.name for path in (here.store.folder(going.payload_id).path / "operators").iterdir()] == [
        ".a.3.partial"
    ]
    assert here.tidy() == {}


def test_folders_without_a_record_go_when_old_and_strangers_stay(make_house: Callable[..., House]) -> None:
    here = make_house(orphan_payload_s=1000)
    here.job()
    young, old = here.store.stage(here.study), here.store.stage(here.study)
    stranger = here.store.root / "readme.txt"
    stranger.write_text("not a payload")
    past = datetime.now(UTC).timestamp() - 2000
    for path in (old.path, *old.path.iterdir(), stranger):
        os.utime(path, (past, past))
    interrupted = here.store.root / f".{'a' * 32}.removed"
    interrupted.mkdir()
    assert here.tidy() == {"payload folders removed": 1, "removals finished": 1}
    assert young.path.is_dir()
    assert stranger.exists()
    assert not old.path.exists()
    assert not interrupted.exists()


def test_payloads_go_after_their_time_and_their_logs_stay(make_house: Callable[..., House]) -> None:
    here = make_house(payload_retention_s=100, failed_payload_retention_s=1000, least_retention_s=10)
    due, failed_due = here.stopped(age_s=101), here.stopped(age_s=1001, event=JobEvent.FAULT)
    young, failed_young = here.stopped(age_s=90), here.stopped(age_s=900, event=JobEvent.FAULT)
    waiting = here.job()
    log_path = here.store.folder(due.payload_id).log_path("a")
    log_path.parent.mkdir()
    log_path.write_text("what it said\n")
    assert here.tidy() == {"payloads removed": 2}
    for job, is_there in ((due, False), (failed_due, False), (young, True), (failed_young, True), (waiting, True)):
        assert here.store.folder(job.payload_id).path.is_dir() == is_there
        assert (payloads.get_payload(here.engine, job.payload_id).removed is None) == is_there
    archived = here.keeper.archive.folder(due.payload_id) / "a.log"
    assert archived.read_text() == "what it said\n"
    assert here.tidy() == {}
    assert archived.exists()


def test_logs_and_records_go_after_their_own_time(make_house: Callable[..., House]) -> None:
    here = make_house(
        payload_retention_s=100, least_retention_s=10, job_log_retention_s=500, job_record_retention_s=1000
    )
    job, kept = here.stopped(age_s=400), here.stopped(age_s=90)
    (here.store.folder(job.payload_id).path / "logs").mkdir()
    assert here.tidy() == {"payloads removed": 1}
    os.utime(here.keeper.archive.folder(job.payload_id), (0, 0))
    here.age(job, 2000)
    assert here.tidy() == {"job logs removed": 1, "job records removed": 1}
    assert [row.id for row in jobs.list_jobs(here.engine)] == [kept.id]
    assert here.tidy() == {}


def test_a_payload_in_use_stays(make_house: Callable[..., House]) -> None:
    here = make_house(payload_retention_s=100, least_retention_s=10)
    earlier = here.stopped(age_s=10**6)
    later = here.job(resumes=earlier.id)
    reusable = payloads.create_payload(here.engine, kind=PayloadKind.REUSABLE)
    here.execute("UPDATE payloads SET created = now() - interval '9 years' WHERE id = :id", id=reusable.id)
    here.store.create(reusable.id)
    assert here.tidy() == {}
    assert here.store.folder(earlier.payload_id).input.is_dir()
    jobs.cancel_job(here.engine, later.id)
    assert here.tidy() == {"payloads removed": 1}
    assert here.store.folder(reusable.id).path.is_dir()


def test_a_payload_that_is_taken_up_in_the_last_instant_stays(make_house: Callable[..., House]) -> None:
    here = make_house(payload_retention_s=100, least_retention_s=10)
    earlier = here.stopped(age_s=10**6)
    (listed,) = upkeep.idle_payloads(here.engine, datetime.now(UTC))
    here.job(resumes=earlier.id)
    here.keeper._remove(listed, "kept long enough")
    assert here.store.folder(earlier.payload_id).input.is_dir()


def test_a_payload_whose_job_was_never_made_goes_with_its_record(make_house: Callable[..., House]) -> None:
    here = make_house(orphan_payload_s=1000)
    here.job()
    folder = here.store.stage(here.study)
    payloads.create_payload(here.engine, payload_id=folder.id)
    assert here.tidy() == {}
    here.execute("UPDATE payloads SET created = now() - interval '1 hour' WHERE id = :id", id=folder.id)
    assert here.tidy() == {"payloads removed": 1}
    assert not folder.path.exists()
    assert upkeep.known_payloads(here.engine, [folder.id]) == set()


def test_a_disk_that_is_too_full_is_relieved_early(make_house: Callable[..., House]) -> None:
    rules = {"payload_retention_s": 10**6, "failed_payload_retention_s": 0, "least_retention_s": 10}
    here = make_house(storage_limit_percent=1, **rules)  # every disk is fuller than that
    old, failed, young = here.stopped(age_s=500), here.stopped(age_s=500, event=JobEvent.FAULT), here.stopped(age_s=1)
    assert here.tidy() == {"payloads removed": 1}
    assert not here.store.folder(old.payload_id).path.exists()
    assert here.store.folder(failed.payload_id).path.is_dir()
    assert here.store.folder(young.payload_id).path.is_dir()


def test_a_repair_that_fails_is_told_once_and_stops_no_other(
    here: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job_is_alive: object) -> list[str]:
        raise ServiceError("engine", "it hangs", remedy="Restart it.")

    monkeypatch.setattr(here.fastio, "reap", fail)
    job = here.job()
    jobs.begin_job(here.engine, job.id, dead_owner())
    with caplog.at_level(logging.WARNING):
        first, second = here.keeper.tidy(), here.keeper.tidy()
    assert first.repairs == {"jobs queued again": 1}
    assert list(second.problems) == ["leftovers"]
    assert [record.getMessage() for record in caplog.records] == [
        f"housekeeping, leftovers: {first.problems['leftovers']}"
    ]
    monkeypatch.undo()
    assert here.keeper.tidy().problems == {}


def test_the_thread_makes_a_round_at_once_and_whenever_it_is_rung(make_house: Callable[..., House]) -> None:
    here = make_house(housekeeping_s=3600)
    here.keeper.start()
    try:
        eventually(lambda: (report := last_report(here.settings)) is not None and report.rounds == 1)
        job = here.job()
        jobs.begin_job(here.engine, job.id, dead_owner())
        here.keeper.ring()
        eventually(lambda: here.now(job).state is JobState.PENDING)
    finally:
        here.keeper.stop()
    report = last_report(here.settings)
    assert report is not None
    assert report.repairs == {"jobs queued again": 1}
    assert datetime.now(UTC) - datetime.fromisoformat(report.at) < timedelta(minutes=1)


def test_a_report_that_cannot_be_read_is_none(here: House) -> None:
    assert last_report(here.settings) is None
    here.keeper.tidy()
    path = here.settings.data_dir / "pool" / f"housekeeping-{NODE}.json"
    assert json.loads(path.read_text())["rounds"] == 1
    path.write_text("{")
    assert last_report(here.settings) is None


def test_a_database_that_is_away_is_told_once_and_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = load_settings(data_dir=tmp_path, node_name=NODE)
    engine = database.connect(f"postgresql://nobody@/none?host={tmp_path}")
    launcher, volumes = ProcessLauncher(tmp_path / "operators"), FastIOVolumes(tmp_path / "shm")
    keeper = Housekeeping(engine, PayloadStore(tmp_path / "payloads"), [launcher], volumes, settings)
    with caplog.at_level(logging.WARNING):
        assert keeper.tidy().rounds == 1
        report = keeper.tidy()
    assert list(report.problems) == ["database"]
    assert report.repairs == {}
    assert len(caplog.records) == 1
