"""One operator of a job: attempts, waiting, taking what is sealed, going back to the queue, shared memory."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from job_fixture import Bench, PlainDesk, lose, until
from tiny.pipelines import scripted

from clara_flow.errors import ResourcesNeverFit, ServiceError, StaleOwner
from clara_flow.infra.fastio.volumes import FastIOVolumes
from clara_flow.infra.pool.desk import Grant
from clara_flow.records import jobs
from clara_flow.records.database import connect
from clara_flow.records.state_machine import OperatorPhase
from clara_flow.tasks.job_context import ABANDONED, BROKEN, CANCELLED, TIMED_OUT, JobContext


def log_of(job: JobContext, operator: str) -> str:
    path = job.payload.log_path(operator)
    return path.read_text() if path.exists() else ""


def program(bench: Bench, text: str) -> dict[str, Any]:
    """An operator `a` that runs a line of Python; `fastio` is its shared memory."""
    operator = scripted("a")
    operator["variables"]["PYTHONPATH"] = str(bench.source)
    lines = "import os, pathlib, signal\nfastio = pathlib.Path(os.environ.get('CLARA_FASTIO', ''))\n"
    (bench.source / "scripted_operator.py").write_text(f"{lines}{text}\n")
    return operator


async def test_it_runs_is_sealed_and_recorded(bench: Bench) -> None:
    job = bench.job(scripted("a"), scripted("b", "a"))
    assert await bench.run(job) == {"a": "Completed", "b": "Completed"}
    assert (job.payload.operator_folder("b") / "aone.txt").read_text() == "1\na\nb\n"
    row = bench.row(job, "b")
    assert (row.detail, row.attempt, row.exit_code) == (OperatorPhase.COMPLETED, 1, 0)
    assert row.run_time_s is not None
    assert row.waited_s is not None
    assert bench.desk.asked == [("a", "", False), ("b", "", False)]


async def test_what_it_waits_for_is_recorded_the_latest_last(bench: Bench) -> None:
    bench.desk = PlainDesk(cpu=0)
    bench.desk.reasons = ["waits for cpu", "waits for its turn"]
    job = bench.job(scripted("a"))
    running = asyncio.create_task(bench.run(job))
    await until(lambda: bench.row(job, "a").message == "waits for its turn")
    assert bench.row(job, "a").detail is OperatorPhase.WAITING
    await bench.desk.add(cpu=1)
    assert await running == {"a": "Completed"}
    assert (bench.row(job, "a").waited_s or 0) > 0


async def test_a_failure_is_tried_again_only_when_that_is_asked_for(bench: Bench) -> None:
    job = bench.job(
        scripted("plain", script="fail:3", retries=2),
        scripted("asked", script="fail:3", retries=2, **{"retry-on": ["failed"]}),
    )
    assert await bench.run(job) == {"plain": "Failed", "asked": "Failed"}
    assert (bench.row(job, "plain").attempt, bench.row(job, "asked").attempt) == (1, 3)
    assert [name for name, _, _ in bench.desk.asked].count("asked") == 3
    assert job.failures["asked"].exit_code == 3
    assert list((job.payload.path / "operators").iterdir()) == []


async def test_a_lost_operator_is_tried_again_with_resources_of_its_own(bench: Bench) -> None:
    bench.desk = PlainDesk(cpu=1)
    job = bench.job(scripted("a", script=f"say:up gate:{bench.source}/go copy", retries=1))
    running = asyncio.create_task(bench.run(job))
    await until(lambda: "up" in log_of(job, "a"))
    lose(job, "a")
    await until(lambda: bench.row(job, "a").attempt == 2)
    (bench.source / "go").touch()
    assert await running == {"a": "Completed"}
    assert len(bench.desk.granted) == 2
    assert bench.row(job, "a").detail is OperatorPhase.COMPLETED


async def test_time_and_memory_are_tried_again_when_asked_for(bench: Bench) -> None:
    reasons = {"retry-on": ["timed-out", "out-of-memory"], "retries": 1}
    job = bench.job(scripted("late", script="hang", timeout=1, **reasons), scripted("large", script="hog", **reasons))
    assert await bench.run(job) == {"late": "TimedOut", "large": "OutOfMemory"}
    assert (bench.row(job, "late").attempt, bench.row(job, "large").attempt) == (2, 2)


async def test_attempts_are_counted_over_all_runs_of_a_job(bench: Bench) -> None:
    first = bench.job(scripted("a", script="say:up copy"), scripted("b", "a", script=f"gate:{bench.source}/go copy"))
    running = asyncio.create_task(bench.run(first))
    await until(lambda: bench.row(first, "b").detail is OperatorPhase.RUNNING)
    first.request_stop(ABANDONED)
    assert await running == {"a": "Completed", "b": "Cancelled"}
    assert bench.row(first, "b").detail is OperatorPhase.RUNNING  # it recorded nothing
    sealed = first.payload.sealed("a")
    (bench.source / "go").touch()
    again = bench.again(first)
    assert await bench.run(again) == {"a": "Cached", "b": "Completed"}
    assert (bench.row(again, "a").detail, bench.row(again, "a").attempt) == (OperatorPhase.COMPLETED, 1)
    assert (bench.row(again, "b").detail, bench.row(again, "b").attempt) == (OperatorPhase.COMPLETED, 2)
    assert again.payload.sealed("a") == sealed
    assert [name for name, _, _ in bench.desk.asked].count("a") == 1


async def test_what_was_sealed_just_before_the_crash_is_not_computed_again(bench: Bench) -> None:
    first = bench.job(scripted("a"))
    first.start_clock()
    assert await bench.run(first) == {"a": "Completed"}
    with bench.engine.begin() as connection:  # as if the crash had come between seal and record
        connection.exec_driver_sql("UPDATE job_operators SET detail='Running', status='RUNNING', stopped=NULL")
    again = bench.again(first)
    assert await bench.run(again) == {"a": "Cached"}
    assert bench.row(again, "a").message == "sealed in an earlier run of this job"
    assert len(bench.desk.granted) == 1


async def test_what_another_version_sealed_is_computed_again(bench: Bench) -> None:
    first = bench.job(scripted("a"))
    assert await bench.run(first) == {"a": "Completed"}
    newer = first.catalog.operators["scripted"].model_copy(update={"version": "0.2.0"})
    again = bench.again(first)
    again.catalog.operators["scripted"] = newer
    assert await bench.run(again) == {"a": "Completed"}
    assert bench.row(again, "a").attempt == 2
    assert again.payload.verify("a") == []


async def test_a_yielding_job_begins_no_operator_any_more(bench: Bench) -> None:
    bench.desk = PlainDesk(cpu=1)
    waits = scripted("waits", requests={"cpu": 2, "memory": 128})
    job = bench.job(scripted("a", script=f"say:up gate:{bench.source}/go copy"), waits, scripted("later", "a"))
    running = asyncio.create_task(bench.run(job))
    await until(lambda: "up" in log_of(job, "a") and bench.row(job, "waits").detail is OperatorPhase.WAITING)
    job.yielding.set()
    await until(lambda: job.left_over == ["waits"])
    (bench.source / "go").touch()  # what runs comes to its end
    assert await running == {"a": "Completed", "waits": "Preempted", "later": "Preempted"}
    assert job.left_over == ["waits", "later"]
    await bench.desk.add(cpu=1)
    again = bench.again(job)
    assert await bench.run(again) == {"a": "Cached", "waits": "Completed", "later": "Completed"}
    assert bench.row(again, "waits").attempt == 1


async def test_a_yielding_job_does_not_try_again(bench: Bench) -> None:
    job = bench.job(scripted("a", script="say:up hang", timeout=1, retries=3, **{"retry-on": ["timed-out"]}))
    running = asyncio.create_task(bench.run(job))
    await until(lambda: "up" in log_of(job, "a"))
    job.yielding.set()
    assert await running == {"a": "Preempted"}
    assert bench.row(job, "a").attempt == 1
    assert job.left_over == ["a"]


async def test_a_cancel_ends_waiting_and_deaf_operators_at_once(bench: Bench) -> None:
    bench.desk = PlainDesk(cpu=1)
    deaf = program(bench, "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()")
    job = bench.job(deaf, scripted("b", requests={"cpu": 2, "memory": 128}))
    running = asyncio.create_task(bench.run(job))
    await until(lambda: "deaf" in log_of(job, "a") and bench.row(job, "b").detail is OperatorPhase.WAITING)
    began = time.monotonic()
    job.request_stop(CANCELLED)
    assert await running == {"a": "Cancelled", "b": "Cancelled"}
    assert time.monotonic() - began < 2
    assert bench.row(job, "a").detail is OperatorPhase.CANCELLED


async def test_at_the_jobs_deadline_operators_get_the_long_grace(bench: Bench) -> None:
    """The job's own stop and the operator's limit come in the same instant: both mean that its time is over."""
    job = bench.job(scripted("a", script="say:up hang"))
    running = asyncio.create_task(bench.run(job))
    await until(lambda: "up" in log_of(job, "a"))
    job.request_stop(TIMED_OUT)
    assert await running == {"a": "TimedOut"}


async def test_resources_that_never_fit_fail_the_operator(bench: Bench) -> None:
    class Refusing(PlainDesk):
        async def acquire(self, operator: str, *arguments: Any, **facts: Any) -> Grant:
            raise ResourcesNeverFit(operator, missing={"gpu": 1})

    job = bench.job(scripted("a"), desk=Refusing())
    assert await bench.run(job) == {"a": "Failed"}
    assert "can never run here: the machine lacks 1 gpu" in bench.row(job, "a").message


async def test_who_has_lost_the_job_stops_all_and_writes_nothing(bench: Bench) -> None:
    job = bench.job(scripted("a"), scripted("hangs", script="say:up hang"), scripted("b", "a"))
    taken = bench.again(job)  # while this runner believes that it has it
    with pytest.raises(StaleOwner):
        await bench.run(job)
    assert job.stop_reason == ABANDONED
    assert {row.detail for row in jobs.list_operators(bench.engine, job.job.id)} == {OperatorPhase.PENDING}
    taken.request_stop(CANCELLED)


async def test_an_end_that_cannot_be_recorded_stops_the_job(bench: Bench) -> None:
    hurried = bench.settings.model_copy(update={"database_patience_s": 0.1})
    gated = scripted("a", script=f"say:up gate:{bench.source}/go copy")
    job = bench.job(gated, scripted("hangs", script="say:up hang"), settings=hurried)
    running = asyncio.create_task(bench.run(job))
    await until(
        lambda: {row.detail for row in jobs.list_operators(bench.engine, job.job.id)} == {OperatorPhase.RUNNING}
    )
    job.engine = connect("postgresql://127.0.0.1:1/nowhere")
    (bench.source / "go").touch()
    with pytest.raises(ServiceError, match="cannot be used"):
        await running
    assert job.stop_reason == BROKEN
    assert job.payload.sealed("a") is not None  # whoever goes on with the job finds it


@pytest.fixture
def volumes() -> Iterator[FastIOVolumes]:
    root = Path(f"/dev/shm/clara-flow-test-{uuid.uuid4().hex}")
    yield FastIOVolumes(root)
    assert list(root.iterdir()) == []
    root.rmdir()


async def test_operators_of_a_job_share_its_memory(bench: Bench, volumes: FastIOVolumes) -> None:
    volume = volumes.create("job", 4)
    (volume.path / "block").write_text("voxels")
    script = "(fastio / 'more').write_text((fastio / 'block').read_text() + '!'); os.kill(os.getpid(), signal.SIGKILL)"
    job = bench.job(program(bench, script), fastio=volume)
    assert await bench.run(job) == {"a": "Failed"}
    assert (volume.path / "more").read_text() == "voxels!"
    assert "FastIO" not in bench.row(job, "a").message  # it was killed, but not for want of shared memory
    volume.remove()


@pytest.mark.parametrize("may_mount", [True, False])
async def test_who_overfills_the_jobs_memory_is_told_so(bench: Bench, volumes: FastIOVolumes, may_mount: bool) -> None:
    volumes.may_mount = may_mount
    volume = volumes.create("job", 1)
    script = "(fastio / 'block').write_bytes(bytes(3 * 2**20)); print('written', flush=True); signal.pause()"
    job = bench.job(program(bench, script), fastio=volume)
    assert await bench.run(job) == {"a": "Failed"}
    told = bench.row(job, "a").message
    full = "exited with 1 when the job's FastIO volume of 1 MiB was full"
    overfull = "was stopped: the job's FastIO volume holds more than its 1 MiB"
    assert (full if volume.hard else overfull) in told
    assert "raise `fastio` of the pipeline" in told
    volume.remove()
