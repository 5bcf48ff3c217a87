"""The flow on a real Prefect server and a real database, with real processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from tiny.pipelines import diamond, scripted, write_definition
from waiting import eventually

from clara_flow.deployments.local_runner import JobOutcome, LocalRunner
from clara_flow.deployments.trigger import House, compile_definition, create_job, resume_job
from clara_flow.errors import (
    InputError,
    JobFaulted,
    LauncherUnavailable,
    ResourcesNeverFit,
    SettingsError,
    StaleOwner,
)
from clara_flow.records import jobs
from clara_flow.records.models import Job
from clara_flow.records.state_machine import JobEvent, JobState, JobStatus
from clara_flow.tasks.job_context import OperatorNews

Submit = Callable[..., Job]


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
    answer = httpx.request(method, f"{house.prefect_api_url}{path}", **keys)
    answer.raise_for_status()
    return answer.json()


def task_runs(house: House, outcome: JobOutcome) -> dict[str, Any]:
    wanted = {"flow_runs": {"id": {"any_": [str(outcome.job.flow_run_id)]}}}
    return {run["name"]: run for run in prefect(house, "POST", "/task_runs/filter", json=wanted)}


def test_a_diamond_runs_in_order_and_hands_over_files(house: House, submit: Submit) -> None:
    news: list[OperatorNews] = []
    outcome = LocalRunner(house, submit(*diamond()), observer=news.append).run()
    outcome.raise_for_status()
    assert (outcome.job.state, outcome.job.status) == (JobState.STOPPED, JobStatus.HEALTHY)
    assert set(states(outcome).values()) == {"Completed"}
    assert [result.operator for result in outcome.results] == ["d", "e"]
    handed = {path.name: path.read_text() for path in outcome.results[0].path.iterdir()}
    assert handed == {"baone.txt": "1\na\nb\nd\n", "caone.txt": "1\na\nc\nd\n"}
    running = [item.operator for item in news if item.state == "Running"]
    assert running[0] == "a"
    assert set(running[1:3]) == {"b", "c"}
    assert all(row.run_time_s and row.peak_memory_bytes and row.exit_code == 0 for row in outcome.operators)
    assert not outcome.payload.verify("d")


def test_prefect_shows_tasks_edges_tags_logs_and_artifacts(house: House, submit: Submit) -> None:
    outcome = LocalRunner(house, submit(*diamond(b="copy say:hello"))).run()
    run_id = outcome.job.flow_run_id
    flow_run = prefect(house, "GET", f"/flow_runs/{run_id}")
    assert (flow_run["state"]["type"], flow_run["state"]["name"]) == ("COMPLETED", "Completed")
    assert flow_run["parameters"] == {"job_id": str(outcome.job.id)}

    def recorded() -> bool:  # task runs reach the server as events
        runs = task_runs(house, outcome)
        return len(runs) == 5 and all(run["state"]["type"] == "COMPLETED" for run in runs.values())

    eventually(recorded, within_s=20)
    assert "memory-mib:128" in task_runs(house, outcome)["b"]["tags"]
    graph = prefect(house, "GET", f"/flow_runs/{run_id}/graph-v2")
    names = {node["id"]: node["label"] for _, node in graph["nodes"]}
    edges = {(names[parent["id"]], node["label"]) for _, node in graph["nodes"] for parent in node["parents"]}
    assert edges == {("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("c", "e")}
    wanted = {"logs": {"flow_run_id": {"any_": [str(run_id)]}}}
    eventually(lambda: "hello" in [line["message"] for line in prefect(house, "POST", "/logs/filter", json=wanted)])
    found = prefect(house, "POST", "/artifacts/filter", json={"artifacts": {"flow_run_id": {"any_": [str(run_id)]}}})
    artifacts = {artifact["key"]: artifact for artifact in found}
    assert set(artifacts) == {"tiny-pipeline", "tiny-operators", "tiny-payload"}
    assert artifacts["tiny-pipeline"]["type"] == "image"
    assert artifacts["tiny-operators"]["data"].count("Completed") == 5
    assert outcome.payload.path.as_uri() in artifacts["tiny-payload"]["data"]


def test_a_failure_skips_downstream_lets_siblings_finish_and_is_told(house: House, submit: Submit) -> None:
    outcome = LocalRunner(house, submit(*diamond(b="fail:7"))).run()
    assert states(outcome) == {"a": "Completed", "b": "Failed", "c": "Completed", "d": "Skipped", "e": "Completed"}
    assert (outcome.job.state, outcome.job.status) == (JobState.STOPPED, JobStatus.FAULTED)
    with pytest.raises(JobFaulted, match=r"(?s)operator 'b' exited with 7.*about to fail\n.*the reason why"):
        outcome.raise_for_status()
    flow_run = prefect(house, "GET", f"/flow_runs/{outcome.job.flow_run_id}")
    assert (flow_run["state"]["type"], flow_run["state"]["name"]) == ("FAILED", "Faulted")
    assert "exited with 7" in flow_run["state"]["message"]
    eventually(lambda: task_runs(house, outcome).get("d", {}).get("state_name") == "Skipped", within_s=20)
    assert [result.operator for result in outcome.results] == ["e"]
    assert not outcome.payload.operator_folder("b").exists()
    assert not list((outcome.payload.path / "operators").glob(".*.partial"))


def test_a_resumed_job_runs_only_what_had_not_completed(house: House, submit: Submit, tmp_path: Path) -> None:
    gate = tmp_path / "mended"
    first = LocalRunner(house, submit(*diamond(b=f"need:{gate} copy"))).run()
    assert states(first)["b"] == "Failed"
    gate.touch()
    news: list[OperatorNews] = []
    second = LocalRunner(house, resume_job(house, str(first.job.id)[:8]), observer=news.append).run()
    second.raise_for_status()
    assert states(second) == {"a": "Cached", "b": "Completed", "c": "Cached", "d": "Completed", "e": "Cached"}
    assert [item.operator for item in news if item.state == "Running"] == ["b", "d"]
    assert second.job.resumes == first.job.id
    assert second.payload.id != first.payload.id
    assert not second.payload.verify("a")
    with pytest.raises(InputError, match="nothing to resume"):
        resume_job(house, str(second.job.id))


def test_a_changed_input_of_the_earlier_job_is_not_taken_over(house: House, submit: Submit) -> None:
    first = LocalRunner(house, submit(*diamond(b="fail:1"))).run()
    changed = next((first.payload.operator_folder("a")).iterdir())
    changed.chmod(0o644)
    changed.write_text("someone was here")
    second = LocalRunner(house, resume_job(house, str(first.job.id))).run()
    assert states(second)["a"] == "Completed", "its outputs were not what had been sealed: it ran again"


def test_cancel_ends_operators_and_the_job(house: House, submit: Submit) -> None:
    running = threading.Event()
    runner = LocalRunner(
        house,
        submit(*diamond(c="hang")),
        observer=lambda news: running.set() if (news.operator, news.state) == ("c", "Running") else None,
    )
    threading.Thread(target=lambda: (running.wait(30), runner.cancel())).start()
    outcome = runner.run()
    assert (outcome.job.state, outcome.job.status) == (JobState.STOPPED, JobStatus.CANCELED)
    assert states(outcome)["c"] == "Cancelled"
    assert states(outcome)["d"] == states(outcome)["e"] == "Skipped"
    assert prefect(house, "GET", f"/flow_runs/{outcome.job.flow_run_id}")["state"]["type"] == "CANCELLED"


def test_the_jobs_timeout_ends_it(house: House, submit: Submit) -> None:
    outcome = LocalRunner(house, submit(scripted("slow", script="hang"), timeout_s=1)).run()
    assert (outcome.job.state, outcome.job.status) == (JobState.STOPPED, JobStatus.TERMINATED)
    assert "timeout of 1 s" in outcome.job.messages[-1]
    assert states(outcome)["slow"] in ("TimedOut", "Cancelled")
    assert prefect(house, "GET", f"/flow_runs/{outcome.job.flow_run_id}")["state"]["name"] == "TimedOut"


def test_states_tell_the_truth(house: House, submit: Submit) -> None:
    outcome = LocalRunner(
        house,
        submit(
            scripted("late", script="hang", timeout=1),
            scripted("greedy", script="hog"),
            scripted("idle", script="nothing"),
        ),
    ).run()
    assert states(outcome) == {"late": "TimedOut", "greedy": "OutOfMemory", "idle": "OutputMissing"}
    names = {"late": "TimedOut", "greedy": "OutOfMemory", "idle": "Failed"}
    eventually(
        lambda: {name: run["state_name"] for name, run in task_runs(house, outcome).items()} == names, within_s=20
    )


def test_an_operator_that_must_wait_says_so(house: House, submit: Submit, tmp_path: Path) -> None:
    all_cores = {"cpu": house.capacity.cpu, "memory": 128}
    gate = tmp_path / "go"
    news: list[OperatorNews] = []

    def watch(item: OperatorNews) -> None:
        news.append(item)
        if item.state == "WaitingForResources":
            gate.touch()

    job = submit(
        scripted("first", script=f"gate:{gate} copy", requests=all_cores),
        scripted("second", script="copy", requests=all_cores),
    )
    outcome = LocalRunner(house, job, observer=watch).run()
    outcome.raise_for_status()
    waited = [item for item in news if item.state == "WaitingForResources"]
    assert [item.message for item in waited] == ["waits for cpu"]
    row = next(row for row in outcome.operators if row.name == waited[0].operator)
    assert row.waited_s is not None
    assert row.waited_s > 0

    def shown() -> bool:
        run = task_runs(house, outcome).get(waited[0].operator)
        history = prefect(house, "GET", "/task_run_states/", params={"task_run_id": run["id"]}) if run else []
        return "WaitingForResources" in [state["name"] for state in history]

    eventually(shown, within_s=20)


def test_a_gang_holds_everything_before_its_first_operator(house: House, submit: Submit) -> None:
    chain = [scripted("first"), scripted("second", "first")][: house.capacity.cpu]
    news: list[OperatorNews] = []
    outcome = LocalRunner(house, submit(*chain, scheduling="gang"), observer=news.append).run()
    outcome.raise_for_status()
    assert "WaitingForResources" not in [item.state for item in news]
    with pytest.raises(ResourcesNeverFit, match="the whole job"):
        submit(*[scripted(f"op-{n}") for n in range(house.capacity.cpu + 1)], scheduling="gang")


def test_what_can_never_run_is_refused_before_anything_exists(house: House, submit: Submit) -> None:
    def payloads() -> list[Path]:
        return sorted(house.store.root.glob("*")) if house.store.root.exists() else []

    before, known = payloads(), len(jobs.list_jobs(house.engine))
    with pytest.raises(ResourcesNeverFit, match="lacks 3 gpu"):
        submit(scripted("net", requests={"gpu": 3 + len(house.capacity.gpus)}))
    with pytest.raises(LauncherUnavailable, match="'unknown/image:latest' is not a bundled operator"):
        submit(scripted("net", container={"image": "unknown/image"}))
    with pytest.raises(LauncherUnavailable, match="needs the model 'liver_v1', which is not there"):
        submit(scripted("net", models=[{"name": "liver_v1"}]))
    with pytest.raises(SettingsError, match="above the maximum of 1800 s"):
        submit(scripted("net"), timeout_s=4000)
    assert payloads() == before
    assert len(jobs.list_jobs(house.engine)) == known


def test_a_job_whose_runner_died_is_evicted_and_can_be_resumed(house: House, submit: Submit) -> None:
    from clara_flow.records.owner import Owner

    job = submit(*diamond())
    dead = Owner("nowhere", 1, "never")
    jobs.begin_job(house.engine, job.id, dead)
    with house.engine.begin() as connection:  # as if that process had been here
        connection.execute(
            sa.text("UPDATE jobs SET owner_host = :host WHERE id = :id"), {"host": _host(), "id": job.id}
        )
    LocalRunner(house, submit(scripted("other"))).run().raise_for_status()
    assert jobs.get_job(house.engine, job.id).status is JobStatus.EVICTED
    LocalRunner(house, resume_job(house, str(job.id))).run().raise_for_status()


def _host() -> str:
    import socket

    return socket.gethostname()


def test_a_runner_that_lost_its_job_neither_writes_nor_leaves_operators(
    house: House, submit: Submit, tmp_path: Path
) -> None:
    gate = tmp_path / "go"
    job = submit(*diamond(a=f"gate:{gate} copy", b="hang", c="hang"))

    def lose_the_job(news: OperatorNews) -> None:
        if (news.operator, news.state) == ("a", "Completed"):  # b and c are about to start
            with house.engine.begin() as connection:
                statement = sa.text("UPDATE jobs SET fence = gen_random_uuid() WHERE id = :id")
                connection.execute(statement, {"id": job.id})

    gate.touch()
    with pytest.raises(StaleOwner, match="does not belong to process"):
        LocalRunner(house, job, observer=lose_the_job).run()
    payload = house.store.folder(job.payload_id)
    assert payload.sealed("a")
    assert payload.sealed("b") is None
    told = {row.name: str(row.detail) for row in jobs.list_operators(house.engine, job.id)}
    assert told == {"a": "Completed", "b": "Pending", "c": "Pending", "d": "Pending", "e": "Pending"}
    marker = f"CLARA_JOB_ID={job.id}".encode()
    running = [path for path in Path("/proc").glob("[0-9]*/environ") if marker in _read(path)]
    assert running == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended, or is another user's
        return b""


def test_a_broken_machinery_faults_the_job(house: House, submit: Submit) -> None:
    job = submit(scripted("a"))
    jobs.cancel_job(house.engine, job.id)  # so that the runner cannot begin it
    outcome = LocalRunner(house, job).run()
    assert outcome.job.status is JobStatus.CANCELED
    assert JobEvent.BEGIN not in " ".join(outcome.job.story)
