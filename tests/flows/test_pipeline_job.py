"""Jobs through the pool: a real worker, a real Prefect server, a real database, real processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from tiny.pipelines import diamond, scripted, write_definition
from waiting import eventually

from clara_flow.deployments.trigger import House, compile_definition, create_job, resume_job
from clara_flow.deployments.watch import JobOutcome, JobWatch, Progress
from clara_flow.errors import InputError, JobFaulted, LauncherUnavailable, ResourcesNeverFit, SettingsError
from clara_flow.infra.gpu.inventory import list_gpus
from clara_flow.records import jobs
from clara_flow.records.models import Job
from clara_flow.records.owner import Owner
from clara_flow.records.state_machine import JobEvent, JobState, JobStatus
from clara_flow.services.prefect_server import api_url

Submit = Callable[..., Job]
CORES = len(os.sched_getaffinity(0))


def run(house: House, job: Job, on_progress: Callable[[Progress], None] = lambda progress: None) -> JobOutcome:
    """Follow a queued job to its end."""
    return JobWatch(house, job.id).follow(on_progress)


class Watcher:
    """Remembers the states that operators were seen in, and calls a function when one gets into a state."""

    def __init__(self, **calls: Callable[[], Any]) -> None:
        self.seen: list[tuple[str, str]] = []
        self.reasons: dict[str, set[str]] = {}
        self.calls = calls

    def __call__(self, progress: Progress) -> None:
        """Take a change."""
        for name, reason in progress.reasons.items():
            self.reasons.setdefault(name, set()).add(reason)
        for row in progress.operators:
            state = (row.name, str(row.detail))
            if state not in self.seen and row.detail != "Pending":
                self.seen.append(state)
                self.calls.get(f"{row.name}_{row.detail}", lambda: None)()

    def ran(self) -> list[str]:
        """Operators that ran, in order."""
        return [name for name, state in self.seen if state == "Running"]


@pytest.fixture
def submit(house: House, input_folder: Path, tmp_path: Path) -> Submit:
    """Create a job of these operators on the input folder."""

    def submit(*operators: dict[str, Any], timeout_s: int | None = None, **keys: Any) -> Job:
        path = write_definition(tmp_path / "tiny.yaml", *operators, **keys)
        compiled = compile_definition(house.settings, path, {})
        return create_job(house, compiled, source=input_folder, runtime="process", timeout_s=timeout_s)

    return submit


def states(outcome: JobOutcome) -> dict[str, str]:
    return {row.name: str(row.detail) for row in outcome.operators}


def prefect(house: House, method: str, path: str, **keys: Any) -> Any:
    answer = httpx.request(method, f"{api_url(house.settings)}{path}", **keys)
    answer.raise_for_status()
    return answer.json()


def task_runs(house: House, outcome: JobOutcome) -> dict[str, Any]:
    wanted = {"flow_runs": {"id": {"any_": [shown(house, outcome.job)["id"]]}}}
    return {run["name"]: run for run in prefect(house, "POST", "/task_runs/filter", json=wanted)}


def shown(house: House, job: Job) -> dict[str, Any]:
    """The job's flow run, as soon as Prefect has been told its end."""
    found: dict[str, Any] = {}

    def is_told() -> bool:
        flow_run_id = jobs.get_job(house.engine, job.id).flow_run_id
        if flow_run_id is not None:
            found.update(prefect(house, "GET", f"/flow_runs/{flow_run_id}"))
        return found.get("state_type") not in (None, "RUNNING", "PENDING", "SCHEDULED")

    eventually(is_told, within_s=20)
    return found


def test_a_diamond_runs_in_order_and_hands_over_files(house: House, submit: Submit) -> None:
    watcher = Watcher()
    outcome = run(house, submit(*diamond()), watcher)
    outcome.raise_for_status()
    assert (outcome.job.state, outcome.job.status) == (JobState.STOPPED, JobStatus.HEALTHY)
    assert set(states(outcome).values()) == {"Completed"}
    assert [result.operator for result in outcome.results] == ["d", "e"]
    handed = {path.name: path.read_text() for path in outcome.results[0].path.iterdir()}
    assert handed == {"baone.txt": "1\na\nb\nd\n", "caone.txt": "1\na\nc\nd\n"}
    assert watcher.seen[0][0] == "a"
    started = {row.name: row.started for row in outcome.operators}
    assert sorted(started, key=lambda name: (started[name], name))[0] == "a"
    assert started["d"] > max(started["b"], started["c"])
    assert all(row.run_time_s and row.peak_memory_bytes and row.exit_code == 0 for row in outcome.operators)
    assert not outcome.payload.verify("d")


def test_prefect_shows_tasks_edges_tags_logs_and_artifacts(house: House, submit: Submit) -> None:
    outcome = run(house, submit(*diamond(b="copy say:hello")))
    flow_run = shown(house, outcome.job)
    run_id = flow_run["id"]
    assert (flow_run["state"]["type"], flow_run["state"]["name"]) == ("COMPLETED", "Completed")
    assert flow_run["parameters"] == {"job_id": str(outcome.job.id)}

    def recorded() -> bool:  # task runs reach the server as events
        runs = task_runs(house, outcome)
        return len(runs) == 5 and all(run["state"]["type"] == "COMPLETED" for run in runs.values())

    eventually(recorded, within_s=20)
    assert task_runs(house, outcome)["b"]["tags"] == []  # the engine would ask the server for leave to run it
    graph = prefect(house, "GET", f"/flow_runs/{run_id}/graph-v2")
    names = {node["id"]: node["label"] for _, node in graph["nodes"]}
    edges = {(names[parent["id"]], node["label"]) for _, node in graph["nodes"] for parent in node["parents"]}
    assert edges == {("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("c", "e")}
    wanted = {"logs": {"flow_run_id": {"any_": [str(run_id)]}}}
    eventually(lambda: "hello" in [line["message"] for line in prefect(house, "POST", "/logs/filter", json=wanted)])
    found = prefect(house, "POST", "/artifacts/filter", json={"artifacts": {"flow_run_id": {"any_": [str(run_id)]}}})
    artifacts = {artifact["description"]: artifact for artifact in found}
    assert set(artifacts) == {"The pipeline tiny", "Operators and payload"}
    assert artifacts["The pipeline tiny"]["type"] == "image"
    report = artifacts["Operators and payload"]["data"]
    assert report.count("| Completed |") == 5
    assert outcome.payload.path.as_uri() in report


def test_a_failure_skips_downstream_lets_siblings_finish_and_is_told(house: House, submit: Submit) -> None:
    outcome = run(house, submit(*diamond(b="fail:7")))
    assert states(outcome) == {"a": "Completed", "b": "Failed", "c": "Completed", "d": "Skipped", "e": "Completed"}
    assert (outcome.job.state, outcome.job.status) == (JobState.STOPPED, JobStatus.FAULTED)
    with pytest.raises(JobFaulted, match=r"(?s)operator 'b' exited with 7.*about to fail\n.*the reason why"):
        outcome.raise_for_status()
    flow_run = shown(house, outcome.job)
    assert (flow_run["state"]["type"], flow_run["state"]["name"]) == ("FAILED", "Faulted")
    assert "exited with 7" in flow_run["state"]["message"]
    eventually(lambda: task_runs(house, outcome).get("d", {}).get("state_name") == "Skipped", within_s=20)
    assert [result.operator for result in outcome.results] == ["e"]
    assert not outcome.payload.operator_folder("b").exists()
    assert not list((outcome.payload.path / "operators").glob(".*.partial"))


def test_a_resumed_job_runs_only_what_had_not_completed(house: House, submit: Submit, tmp_path: Path) -> None:
    gate = tmp_path / "mended"
    first = run(house, submit(*diamond(b=f"need:{gate} copy")))
    assert states(first)["b"] == "Failed"
    gate.touch()
    second = run(house, resume_job(house, str(first.job.id)[:8]))
    second.raise_for_status()
    assert states(second) == {"a": "Cached", "b": "Completed", "c": "Cached", "d": "Completed", "e": "Cached"}
    assert [row.name for row in second.operators if row.started] == ["b", "d"]
    assert second.job.resumes == first.job.id
    assert second.payload.id != first.payload.id
    assert not second.payload.verify("a")
    with pytest.raises(InputError, match="nothing to resume"):
        resume_job(house, str(second.job.id))


def test_a_changed_input_of_the_earlier_job_is_not_taken_over(house: House, submit: Submit) -> None:
    first = run(house, submit(*diamond(b="fail:1")))
    changed = next((first.payload.operator_folder("a")).iterdir())
    changed.chmod(0o644)
    changed.write_text("someone was here")
    second = run(house, resume_job(house, str(first.job.id)))
    assert states(second)["a"] == "Completed", "its outputs were not what had been sealed: it ran again"


def test_cancel_ends_operators_and_the_job(house: House, submit: Submit) -> None:
    watch = JobWatch(house, submit(*diamond(c="hang")).id)
    outcome = watch.follow(Watcher(c_Running=lambda: watch.cancel("a test")))
    assert (outcome.job.state, outcome.job.status) == (JobState.STOPPED, JobStatus.CANCELED)
    assert states(outcome)["c"] == "Cancelled"
    assert states(outcome)["d"] == states(outcome)["e"] == "Skipped"
    assert shown(house, outcome.job)["state"]["type"] == "CANCELLED"


def test_the_jobs_timeout_ends_it(house: House, submit: Submit) -> None:
    outcome = run(house, submit(scripted("slow", script="hang"), timeout_s=1))
    assert (outcome.job.state, outcome.job.status) == (JobState.STOPPED, JobStatus.TERMINATED)
    assert "timeout of 1 s" in outcome.job.messages[-1]
    assert states(outcome)["slow"] in ("TimedOut", "Cancelled")
    assert shown(house, outcome.job)["state"]["name"] == "TimedOut"


def test_states_tell_the_truth(house: House, submit: Submit) -> None:
    job = submit(
        scripted("late", script="hang", timeout=1),
        scripted("greedy", script="hog"),
        scripted("idle", script="nothing"),
    )
    outcome = run(house, job)
    assert states(outcome) == {"late": "TimedOut", "greedy": "OutOfMemory", "idle": "OutputMissing"}
    names = {"late": "TimedOut", "greedy": "OutOfMemory", "idle": "Failed"}
    eventually(
        lambda: {name: run["state_name"] for name, run in task_runs(house, outcome).items()} == names, within_s=20
    )


def test_an_operator_that_must_wait_says_for_what_and_for_whom(house: House, submit: Submit, tmp_path: Path) -> None:
    all_cores = {"cpu": CORES, "memory": 128}
    gate = tmp_path / "go"
    job = submit(
        scripted("first", script=f"gate:{gate} copy", requests=all_cores),
        scripted("second", script="copy", requests=all_cores),
    )
    holder = f"waits for CPU cores, held by job {str(job.id)[:8]}"

    def shown_as_waiting() -> bool:
        flow_run_id = jobs.get_job(house.engine, job.id).flow_run_id
        wanted = {"flow_runs": {"id": {"any_": [str(flow_run_id)]}}}
        runs = prefect(house, "POST", "/task_runs/filter", json=wanted) if flow_run_id else []
        states = {run["name"]: run["state"] for run in runs if run["state"]}
        waiting = states.get("second", {})
        return (waiting.get("name"), waiting.get("message")) == ("WaitingForResources", holder)

    eventually(shown_as_waiting, within_s=30)
    gate.touch()
    watcher = Watcher()
    outcome = run(house, job, watcher)
    outcome.raise_for_status()
    assert ("second", "WaitingForResources") in watcher.seen
    row = next(row for row in outcome.operators if row.name == "second")
    assert row.waited_s is not None
    assert row.waited_s > 0


def test_a_gang_holds_everything_before_its_first_operator(house: House, submit: Submit) -> None:
    chain = [scripted("first"), scripted("second", "first")][:CORES]
    watcher = Watcher()
    run(house, submit(*chain, scheduling="gang"), watcher).raise_for_status()
    assert "WaitingForResources" not in [state for _, state in watcher.seen]
    with pytest.raises(ResourcesNeverFit, match="the whole job"):
        submit(*[scripted(f"op-{n}") for n in range(CORES + 1)], scheduling="gang")


def test_what_can_never_run_is_refused_before_anything_exists(house: House, submit: Submit) -> None:
    def payloads() -> list[Path]:
        return sorted(house.store.root.glob("*")) if house.store.root.exists() else []

    before, known = payloads(), len(jobs.list_jobs(house.engine))
    with pytest.raises(ResourcesNeverFit, match="lacks 3 gpu"):
        submit(scripted("net", requests={"gpu": 3 + len(list_gpus())}))
    with pytest.raises(LauncherUnavailable, match="'unknown/image:latest' is not a bundled operator"):
        submit(scripted("net", container={"image": "unknown/image"}))
    with pytest.raises(LauncherUnavailable, match="needs the model 'liver_v1', which is not there"):
        submit(scripted("net", models=[{"name": "liver_v1"}]))
    with pytest.raises(SettingsError, match="above the maximum of 1800 s"):
        submit(scripted("net"), timeout_s=4000)
    assert payloads() == before
    assert len(jobs.list_jobs(house.engine)) == known


def kill_the_runner(house: House, job: Job) -> None:
    owner = jobs.get_job(house.engine, job.id).owner
    assert owner is not None
    os.kill(owner.pid, signal.SIGKILL)


def test_a_job_whose_runner_died_goes_on_from_its_sealed_operators(
    house: House, submit: Submit, tmp_path: Path
) -> None:
    gate = tmp_path / "go"
    job = submit(*diamond(c=f"gate:{gate} copy"))

    def kill_once(progress: Progress) -> None:
        if progress.job.requeues:
            gate.touch()
        elif {row.name: str(row.detail) for row in progress.operators}["c"] == "Running" and done(progress, "a", "b"):
            kill_the_runner(house, job)

    outcome = run(house, job, kill_once)
    outcome.raise_for_status()
    assert outcome.job.requeues == 1
    assert set(states(outcome).values()) == {"Completed"}
    assert [row.attempt for row in outcome.operators] == [1, 1, 2, 1, 1]


def done(progress: Progress, *operators: str) -> bool:
    details = {row.name: str(row.detail) for row in progress.operators}
    return all(details[name] in ("Completed", "Cached") for name in operators)


def test_a_job_that_must_not_be_restarted_is_evicted_and_can_be_resumed(house: House, submit: Submit) -> None:
    job = submit(*diamond(b="hang"), **{"on-restart": "evict"})
    outcome = run(house, job, Watcher(b_Running=lambda: kill_the_runner(house, job)))
    assert outcome.job.status is JobStatus.EVICTED
    again = resume_job(house, str(job.id))
    jobs.cancel_job(house.engine, again.id)
    assert run(house, again).job.status is JobStatus.CANCELED


def test_a_runner_that_lost_its_job_neither_writes_nor_leaves_operators(
    house: House, submit: Submit, tmp_path: Path
) -> None:
    gate = tmp_path / "go"
    job = submit(*diamond(a=f"gate:{gate} copy", b="hang", c="hang"))
    eventually(lambda: states_of(house, job)["a"] == "Running", within_s=30)
    stranger = Owner("elsewhere", 1, "never")
    with house.engine.begin() as connection:  # as if another machine had been given it
        statement = sa.text("UPDATE jobs SET fence = :fence, owner_host = 'elsewhere' WHERE id = :id")
        connection.execute(statement, {"id": job.id, "fence": stranger.token})
    gate.touch()
    marker = f"CLARA_JOB_ID={job.id}".encode()
    eventually(lambda: not any(marker in _read(path) for path in Path("/proc").glob("[0-9]*/environ")), within_s=30)
    assert set(states_of(house, job).values()) == {"Running", "Pending"}, "its word counts no more"
    payload = house.store.folder(job.payload_id)
    assert payload.sealed("b") is None
    jobs.finish_job(house.engine, job.id, stranger, JobEvent.FAULT, messages=["the end of a test"])


def states_of(house: House, job: Job) -> dict[str, str]:
    return {row.name: str(row.detail) for row in jobs.list_operators(house.engine, job.id)}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended, or is another user's
        return b""


def test_a_job_that_was_cancelled_before_it_began_never_begins(house: House, submit: Submit) -> None:
    hold = submit(scripted("hold", script="hang", requests={"cpu": CORES, "memory": 128}))
    eventually(lambda: states_of(house, hold)["hold"] == "Running", within_s=30)
    job = submit(scripted("a"))
    jobs.cancel_job(house.engine, job.id)
    outcome = run(house, job)
    assert outcome.job.status is JobStatus.CANCELED
    assert JobEvent.BEGIN not in " ".join(outcome.job.story)
    jobs.cancel_job(house.engine, hold.id)
    assert run(house, hold).job.status is JobStatus.CANCELED
