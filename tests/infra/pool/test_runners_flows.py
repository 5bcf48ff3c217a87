"""Real Prefect flow runs in forked runners, on a real Prefect server."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from pathlib import Path

import httpx
from waiting import eventually

from clara_flow.infra.pool.runners import RunnerEnd, RunnerSet
from clara_flow.services.platform import PlatformHandle

TESTS = Path(__file__).parents[2]


def test_flows_run_in_turn_and_beside_each_other_in_forked_runners(platform: PlatformHandle, tmp_path: Path) -> None:
    ends: list[RunnerEnd] = []
    runners = RunnerSet(
        "tiny.flow_program",
        size=2,
        most=2,
        jobs_per_runner=100,
        memory_limit_mib=512,
        environment={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            "RUNNER_FOLDER": str(tmp_path),
            "PREFECT_API_URL": platform.prefect_api_url,
            "PREFECT_HOME": str(tmp_path / "prefect"),
        },
        log_path=tmp_path / "log",
        on_end=ends.append,
    )
    runners.start()
    jobs = [uuid.uuid4() for _ in range(6)]
    try:
        for job in jobs:
            runners.run(job, facts={}, limit_s=60)
        eventually(lambda: all((tmp_path / str(job)).exists() for job in jobs), within_s=60)
        eventually(lambda: sum(status.jobs_done for status in runners.runners()) == len(jobs))
    finally:
        runners.stop(0)
    told = [(tmp_path / str(job)).read_text().split() for job in jobs]
    assert Counter(number for _, number, _ in told) == {"3": 6}
    pids = Counter(pid for _, _, pid in told)
    assert len(pids) == 2
    assert min(pids.values()) >= 2  # several in turn in each

    api, wanted = platform.prefect_api_url, {"flow_runs": {"id": {"any_": [run for run, _, _ in told]}}}

    def rows(kind: str) -> list[dict[str, object]]:
        answer: list[dict[str, object]] = httpx.post(f"{api}/{kind}/filter", json=wanted).raise_for_status().json()
        return answer

    assert Counter(run["state_type"] for run in rows("flow_runs")) == {"COMPLETED": 6}
    eventually(lambda: Counter(run["state_type"] for run in rows("task_runs")) == {"COMPLETED": 18})
    logs = {"logs": {"flow_run_id": {"any_": [run for run, _, _ in told]}}}
    messages = [entry["message"] for entry in httpx.post(f"{api}/logs/filter", json=logs).raise_for_status().json()]
    assert sum(message.startswith("step 2 in process") for message in messages) == 6
    assert [end.reason for end in ends] == ["the worker stops"] * 2
