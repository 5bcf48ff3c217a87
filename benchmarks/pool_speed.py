"""How quickly the pool starts and runs jobs, against Prefect's own workers on the same machine in the same run.

first_operator  from before the job is made (payload copied, record written; for a peer: flow run asked for) until the
                first operator's own process says that it runs.
whole_job       until the end of five no-op operators in a row is known to whoever asked for it.
jobs_per_minute of five no-op operators, while more of them wait than can run.
queued          first_operator again while so many jobs of another tenant wait in the queue.

Peers run the same five processes from a plain Prefect flow (`peer_flow.py`): the `process` worker with its default
polling and every 0.5 s, and `prefect-docker` (each flow run in a container that has this Python mounted).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from sqlmodel import col

from benchmarks.common import HERE, NOOP, Bench, Scale, bench, chain, summary, write
from clara_flow.deployments.trigger import Compiled, compile_definition, create_job
from clara_flow.deployments.watch import JobWatch
from clara_flow.records import jobs, quotas
from clara_flow.records.database import statements
from clara_flow.records.models import Job
from clara_flow.records.state_machine import JobState, JobStatus

LENGTH = 5
STAMP = "began"  # file in an output
BACKLOG = "backlog"  # a tenant that may run nothing


def submit(ground: Bench, compiled: Compiled) -> Job:
    """One job of ours, through the one way in."""
    return create_job(ground.house, compiled, source=ground.study, runtime="process")


def stamp_in(output: Path) -> float:
    """When the operator of that output began, Unix time."""
    return float((output / STAMP).read_text())


def ours(ground: Bench, compiled: Compiled, rounds: int) -> dict[str, Any]:
    """One job after another."""
    first, whole = [], []
    for number in range(rounds + 1):
        asked = time.time()
        job = submit(ground, compiled)
        outcome = JobWatch(ground.house, job.id).follow()
        ended = time.time()
        outcome.raise_for_status()
        if number:  # the first one warms up
            first.append(stamp_in(outcome.payload.operator_folder("step-0")) - asked)
            whole.append(ended - asked)
        ground.house.store.remove(job.payload_id)
    return {"first_operator": summary(first), "whole_job": summary(whole)}


def sustained(ground: Bench, compiled: Compiled, count: int) -> dict[str, Any]:
    """So many jobs as fast as they can be made; the rate counts from the first job's begin to the last one's end."""
    made = [submit(ground, compiled) for _ in range(count)]
    ids = {job.id for job in made}
    open_ones = sa.select(sa.func.count()).where(col(Job.id).in_(ids), col(Job.state) != JobState.STOPPED)
    with statements(ground.house.engine) as connection:
        while connection.execute(open_ones).scalar_one():
            time.sleep(0.05)
    rows = [job for job in jobs.list_jobs(ground.house.engine, states=[JobState.STOPPED]) if job.id in ids]
    assert all(job.status is JobStatus.HEALTHY for job in rows)
    begun = min(job.started for job in rows if job.started)
    ended = max(job.stopped for job in rows if job.stopped)
    sealed = 0
    for job in rows:
        sealed += sum(1 for _ in (ground.house.store.folder(job.payload_id).path / "operators").glob("step-*"))
        ground.house.store.remove(job.payload_id)
    return {
        "jobs": count,
        "jobs_per_minute": round(count / (ended - begun).total_seconds() * 60, 1),
        "sealed_outputs": sealed,
    }


def fill_queue(ground: Bench, like: Job, count: int) -> None:
    """Copies of a job's record for a tenant that may run nothing: they wait."""
    quotas.set_quota(ground.house.engine, BACKLOG, hard={"jobs": 0})
    now = datetime.now(UTC)
    values = like.model_dump() | {
        "state": JobState.PENDING, "status": JobStatus.HEALTHY, "tenant": BACKLOG, "created": now, "queued": now,
        "started": None, "stopped": None, "fence": None, "owner_host": None, "owner_pid": None, "node": None,
        "owner_process_start": None, "flow_run_id": None, "story": [], "messages": [],
    }  # fmt: skip
    values["metadata"] = values.pop("metadata_")
    table = Job.__table__  # type: ignore[attr-defined]
    with ground.house.engine.begin() as connection:
        connection.execute(sa.insert(table), [values | {"id": uuid.uuid4()} for _ in range(count)])
        connection.execute(sa.text("SELECT pg_notify('clara_flow_jobs', '{\"effect\": \"offer\"}')"))


async def deploy(api_url: str, pool: str, kind: str, folder: Path, variables: dict[str, Any]) -> uuid.UUID:
    """A pool of Prefect's own and a deployment of the peer's flow in it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from benchmarks.peer_flow import chain as peer

    with temporary_settings({PREFECT_API_URL: api_url}):
        client_of_this_server = get_client()
    async with client_of_this_server as client:
        template: dict[str, Any] = {}
        if kind == "docker":
            from prefect_docker.worker import DockerWorker

            template = DockerWorker.get_default_base_job_template()
        await client.create_work_pool(WorkPoolCreate(name=pool, type=kind, base_job_template=template))
        flow_id = await client.create_flow(peer)
        return await client.create_deployment(
            flow_id, name=pool, work_pool_name=pool, entrypoint="benchmarks.peer_flow.chain", path=str(folder),
            job_variables=variables, enforce_parameter_schema=False,
        )  # fmt: skip


@contextmanager
def worker(ground: Bench, pool: str, kind: str, poll_s: str | None, more: dict[str, str]) -> Iterator[None]:
    """Prefect's own worker on that pool."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), **more}
    if poll_s is not None:
        environment["PREFECT_WORKER_QUERY_SECONDS"] = poll_s
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", kind]
    with (ground.folder / f"{pool}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ground.folder)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def peer(ground: Bench, deployment: uuid.UUID, rounds: int) -> dict[str, Any]:
    """One run of the peer's deployment after another; its end is seen by polling every 10 ms."""
    api = ground.platform.prefect_api_url
    first, whole = [], []
    for number in range(rounds + 1):
        run = uuid.uuid4().hex
        parameters = {
            "source": str(ground.study), "folder": str(ground.folder / "peer" / run), "length": LENGTH,
            "program": str(NOOP / "noop_operator.py"), "stamp": STAMP,
        }  # fmt: skip
        asked = time.time()
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        made = httpx.post(f"{api}/deployments/{deployment}/create_flow_run", json=body).raise_for_status().json()
        state = {"type": "SCHEDULED"}
        while state["type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            time.sleep(0.01)
            state = httpx.get(f"{api}/flow_runs/{made['id']}").json()["state"]
        ended = time.time()
        assert state["type"] == "COMPLETED", state
        if number:
            first.append(stamp_in(ground.folder / "peer" / run / "0" / "out") - asked)
            whole.append(ended - asked)
    return {"first_operator": summary(first), "whole_job": summary(whole)}


def docker_peer(ground: Bench, rounds: int) -> dict[str, Any]:
    """`prefect-docker` with this Python's installation mounted into a bare image; says why where it cannot be had."""
    import docker_engine
    import pytest

    try:
        with docker_engine.engine() as base_url:
            image = docker_engine.ensure_base_image(base_url)
            folders = {Path(sys.prefix), Path(sys.base_prefix), HERE.parent, ground.folder}
            variables = {
                "image": image, "image_pull_policy": "Never", "network_mode": "host", "auto_remove": True,
                "volumes": [f"{folder}:{folder}" for folder in sorted(folders)],
                "command": f"{sys.executable} -m prefect flow-run execute",
                "env": {"PREFECT_API_URL": ground.platform.prefect_api_url, "PYTHONPATH": str(HERE.parent)},
            }  # fmt: skip
            api = ground.platform.prefect_api_url
            deployment = asyncio.run(deploy(api, "peer-docker", "docker", ground.folder / "empty", variables))
            with worker(ground, "peer-docker", "docker", "0.5", {"DOCKER_HOST": base_url}):
                return peer(ground, deployment, rounds)
    except pytest.skip.Exception as reason:
        return {"not_measured": str(reason)}


def ratios(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Theirs with how many times ours they take."""
    if "not_measured" in theirs:
        return theirs
    return theirs | {
        f"{name}_times_ours": round(theirs[name]["median_s"] / mine[name]["median_s"], 1)
        for name in ("first_operator", "whole_job")
    }


def main(scale: Scale, results: Path) -> Path:
    """Measure and write the result."""
    figures: dict[str, Any] = {"operators": LENGTH, "runtime": "process"}
    smoke = scale.rounds == 1
    with bench() as ground:
        (ground.folder / "empty").mkdir()
        definition = chain(ground.folder, LENGTH, stamp=STAMP)
        compiled = compile_definition(ground.house.settings, definition, {})
        figures["clara_flow"] = mine = ours(ground, compiled, 3 * scale.rounds)
        figures["sustained"] = sustained(ground, compiled, 4 if smoke else 150)
        api, empty = ground.platform.prefect_api_url, ground.folder / "empty"
        deployment = asyncio.run(deploy(api, "peer-process", "process", empty, {}))
        for name, poll_s in (("0.5 s", "0.5"), ("default (10 s)", None)):
            with worker(ground, "peer-process", "process", poll_s, {}):
                figures[f"prefect process worker, polling {name}"] = ratios(
                    mine, peer(ground, deployment, scale.rounds)
                )
            if smoke:
                break
        if not smoke:
            figures["prefect-docker worker, polling 0.5 s"] = ratios(mine, docker_peer(ground, scale.rounds))
        like = jobs.list_jobs(ground.house.engine, limit=1)[0]
        figures["queued"], waiting = {}, 0
        for count in (10,) if smoke else (10, 1_000, 10_000):
            fill_queue(ground, like, count - waiting)
            waiting = count
            figures["queued"][str(count)] = ours(ground, compiled, 2 * scale.rounds) | (
                {} if smoke else {"sustained": sustained(ground, compiled, 50)}
            )
        figures["aim"] = {
            "first_operator_s": 0.25, "whole_job_s": 0.6, "jobs_per_minute": 300,
            "process_worker_first_operator_times_ours": 10, "queued_flat_within": 0.2,
        }  # fmt: skip
    return write(results, "pool_speed", figures)
