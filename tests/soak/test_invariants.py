"""The soak's checkers themselves: each violation that is planted is found, and nothing else is."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml
from platform_fixture import processes_below
from postgres_fixture import database_url  # noqa: F401
from soak import invariants, workload
from soak.containers import ContainerStory
from soak.invariants import Expected, Mark
from soak.kills import Machine
from waiting import eventually

from clara_flow.flows.compiler import compile_pipeline
from clara_flow.infra.launchers.docker import JOB_LABEL, OPERATOR_LABEL
from clara_flow.infra.launchers.supervise import MARK
from clara_flow.records import database, jobs, payloads, pipelines
from clara_flow.records.job_queue import MOST_REQUEUES
from clara_flow.records.models import Job, JobOperator
from clara_flow.records.payload_store import PayloadStore
from clara_flow.records.state_machine import JobState, JobStatus, OperatorPhase
from clara_flow.settings import load_settings

JOB, OTHER = uuid.uuid4(), uuid.uuid4()
DONE = ("create", "start", "begin", "complete")


def story(*events: str) -> list[str]:
    return [f"2026-01-01T00:00:00.000+00:00 {event}" for event in events]


def job(*events: str, status: str = "HEALTHY", **keys: object) -> Job:
    """A job that is over, unless its story says something else."""
    is_over = events[-1] in invariants.ENDS or status == "CANCELED"
    state = JobState.STOPPED if is_over else JobState.RUNNING
    facts = {"id": JOB, "name": "j", "state": state, "status": JobStatus(status), "story": story(*events)} | keys
    return Job(**facts)


# Jobs


@pytest.mark.parametrize(
    ("events", "status"),
    [
        (DONE, "HEALTHY"),
        (("create", "start", "begin", "requeue", "begin", "requeue", "requeue", "begin", "complete"), "HEALTHY"),
        (("create", "start", "begin", "requeue", "begin", "fault"), "FAULTED"),
        (("create", "start", "request-cancel"), "CANCELED"),
        (("create", "start", "begin", "request-cancel", "cancel"), "CANCELED"),
        (("create", "start", "begin", "expire"), "TERMINATED"),
        (("create", "start", "begin", "evict"), "EVICTED"),
    ],
)
def test_stories_that_are_right(events: tuple[str, ...], status: str) -> None:
    assert invariants.check_story(story(*events), JobStatus(status)) == []


@pytest.mark.parametrize(
    ("events", "status", "problem"),
    [
        (("create", "begin", "complete"), "HEALTHY", "begins with"),
        ((*DONE, "complete"), "HEALTHY", "2 ends"),
        (("create", "start", "begin", "begin", "complete"), "HEALTHY", "begun while it ran"),
        (("create", "start", "begin", "fault"), "HEALTHY", "is not its status"),
        ((*DONE, "requeue"), "HEALTHY", "goes on after its end"),
        (("create", "start", "begin"), "HEALTHY", "0 ends"),
        (("create", "start", "begin", "requeue", "begin", "requeue", "begin", "begin", "fault"), "FAULTED", "begun"),
    ],
)
def test_stories_that_are_wrong(events: tuple[str, ...], status: str, problem: str) -> None:
    wrong = invariants.check_story(story(*events), JobStatus(status))
    assert len(wrong) == 1
    assert problem in wrong[0]


def test_jobs_that_are_right() -> None:
    assert invariants.check_jobs({JOB: Expected("HEALTHY")}, {JOB: job(*DONE)}) == []


def test_a_lost_job_and_a_stranger_are_found() -> None:
    wrong = invariants.check_jobs({OTHER: Expected("HEALTHY")}, {JOB: job(*DONE)})
    assert [line.split()[2:] for line in wrong] == [["is", "lost"], ["is", "nobody's"]]


def test_a_job_that_is_not_over_is_found() -> None:
    running = job("create", "start", "begin", queued=datetime.now(UTC))
    assert "is running" in invariants.check_jobs({JOB: Expected("HEALTHY")}, {JOB: running})[0]


FAULT = ("create", "start", "begin", "fault")
EVICT = ("create", "start", "begin", "evict")


@pytest.mark.parametrize(
    ("expected", "found", "is_right"),
    [
        (Expected("HEALTHY"), job(*FAULT, status="FAULTED"), False),
        (Expected("FAULTED"), job(*FAULT, status="FAULTED"), True),
        (Expected("HEALTHY", operator_kills=1), job(*FAULT, status="FAULTED"), True),
        (Expected("HEALTHY"), job(*FAULT, status="FAULTED", losses=MOST_REQUEUES), True),
        (Expected("HEALTHY"), job(*FAULT, status="FAULTED", losses=MOST_REQUEUES - 1), False),
        (Expected("HEALTHY"), job(*EVICT, status="EVICTED"), False),
        (Expected("HEALTHY", is_evictable=True), job(*EVICT, status="EVICTED"), True),
        (Expected("FAULTED"), job(*DONE), False),
        (Expected("TERMINATED", operator_kills=1), job(*DONE), False),
    ],
)
def test_each_job_ends_as_its_script_says(expected: Expected, found: Job, is_right: bool) -> None:
    wrong = invariants.check_jobs({JOB: expected}, {JOB: found})
    assert (wrong == []) == is_right


# Operators and their marks


@pytest.fixture
def store(tmp_path: Path) -> PayloadStore:
    return PayloadStore(tmp_path / "payloads")


def sealed_payload(store: PayloadStore, *operators: str) -> uuid.UUID:
    folder = store.create()
    for operator in operators:
        (folder.open_outputs(operator) / "file").write_text("voxels")
        folder.seal_outputs(operator, "digest")
    return folder.id


def operator(name: str, detail: OperatorPhase) -> JobOperator:
    return JobOperator(job_id=JOB, name=name, position=0, status=detail.status, detail=detail)


def test_outputs_that_are_right(store: PayloadStore) -> None:
    folder = store.folder(sealed_payload(store, "a", "b"))
    rows = [operator("a", OperatorPhase.COMPLETED), operator("b", OperatorPhase.CACHED)]
    assert invariants.check_operators(job(*DONE), rows, folder) == []
    rows = [operator("a", OperatorPhase.COMPLETED), operator("c", OperatorPhase.FAILED)]
    assert invariants.check_operators(job(*FAULT, status="FAULTED"), rows, folder) == []


def test_outputs_that_are_wrong(store: PayloadStore) -> None:
    folder = store.folder(sealed_payload(store, "a"))
    changed = folder.operator_folder("a") / "file"
    changed.chmod(0o600)
    changed.write_text("others")
    folder.open_outputs("c", attempt=2)
    rows = [
        operator("a", OperatorPhase.COMPLETED),
        operator("b", OperatorPhase.COMPLETED),
        operator("c", OperatorPhase.RUNNING),
    ]
    wrong = invariants.check_operators(job(*DONE), rows, folder)
    assert [line.rpartition(": ")[2] for line in wrong] == [
        "1 files are not what was sealed",
        "it is Completed, and nothing is sealed",
        "it is Running, and the job completed",
        "it runs, and the job is over",
        "the partial folder .c.2.partial is left",
    ]


def test_marks_that_are_right(tmp_path: Path) -> None:
    lines = [f"begin {JOB} a 10", f"begin {JOB} a 20", f"end {JOB} a 30", f"begin {OTHER} a 50"]
    (tmp_path / "marks").write_text("\n".join(lines) + "\n")
    marks = invariants.read_marks(tmp_path)
    assert marks[0] == Mark("begin", JOB, "a", 10)
    assert invariants.check_marks(marks, {(JOB, "a"): 40}) == []
    assert invariants.read_marks(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("marks", "problem"),
    [
        ([Mark("begin", JOB, "a", 10), Mark("end", JOB, "a", 30), Mark("begin", JOB, "a", 50)], "after its outputs"),
        ([Mark("begin", JOB, "a", 10), Mark("overlap", JOB, "a", 11), Mark("end", JOB, "a", 30)], "twice at once"),
        ([Mark("begin", JOB, "a", 10)], "never ran to its end"),
    ],
)
def test_marks_that_are_wrong(marks: list[Mark], problem: str) -> None:
    (wrong,) = invariants.check_marks(marks, {(JOB, "a"): 40})
    assert problem in wrong


def test_the_moment_of_a_seal_is_the_folders(store: PayloadStore) -> None:
    before = datetime.now(UTC).timestamp() - 0.05  # the file system's clock is coarser
    found = job(*DONE, payload_id=sealed_payload(store, "a"))
    store.folder(found.payload_id).open_outputs("b")
    sealed = invariants.seals([found], store)
    assert list(sealed) == [(JOB, "a")]
    assert before * 1e9 <= sealed[JOB, "a"] <= datetime.now(UTC).timestamp() * 1e9


# Prefect


def flow_run(job_id: uuid.UUID | None, state: str) -> dict[str, object]:
    return {"id": "1", "name": "run", "state_type": state, "parameters": {"job_id": str(job_id)} if job_id else {}}


def test_flow_runs() -> None:
    rows = {JOB: job(*DONE)}
    assert invariants.check_flow_runs([flow_run(JOB, "COMPLETED")], rows) == []
    for runs, problem in (
        ([flow_run(JOB, "RUNNING")], "is RUNNING, and the job ended HEALTHY"),
        ([flow_run(JOB, "COMPLETED"), flow_run(None, "COMPLETED")], "is no job's"),
        ([], "has no flow run"),
    ):
        (wrong,) = invariants.check_flow_runs(runs, rows)
        assert problem in wrong


# What is left on the machine


@dataclass(frozen=True)
class Records:
    """A database with one stopped job and its payload."""

    engine: sa.Engine
    store: PayloadStore
    job: Job


@pytest.fixture
def records(database_url: str, store: PayloadStore) -> Iterator[Records]:  # noqa: F811
    engine = database.connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE leases, nodes, job_operators, jobs, pipelines, payloads"))
    pipeline = pipelines.create_pipeline(engine, name="p", definition="", plan={"name": "p"})
    payload = payloads.create_payload(engine, payload_id=store.create().id)
    made = jobs.create_job(
        engine, name="j", pipeline_id=pipeline.id, payload_id=payload.id, operators=["a"], runtime="process",
        timeout_s=600,
    )  # fmt: skip
    yield Records(engine, store, jobs.cancel_job(engine, made.id))
    engine.dispose()


def test_rows_that_are_left(records: Records) -> None:
    assert invariants.find_rows(records.engine) == []
    with records.engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO leases (id, job_id, operator, tenant, priority, amounts, owner, state, asked, limit_s) "
                "VALUES (gen_random_uuid(), :job, 'a', 'default', 2, '{}', gen_random_uuid(), 'WAITING', now(), 1)"
            ),
            {"job": records.job.id},
        )
        connection.execute(sa.text("UPDATE jobs SET history_due = true"))
    assert [line.split()[1] for line in invariants.find_rows(records.engine)] == ["lease", "history"]


def test_files_that_are_left(records: Records) -> None:
    rows = {records.job.id: records.job}
    assert invariants.find_files(records.engine, records.store, rows) == []
    stranger = records.store.create()
    records.store.folder(records.job.payload_id).open_outputs("a")
    wrong = invariants.find_files(records.engine, records.store, rows)
    assert [line.rpartition(": ")[2] for line in wrong] == [
        "the partial folder .a.1.partial is left",
        f"the payload folder {stranger.id.hex} is no job's",
    ]


def test_volumes_that_are_left(tmp_path: Path) -> None:
    (tmp_path / f"{OTHER}.0").mkdir()
    assert invariants.find_volumes([JOB], tmp_path) == []
    (tmp_path / f"{JOB}.1").mkdir()
    (tmp_path / f"{JOB}.1.json").write_text("{}")
    assert invariants.find_volumes([JOB], tmp_path) == [
        f"the FastIO volume {JOB}.1 is left",
        f"the FastIO volume {JOB}.1.json is left",
    ]


def test_operators_that_are_left(tmp_path: Path) -> None:
    assert invariants.find_operators(tmp_path) == []
    home = tmp_path / "operators" / "0123" / "home"
    home.mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], cwd=home, stdin=subprocess.PIPE)
    try:
        eventually(lambda: processes_below(tmp_path))
        wrong = invariants.find_operators(tmp_path)
    finally:
        process.communicate()
    assert wrong[0] == "the launcher's 0123 is left"
    assert wrong[1].startswith(f"process {process.pid} is left")
    assert len(wrong) == 2


def test_containers_that_are_left() -> None:
    class Engine:
        """As the SDK lists them."""

        def containers(self, *, all: bool) -> list[dict[str, object]]:  # noqa: A002
            assert all
            return [{"Id": "0" * 64, "Labels": {"job": str(JOB)}}, {"Id": "1" * 64, "Labels": {"job": str(OTHER)}}]

    assert invariants.find_containers(Engine(), [JOB], "job") == [f"container {'0' * 12} of job {JOB} is left"]


def test_what_the_engine_tells_of_containers_becomes_marks() -> None:
    taken = ContainerStory()

    def event(action: str, identity: str, at_ns: int, **facts: str) -> None:
        labels = {JOB_LABEL: str(JOB), OPERATOR_LABEL: "a"} | facts
        taken.take({"Action": action, "timeNano": at_ns, "Actor": {"ID": identity, "Attributes": labels}})

    event("start", "1", 10)
    event("die", "1", 20, exitCode="137")
    event("start", "2", 30)
    event("start", "3", 40)
    event("die", "2", 50, exitCode="0")
    taken.take({"Action": "start", "timeNano": 60, "Actor": {"ID": "4", "Attributes": {}}})
    assert [(mark.word, mark.at_ns) for mark in taken.marks] == [
        ("begin", 10),
        ("begin", 30),
        ("overlap", 40),
        ("begin", 40),
        ("end", 50),
    ]


# The jobs themselves, and who is killed


@pytest.mark.parametrize("image", [None, "registry.example/python:3.11"])
@pytest.mark.parametrize("kind", workload.KINDS, ids=lambda kind: kind.name)
def test_every_kind_of_job_can_be_compiled(kind: workload.Kind, image: str | None, tmp_path: Path) -> None:
    content = kind.definition(tmp_path, image).encode()
    plan = compile_pipeline(content, source="soak.yaml", root=tmp_path).require_plan()
    assert [step.name for step in plan.operators] == list(kind.operators)
    assert yaml.safe_load(content)["name"] == plan.name
    assert all(step.container.reference == (image or "soak/marking:latest") for step in plan.operators)


def test_the_marking_operator_marks_what_it_does(tmp_path: Path) -> None:
    folder, payload, out = tmp_path / "marks", tmp_path / "in", tmp_path / "out"
    for made in (folder, payload, out):
        made.mkdir()
    (payload / "slice").write_text("voxels\n")
    manifest = tmp_path / "io.json"
    entries = {"inputs": [{"path": str(payload), "from": ""}], "outputs": [{"path": str(out)}]}
    manifest.write_text(json.dumps({"job_id": str(JOB), "stage": "a"} | entries))

    def run(script: str) -> int:
        environment = {"CLARA_IO_MANIFEST": str(manifest), "MARKS": str(folder), "SCRIPT": script}
        return subprocess.run([sys.executable, "-S", workload.PROGRAM], env=environment, check=False).returncode

    assert run("copy") == 0
    assert run("fail:3") == 3
    assert (out / "slice").read_text() == "voxels\na\n"
    assert [mark.word for mark in invariants.read_marks(folder)] == ["begin", "end", "begin"]
    environment = {"CLARA_IO_MANIFEST": str(manifest), "MARKS": str(folder), "SCRIPT": "hang"}
    hanging = subprocess.Popen([sys.executable, "-S", workload.PROGRAM], env=environment)
    eventually(lambda: len(invariants.read_marks(folder)) == 4)
    assert run("copy") == 0
    hanging.kill()
    hanging.wait()
    assert "overlap" in [mark.word for mark in invariants.read_marks(folder)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(folder: str, **environment: str) -> subprocess.Popen[bytes]:
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-S", "-c", "input()", "marking_operator"]
        process = subprocess.Popen(command, cwd=place, stdin=subprocess.PIPE, env=environment)
        started.append(process)
        eventually(lambda: process.pid in {found.pid for found in processes_below(place)})
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_only_this_platforms_operators_are_targets(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    mark = uuid.uuid4().hex
    machine = Machine(load_settings(data_dir=tmp_path / "mine"))
    assert machine.kill_one("operator", random.Random(0)) is None  # noqa: S311
    start("other/operators", **{MARK: mark, "CLARA_JOB_ID": str(JOB)})
    start("mine/operators")
    own = start("mine/operators", **{MARK: mark, "CLARA_JOB_ID": str(JOB)})
    (target,) = machine.targets("operator")
    assert (target.name, target.job_id) == (f"operator {own.pid}", JOB)
    killed = machine.kill_one("operator", random.Random(0))  # noqa: S311
    assert killed is not None
    assert killed.name == target.name
    assert own.wait() == -9
