"""`clara-flow queue` and `clara-flow cancel` on a real pool."""

from __future__ import annotations

import json
import os
from pathlib import Path

from platform_fixture import clara_flow
from tiny.pipelines import scripted, write_definition
from waiting import eventually

from clara_flow.deployments.trigger import House, compile_definition, create_job
from clara_flow.records import jobs
from clara_flow.records.models import Job
from clara_flow.records.state_machine import JobState, JobStatus

ALL_CORES = {"cpu": len(os.sched_getaffinity(0)), "memory": 128}


def submit(house: House, study: Path, script: str) -> Job:
    operator = scripted("step", script=script, requests=ALL_CORES)
    compiled = compile_definition(house.settings, write_definition(study.with_name("queue.yaml"), operator), {})
    return create_job(house, compiled, source=study, runtime="process", tenant="ward")


def is_running(house: House, job: Job) -> bool:
    return jobs.get_job(house.engine, job.id).state is JobState.RUNNING


def test_what_waits_for_whom_and_how_a_job_is_ended(house: House, input_folder: Path) -> None:
    holder = submit(house, input_folder, "hang")
    eventually(lambda: is_running(house, holder), within_s=30)
    waiting = submit(house, input_folder, "copy")
    told = clara_flow(house.settings, "queue", "--json")
    assert told.returncode == 0, told.stderr
    (row,) = json.loads(told.stdout)
    assert (row["position"], row["job_id"], row["operator"], row["tenant"]) == (1, str(waiting.id), "", "ward")
    assert row["reason"] == f"waits for CPU cores, held by job {str(holder.id)[:8]}"
    assert row["holders"] == [str(holder.id)]
    assert row["begins_in_s"] > 0
    shown = clara_flow(house.settings, "queue", COLUMNS="120").stdout
    assert str(waiting.id)[:8] in shown
    assert f"CPU cores, held by job {str(holder.id)[:8]}" in shown
    ended = clara_flow(house.settings, "cancel", str(waiting.id)[:12], "--reason", "no longer needed")
    assert (ended.returncode, ended.stdout) == (0, f"job {waiting.id} is STOPPED/CANCELED\n")
    assert jobs.get_job(house.engine, waiting.id).messages == ["no longer needed"]
    assert clara_flow(house.settings, "cancel", str(holder.id)).stdout == f"job {holder.id} is being stopped\n"
    eventually(lambda: jobs.get_job(house.engine, holder.id).status is JobStatus.CANCELED, within_s=10)
    assert clara_flow(house.settings, "queue").stdout == "Nothing waits.\n"


def test_there_is_no_such_job(house: House) -> None:
    done = clara_flow(house.settings, "cancel", "00000000")
    assert done.returncode == 3
    assert "there is no job 00000000" in done.stderr
