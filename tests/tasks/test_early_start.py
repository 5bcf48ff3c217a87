"""Operators that start before their inputs are there: quicker, never in the way, never a reason to fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import psutil
import pytest
import sqlalchemy as sa
from job_fixture import Bench, PlainDesk, lose, until
from tiny.pipelines import scripted

from clara_flow.infra.launchers.docker import JOB_LABEL, DockerLauncher
from clara_flow.records.state_machine import OperatorPhase
from clara_flow.tasks.early_start import may_start_early
from clara_flow.tasks.job_context import CANCELLED, JobContext


def gated(bench: Bench, name: str = "a", **keys: Any) -> dict[str, Any]:
    """An operator that runs until `open_gate`."""
    return scripted(name, script=f"say:up gate:{bench.source}/go copy", **keys)


def open_gate(bench: Bench) -> None:
    (bench.source / "go").touch()


def preparing(*upstreams: str, prepare: str = "", **keys: Any) -> dict[str, Any]:
    operator = scripted("p", *upstreams, **keys)
    operator["container"] = {"image": "test/preparing"}
    operator["variables"]["PREPARE"] = prepare
    return operator


def prepared(job: JobContext) -> dict[str, Any]:
    """What its driver reported in prepare; {} before."""
    report = job.payload.report_folder("p") / "prepared.json"
    return json.loads(report.read_text()) if report.exists() else {}


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_it_prepares_while_its_upstream_runs(bench: Bench) -> None:
    job = bench.job(gated(bench), preparing("a"))
    running = asyncio.create_task(bench.run(job))
    await until(lambda: prepared(job))
    assert prepared(job)["had_input"] is False
    assert bench.row(job, "a").detail is OperatorPhase.RUNNING
    assert bench.row(job, "p").detail is OperatorPhase.PENDING
    pid = prepared(job)["pid"]
    open_gate(bench)
    assert await running == {"a": "Completed", "p": "Completed"}
    assert (job.payload.operator_folder("p") / "aone.txt").read_text() == "1\na\nprepared\n"
    assert prepared(job)["pid"] == pid  # it was the same process
    row = bench.row(job, "p")
    assert (row.detail, row.attempt, row.exit_code) == (OperatorPhase.COMPLETED, 1, 0)
    assert row.run_time_s is not None
    assert row.run_time_s < 5  # from the go on, not from the launch
    assert bench.desk.asked == [("a", "", False), ("p", "", True)]
    assert not (job.payload.control_folder("p") / "go").exists()


async def test_its_gpus_are_leased_when_it_begins_to_work(bench: Bench) -> None:
    bench.desk = PlainDesk(gpus=())
    operator = preparing("a", requests={"cpu": 1, "memory": 256, "gpu": 1})
    job = bench.job(gated(bench), operator)
    running = asyncio.create_task(bench.run(job))
    await until(lambda: prepared(job))
    open_gate(bench)
    await until(lambda: bench.row(job, "p").detail is OperatorPhase.WAITING)
    assert bench.desk.asked[-1] == ("p", "gpu", False)
    await bench.desk.add(gpus=("GPU-7",))
    assert await running == {"a": "Completed", "p": "Completed"}
    assert (job.payload.operator_folder("p") / "gpus").read_text() == "GPU-7"
    assert bench.desk.gpus == ["GPU-7"]


async def test_it_ends_when_its_upstream_fails(bench: Bench) -> None:
    job = bench.job(scripted("a", script=f"gate:{bench.source}/go fail:3"), preparing("a"))
    running = asyncio.create_task(bench.run(job))
    await until(lambda: prepared(job))
    open_gate(bench)
    assert await running == {"a": "Failed", "p": "Skipped"}
    assert is_gone(prepared(job)["pid"])
    assert bench.row(job, "p").attempt == 0


async def test_without_room_it_starts_the_ordinary_way(bench: Bench) -> None:
    bench.desk.lets_early = False
    job = bench.job(gated(bench), preparing("a"))
    running = asyncio.create_task(bench.run(job))
    await until(lambda: ("p", "", True) in bench.desk.asked)
    open_gate(bench)
    assert await running == {"a": "Completed", "p": "Completed"}
    assert prepared(job)["had_input"] is True
    assert bench.desk.asked[-1] == ("p", "", False)


async def test_one_that_ends_before_its_inputs_are_there_is_started_again(bench: Bench) -> None:
    job = bench.job(gated(bench), preparing("a", prepare="fail"))
    running = asyncio.create_task(bench.run(job))
    await until(lambda: prepared(job) and is_gone(prepared(job)["pid"]))
    open_gate(bench)
    assert await running == {"a": "Completed", "p": "Completed"}
    assert prepared(job)["had_input"] is True
    assert bench.row(job, "p").attempt == 1


async def test_it_gives_way_to_its_upstreams_next_attempt(bench: Bench) -> None:
    """Or it might hold what that needs, and both wait for ever."""
    bench.desk = PlainDesk(cpu=2)
    job = bench.job(gated(bench, retries=1), preparing("a"))
    running = asyncio.create_task(bench.run(job))
    await until(lambda: prepared(job))
    pid = prepared(job)["pid"]
    await bench.desk.add(cpu=-1)  # somebody else's from now on
    lose(job, "a")
    await until(lambda: bench.row(job, "a").attempt == 2)
    assert is_gone(pid)
    await bench.desk.add(cpu=1)
    open_gate(bench)
    assert await running == {"a": "Completed", "p": "Completed"}


async def test_a_cancel_ends_it(bench: Bench) -> None:
    job = bench.job(gated(bench), preparing("a"))
    running = asyncio.create_task(bench.run(job))
    await until(lambda: prepared(job))
    job.request_stop(CANCELLED)
    assert await running == {"a": "Cancelled", "p": "Skipped"}
    assert is_gone(prepared(job)["pid"])


async def test_a_yielding_job_takes_it_back(bench: Bench) -> None:
    job = bench.job(gated(bench), preparing("a"))
    running = asyncio.create_task(bench.run(job))
    await until(lambda: prepared(job))
    job.yielding.set()
    open_gate(bench)
    assert await running == {"a": "Completed", "p": "Preempted"}
    assert is_gone(prepared(job)["pid"])
    again = bench.again(job)
    assert await bench.run(again) == {"a": "Cached", "p": "Completed"}
    assert bench.row(again, "p").attempt == 1


async def test_its_own_time_counts_from_the_go(bench: Bench) -> None:
    slow = scripted("p", "a", script="hang", timeout=1) | {"early-start": True}
    slow["variables"] |= {"PYTHONPATH": str(bench.source)}
    (bench.source / "scripted_operator.py").write_text(
        "import json, os, select, signal, sys\n"
        "manifest = json.load(open(os.environ['CLARA_IO_MANIFEST']))\n"
        "if 'go' in manifest:\n"
        "    open(manifest['report_dir'] + '/prepared.json', 'w').write('{\"pid\": %d}' % os.getpid())\n"
        "    open(manifest['go']).readline()\n"
        "    signal.pause()\n"
        "from pathlib import Path\n"
        "while not Path(os.environ['SCRIPT']).exists(): select.select([], [], [], 0.02)\n"
        "(Path(manifest['outputs'][0]['path']) / 'out').touch()\n"
    )
    first = gated(bench)
    first["variables"] |= {"PYTHONPATH": str(bench.source), "SCRIPT": f"{bench.source}/go"}
    job = bench.job(first, slow)
    running = asyncio.create_task(bench.run(job))
    await until(lambda: prepared(job))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(running), 1.5)  # longer than its limit, and it is still there
    open_gate(bench)
    assert await running == {"a": "Completed", "p": "TimedOut"}
    assert "ran past its limit of 1 s" in bench.row(job, "p").message


async def test_who_may_start_early(bench: Bench) -> None:
    def allowed(operator: dict[str, Any], **changes: Any) -> bool:
        job = bench.job(scripted("a"), operator, **changes)
        return may_start_early(job, job.plan.operators[-1])

    gpu = {"requests": {"cpu": 1, "gpu": 1}}
    share = {"requests": {"cpu": 1, "gpu-memory": 1}}
    in_docker = {"launcher": DockerLauncher("unix:///nowhere")}
    off = {"settings": bench.settings.model_copy(update={"early_start": False})}
    assert allowed(preparing("a"))
    assert allowed(preparing("a", **gpu))
    assert allowed(scripted("b", "a") | {"early-start": True})
    assert allowed(preparing("a"), **in_docker)
    assert not allowed(scripted("b", "a"))  # nothing says that its program can
    assert not allowed(preparing())  # nothing to wait for
    assert not allowed(preparing("a") | {"early-start": False})
    assert not allowed(preparing("a", **gpu), **in_docker)  # a container's devices are fixed when it starts
    assert not allowed(preparing("a", **share), **in_docker)
    assert not allowed(preparing("a"), **off)


@pytest.fixture
def containers(tmp_path: Path, engine: sa.Engine, docker_engine: str) -> Iterator[Bench]:
    """Jobs of containers."""
    launcher = DockerLauncher(docker_engine)
    with closing(launcher.api):
        bench = Bench(tmp_path, engine, launcher)
        yield bench
        assert bench.desk.is_whole()


WAITS = """
import pathlib, select
while not pathlib.Path("/clara/report/go").exists():
    select.select([], [], [], 0.02)
pathlib.Path("/out/first").write_text(pathlib.Path("/in/one.txt").read_text())
"""
SECOND = """
import json, os, pathlib
manifest = json.load(open("/clara/io.json"))
print("prepared", os.listdir("/in0"), flush=True)
json.loads(open(manifest["go"]).readline())
text = pathlib.Path("/in0/first").read_text()
try:
    pathlib.Path("/in0/first").write_text("changed")
except OSError as error:
    text += type(error).__name__
pathlib.Path("/out/second").write_text(text)
"""


@pytest.mark.docker
async def test_a_container_gets_its_inputs_when_they_are_sealed(containers: Bench, base_image: str) -> None:
    bench = containers
    image, _, tag = base_image.partition(":")

    def container(name: str, *command: str, **keys: Any) -> dict[str, Any]:
        return scripted(name, *keys.pop("reads", ()), **keys) | {
            "container": {"image": image, "tag": tag, "command": list(command)}
        }

    job = bench.job(
        container("a", "python3", "-u", "-c", WAITS),
        container("p", "python3", "-u", "-c", SECOND, reads=("a",), **{"early-start": True}),
    )
    running = asyncio.create_task(bench.run(job))
    await until(lambda: "prepared []" in log_of(job, "p"))
    api = docker.APIClient(base_url=bench.launcher.base_url)  # type: ignore[attr-defined]
    with closing(api):
        await until(lambda: len(api.containers(filters={"label": f"{JOB_LABEL}={job.job.id}"})) == 2)
    (job.payload.report_folder("a") / "go").touch()
    assert await running == {"a": "Completed", "p": "Completed"}
    assert (job.payload.operator_folder("p") / "second").read_text() == "1\nOSError"
    assert job.payload.verify("a") == []
    assert not (job.payload.control_folder("p") / "inputs").exists()


def log_of(job: JobContext, operator: str) -> str:
    path = job.payload.log_path(operator)
    return path.read_text() if path.exists() else ""
