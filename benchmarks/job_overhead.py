"""What a whole job costs on top of its operators, against the same flow run by Prefect's own `process` worker.

Both run the same definition (no-op operators, process runtime) on the same server. Overhead is trigger to completion,
as whoever triggered it sees it, less the bare launches of the same commands.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from benchmarks.common import HERE, Bench, Scale, bench, chain, summary, timed, write
from benchmarks.operator_overhead import bare_process, run_chain
from clara_flow.deployments.trigger import compile_definition, create_job

POLLS_S = {"default (10 s)": None, "0.5 s": "0.5"}
WORKER_READY_S = 60


async def _deploy(api_url: str, entrypoint_folder: Path) -> UUID:
    """A `process` work pool and a deployment of `benchmarks.worker_flow.run_job` in it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from benchmarks.worker_flow import run_job

    with temporary_settings({PREFECT_API_URL: api_url}):
        client_of_this_server = get_client()
    async with client_of_this_server as client:
        await client.create_work_pool(WorkPoolCreate(name="bench", type="process"))
        flow_id = await client.create_flow(run_job)
        return await client.create_deployment(
            flow_id,
            name="bench",
            work_pool_name="bench",
            entrypoint="benchmarks.worker_flow.run_job",
            path=str(entrypoint_folder),
        )


def _trigger(ground: Bench, deployment: UUID, definition: Path) -> float:
    """Seconds from creating the flow run to its end, seen by polling every 10 ms."""
    import httpx

    compiled = compile_definition(ground.house.settings, definition, {})
    job = create_job(ground.house, compiled, source=ground.study, runtime="process")
    api = ground.house.prefect_api_url
    start = time.perf_counter()
    body = {"parameters": {"job_id": str(job.id)}, "state": {"type": "SCHEDULED"}}
    run = httpx.post(f"{api}/deployments/{deployment}/create_flow_run", json=body).raise_for_status().json()
    while True:
        state = httpx.get(f"{api}/flow_runs/{run['id']}").json()["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            break
        time.sleep(0.01)
    assert state["type"] == "COMPLETED", state
    return time.perf_counter() - start


def _with_worker(
    ground: Bench, poll_s: str | None, deployment: UUID, definition: Path, rounds: int
) -> dict[str, float]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE.parent),
        "CLARA_FLOW_DATA_DIR": str(ground.house.settings.data_dir),
    }
    environment["CLARA_FLOW_PREFECT_PORT"] = str(ground.house.settings.prefect_port)
    if poll_s is not None:
        environment["PREFECT_WORKER_QUERY_SECONDS"] = poll_s
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "bench", "--name", f"poll-{poll_s}"]
    with (ground.folder / "worker.log").open("wb") as log:
        worker = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ground.folder)
    try:
        seconds = [_trigger(ground, deployment, definition) for _ in range(1 + rounds)]
    finally:
        worker.terminate()
        worker.wait()
    return summary(seconds[1:])


def main(scale: Scale, results: Path) -> Path:
    """Measure and write the result."""
    import asyncio

    length = min(5, scale.chains[-1])
    figures: dict[str, Any] = {"operators": length}
    with bench() as ground:
        definition = chain(ground.folder, length)
        bare = timed(lambda: bare_process(ground.folder, ground.study), 3 * scale.rounds)
        floor = length * bare["median_s"]
        ours = timed(lambda: run_chain(ground.house, ground.study, definition, "process"), 2 * scale.rounds)
        figures |= {"bare_launches_s": round(floor, 4), "clara_flow": ours}
        figures["clara_flow_overhead_s"] = round(ours["median_s"] - floor, 4)
        empty = ground.folder / "empty"  # Prefect's worker copies this folder for each run
        empty.mkdir()
        deployment = asyncio.run(_deploy(ground.house.prefect_api_url, empty))
        for name, poll_s in POLLS_S.items():
            theirs = _with_worker(ground, poll_s, deployment, definition, scale.rounds)
            ratio = (ours["median_s"] - floor) / (theirs["median_s"] - floor)
            figures[f"prefect process worker, polling {name}"] = theirs | {"our_overhead_ratio": round(ratio, 3)}
        figures["aim"] = {"our_overhead_ratio": 0.35}
    return write(results, "job_overhead", figures)
