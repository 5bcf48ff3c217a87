"""The set of warm runners with real processes: it survives whatever becomes of them, and they never outlive it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from waiting import eventually

from clara_flow.infra.pool.runners import ORDER_BYTES, RunnerEnd, RunnerSet

TESTS = Path(__file__).parents[2]
LIMIT_S = 60.0


class Ground:
    """A folder where jobs leave files, and sets of runners over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ends: list[RunnerEnd] = []
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            "RUNNER_FOLDER": str(folder),
            "ABANDON_S": "0.5",
        }
        self.sets: list[RunnerSet] = []

    def start(self, **changes: Any) -> RunnerSet:
        values = {
            "program": "tiny.runner_program",
            "size": 1,
            "most": 2,
            "jobs_per_runner": 100,
            "memory_limit_mib": 256,
            "environment": self.environment,
            "log_path": self.folder / "log",
            "on_end": self.ends.append,
        }
        made = RunnerSet(**{**values, **changes})
        self.sets.append(made)
        made.start()
        return made

    def text(self, job: uuid.UUID, suffix: str = "") -> str:
        """What a job left, as soon as it is there."""
        path = (self.folder / str(job)).with_suffix(suffix)
        eventually(path.exists)
        return path.read_text()

    def told(self, job: uuid.UUID) -> dict[str, Any]:
        return json.loads(self.text(job))

    def ours(self) -> list[psutil.Process]:
        """Living processes of these sets."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                is_ours = process.environ().get("RUNNER_FOLDER") == str(self.folder)
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def end_of(self, job: uuid.UUID | None) -> RunnerEnd:
        eventually(lambda: any(end.job_id == job for end in self.ends), within_s=15)
        return next(end for end in self.ends if end.job_id == job)


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """Nothing may be left of any set when the test is over."""
    (tmp_path / "log").touch()
    ground = Ground(tmp_path)
    yield ground
    for runners in ground.sets:
        runners.stop(0)
    eventually(lambda: ground.ours() == [])


def submit(runners: RunnerSet, do: str, limit_s: float = LIMIT_S, **facts: Any) -> uuid.UUID:
    job = uuid.uuid4()
    runners.run(job, facts={"do": do, **facts}, limit_s=limit_s)
    return job


def idle(runners: RunnerSet) -> list[int]:
    return [status.pid for status in runners.runners() if status.state == "idle"]


def an_idle_one(runners: RunnerSet) -> int:
    eventually(lambda: idle(runners))
    return idle(runners)[0]


def test_one_runner_does_many_jobs_in_turn(ground: Ground) -> None:
    runners = ground.start(most=1)
    stories = []
    for number in range(3):
        an_idle_one(runners)
        stories.append(ground.told(submit(runners, "tell", number=number)))
    assert [story["facts"]["number"] for story in stories] == [0, 1, 2]
    assert {story["pid"] for story in stories} == {an_idle_one(runners)}
    (status,) = runners.runners()
    assert (status.state, status.job_id, status.jobs_done) == ("idle", None, 3)
    assert 10 < status.rss_mib < 256
    assert status.since.utcoffset() is not None
    assert ground.ends == []


def test_runners_share_nothing_that_they_should_not(ground: Ground) -> None:
    runners = ground.start(size=0, most=3)
    waiting = [submit(runners, "wait") for _ in range(2)]
    for job in waiting:
        ground.text(job)
    story, other = ground.told(submit(runners, "tell")), None
    for job in waiting:
        runners.stop_job(job, "enough")
        ground.text(job, ".stopped")
    eventually(lambda: len(idle(runners)) == 3)
    others = [ground.told(submit(runners, "tell")) for _ in range(3)]
    other = next(entry for entry in others if entry["pid"] != story["pid"])
    assert story["session"] == story["pid"]
    assert story["random"] != other["random"]
    assert story["stdin"] == os.devnull
    assert story["stdout"] == str(ground.folder / "log")
    assert story["sigint_ignored"]
    assert story["threads"] == ["MainThread", "watchdog"]
    # Its own socket, that of the watchdog and the pair of its event loop, however many siblings were there before.
    assert story["sockets"] == other["sockets"] == 4


def test_a_job_waits_for_a_runner_and_there_are_never_more_than_most(ground: Ground) -> None:
    runners = ground.start(size=1, most=2)
    jobs = [submit(runners, "wait") for _ in range(4)]
    for job in jobs[:2]:
        ground.text(job)
    for job in jobs:
        assert len(runners.runners()) <= 2
        assert not (ground.folder / str(jobs[3])).exists() or job in jobs[2:]
        ground.text(job)
        assert runners.stop_job(job, "enough")
        assert ground.text(job, ".stopped") == "enough"
    eventually(lambda: len(idle(runners)) == 2)


def test_a_job_is_taken_once(ground: Ground) -> None:
    runners = ground.start(most=1)
    job, behind = submit(runners, "wait"), submit(runners, "tell")
    ground.text(job)
    for again in (job, behind):
        runners.run(again, facts={"do": "fail"}, limit_s=LIMIT_S)
    runners.stop_job(job, "enough")
    ground.told(behind)
    eventually(lambda: [status.jobs_done for status in runners.runners()] == [2])
    assert ground.ends == []


def test_stopping_jobs(ground: Ground) -> None:
    runners = ground.start(most=1)
    running, waiting = submit(runners, "wait"), submit(runners, "wait")
    ground.text(running)
    assert runners.stop_job(waiting, "not wanted")
    assert not runners.stop_job(waiting, "not wanted")
    assert not runners.stop_job(uuid.uuid4(), "unknown")
    assert runners.stop_job(running, "not wanted either")
    assert ground.text(running, ".stopped") == "not wanted either"
    ground.told(submit(runners, "tell"))
    assert not (ground.folder / str(waiting)).exists()


def test_facts_that_are_too_large_are_refused(ground: Ground) -> None:
    with pytest.raises(ValueError, match="are the limit"):
        submit(ground.start(), "tell", text="x" * ORDER_BYTES)


@pytest.mark.parametrize(
    ("do", "facts", "reason"),
    [
        ("leave_suddenly", {}, "it ended with exit status 3"),
        ("fail", {}, "its handler failed: ValueError: no such luck"),
        ("hang", {"limit_s": 0.3}, "its job took longer than 0.3 s"),
        ("leak", {"mib": 300, "wait": True}, "its memory grew to"),
    ],
)
def test_a_bad_job_takes_only_its_own_runner_with_it(
    ground: Ground, do: str, facts: dict[str, Any], reason: str
) -> None:
    runners = ground.start(size=1, most=2, memory_limit_mib=64)
    good = submit(runners, "wait")
    ground.text(good)
    bad = submit(runners, do, **facts)
    end = ground.end_of(bad)
    assert reason in end.reason
    assert end.pid not in {process.pid for process in ground.ours()}
    if do == "hang":
        child = int(ground.text(bad))
        eventually(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
    ground.told(submit(runners, "tell"))  # on the one that replaced it
    runners.stop_job(good, "enough")
    assert ground.text(good, ".stopped") == "enough"
    assert [entry.job_id for entry in ground.ends] == [bad]


def test_a_killed_runner_is_told_and_replaced(ground: Ground) -> None:
    runners = ground.start()
    job = submit(runners, "wait")
    pid = int(ground.text(job))
    os.kill(pid, signal.SIGKILL)
    assert ground.end_of(job) == RunnerEnd(job_id=job, pid=pid, reason="it was killed by signal 9")
    idle_one = an_idle_one(runners)
    os.kill(idle_one, signal.SIGKILL)
    assert ground.end_of(None).pid == idle_one
    ground.told(submit(runners, "tell"))


def test_sigterm_has_a_runner_abandon_its_job(ground: Ground) -> None:
    runners = ground.start()
    job = submit(runners, "wait")
    os.kill(int(ground.text(job)), signal.SIGTERM)
    assert ground.end_of(job).reason == "it ended with exit status 0"
    assert (ground.folder / "abandoned").exists()


def test_a_runner_is_replaced_after_its_number_of_jobs(ground: Ground) -> None:
    runners = ground.start(most=1, jobs_per_runner=2)
    first = an_idle_one(runners)
    pids = []
    for _ in range(3):
        an_idle_one(runners)
        pids.append(ground.told(submit(runners, "tell"))["pid"])
    assert pids[:2] == [first, first] != pids[1:]
    assert ground.end_of(None) == RunnerEnd(job_id=None, pid=first, reason="replaced after 2 jobs")
    assert (ground.folder / f"closed-{first}").exists()


def test_a_runner_that_leaks_is_replaced_after_its_job(ground: Ground) -> None:
    runners = ground.start(memory_limit_mib=64)
    ground.text(submit(runners, "leak", mib=100))
    assert "replaced with 1" in ground.end_of(None).reason
    ground.told(submit(runners, "tell"))


def test_a_killed_zygote_takes_no_runner_with_it(ground: Ground) -> None:
    runners = ground.start(size=1, most=3)
    job = submit(runners, "wait")
    pid = int(ground.text(job))
    before = runners.zygote_pid
    os.kill(before or 0, signal.SIGKILL)
    eventually(lambda: runners.zygote_pid not in (None, before))
    assert psutil.Process(pid).is_running()
    runners.stop_job(job, "go on")
    assert ground.text(job, ".stopped") == "go on"
    more = [submit(runners, "wait") for _ in range(2)]
    for entry in more:
        ground.text(entry)
    orphan = next(status for status in runners.runners() if status.pid == pid or status.job_id in more)
    os.kill(orphan.pid, signal.SIGKILL)
    assert ground.end_of(orphan.job_id).reason.startswith("it ")


def test_a_handler_that_cannot_open_is_tried_again(ground: Ground) -> None:
    (ground.folder / "cannot-open").touch()
    runners = ground.start()
    job = submit(runners, "tell")
    eventually(lambda: len(ground.ends) >= 2)
    assert {end.job_id for end in ground.ends} == {None}
    (ground.folder / "cannot-open").unlink()
    ground.told(job)
    assert "there is no database" in (ground.folder / "log").read_text()


def test_a_program_that_does_not_start_is_tried_again(ground: Ground) -> None:
    program = ground.folder / "late_program.py"
    program.write_text("raise SystemExit(1)\n")
    path = os.pathsep.join([ground.environment["PYTHONPATH"], str(ground.folder)])
    runners = ground.start(program="late_program", environment={**ground.environment, "PYTHONPATH": path})
    seen: set[int | None] = set()
    eventually(lambda: seen.add(runners.zygote_pid) or len(seen - {None}) >= 2)  # type: ignore[func-returns-value]
    program.write_text("import runpy\nrunpy.run_module('tiny.runner_program', run_name='__main__')\n")
    ground.told(submit(runners, "tell"))


def test_a_program_with_threads_is_refused(ground: Ground) -> None:
    program = ground.folder / "threaded.py"
    program.write_text(
        "import threading\nfrom clara_flow.infra.pool import zygote\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\nzygote.main(object)\n"
    )
    path = os.pathsep.join([ground.environment["PYTHONPATH"], str(ground.folder)])
    ground.start(program="threaded", environment={**ground.environment, "PYTHONPATH": path})
    eventually(lambda: "must not start threads" in (ground.folder / "log").read_text())


def test_stop_lets_jobs_end_and_abandons_the_rest(ground: Ground) -> None:
    runners = ground.start(size=0, most=2)
    ends, goes_on = submit(runners, "wait"), submit(runners, "wait")
    for job in (ends, goes_on):
        ground.text(job)
    behind = submit(runners, "tell")
    waiting: list[uuid.UUID] = []
    stopping = threading.Thread(target=lambda: waiting.extend(runners.stop(1.0)))
    stopping.start()
    runners.stop_job(ends, "end yourself")
    stopping.join()
    assert waiting == [behind]
    assert not runners.is_alive()
    assert (ground.folder / str(ends)).with_suffix(".stopped").read_text() == "end yourself"
    assert (ground.folder / "abandoned").exists()
    assert {end.job_id: end.reason for end in ground.ends} == {None: "the worker stops", goes_on: "the worker stops"}
    assert ground.ours() == []
    with pytest.raises(RuntimeError, match="was stopped"):
        submit(runners, "tell")


WORKER = """
import json, sys, uuid
from pathlib import Path
from clara_flow.infra.pool.runners import RunnerSet
values, jobs = json.loads(sys.argv[1])
runners = RunnerSet(**values, log_path=Path(sys.argv[2]), on_end=print)
runners.start()
for job, do in jobs:
    runners.run(uuid.UUID(job), facts={"do": do}, limit_s=60)
sys.stdin.read()
"""


@pytest.mark.parametrize("victims", ["worker", "worker and zygote", "worker and runner"])
def test_nothing_outlives_a_killed_worker(ground: Ground, victims: str) -> None:
    wait, hang = uuid.uuid4(), uuid.uuid4()
    values = {
        "program": "tiny.runner_program",
        "size": 2,
        "most": 4,
        "jobs_per_runner": 9,
        "memory_limit_mib": 256,
        "environment": ground.environment,
    }
    arguments = json.dumps([values, [[str(wait), "wait"], [str(hang), "hang"]]])
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, arguments, str(ground.folder / "log")],
        stdin=subprocess.PIPE,
        env=ground.environment,
    )
    pid = int(ground.text(wait))
    ground.text(hang)
    eventually(lambda: len(ground.ours()) == 7)  # worker, zygote, four runners, and the child of the hanging job
    zygote = next(entry for entry in psutil.Process(worker.pid).children())
    worker.kill()
    if victims.endswith("zygote"):
        zygote.kill()
    if victims.endswith("runner"):
        os.kill(pid, signal.SIGKILL)
    worker.wait()
    assert worker.stdin is not None
    worker.stdin.close()
    eventually(lambda: ground.ours() == [])
    assert (ground.folder / "abandoned").exists() or victims.endswith("runner")


def test_random_kills_lose_no_job_silently(ground: Ground) -> None:
    """Whatever is killed when: each job ends, or its loss is told; then it is run again, as the platform does."""
    lost: list[uuid.UUID] = []

    def run_again(end: RunnerEnd) -> None:
        if end.job_id is not None:
            lost.append(end.job_id)
            runners.run(end.job_id, facts={"do": "compute"}, limit_s=LIMIT_S)

    runners = ground.start(size=1, most=3, on_end=run_again)
    chance = random.Random(7)  # noqa: S311
    jobs = []
    for _ in range(20):
        jobs += [submit(runners, "compute") for _ in range(4)]
        eventually(lambda: any(status.state == "busy" for status in runners.runners()))
        states = runners.runners()
        assert len(states) <= 3
        victim = chance.choice([*(status.pid for status in states), runners.zygote_pid])
        if victim:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
    eventually(lambda: all((ground.folder / str(job)).exists() for job in jobs), within_s=30)
    assert lost
