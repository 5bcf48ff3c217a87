"""From a flow run that somebody made in the Prefect UI (Quick run, Retry) to a job of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from clara_flow.deployments.trigger import Compiled, House, create_job, resume_job
from clara_flow.errors import InputError
from clara_flow.infra.images.catalog import installed
from clara_flow.infra.postgres import records_url
from clara_flow.plan import Plan
from clara_flow.records import jobs, pipelines
from clara_flow.records.database import connect
from clara_flow.records.state_machine import JobPriority, JobState
from clara_flow.settings import Runtime, load_settings


def job_for_flow_run(
    flow_run_id: UUID,
    *,
    deployment_id: UUID | None,
    parameters: Mapping[str, Any],
    job_variables: Mapping[str, Any],
    work_queue: str | None,
) -> UUID:
    """The job that this flow run shall show: queued now, when it is not already.

    parameters      `job_id`: a job that is over is run again on its payload, taking over what it had sealed; or
                    `input`: a folder on this machine, run through the deployment's pipeline.
    job_variables   `runtime`, `timeout` (seconds) and `tenant`, as the pool's form gives them.
    work_queue      its name is the priority; any other queue means normal.

    Raises InputError and what `create_job` raises.
    """
    settings = load_settings()
    engine = connect(records_url(settings), pool_size=1)
    try:
        house = House(settings=settings, engine=engine, catalog=installed(settings.catalogs))
        runtime = cast(Runtime, job_variables.get("runtime") or settings.runtime)
        timeout_s = job_variables.get("timeout")
        if reference := parameters.get("job_id"):
            job = jobs.get_job(engine, reference)
            if job.state is not JobState.STOPPED:
                return job.id
            again = resume_job(
                house, str(job.id), timeout_s=timeout_s, completed_too=True, flow_run_id=flow_run_id
            )
            return again.id
        if not parameters.get("input"):
            raise InputError("give the run an `input` (a folder on the platform's machine) or the `job_id` of a job")
        pipeline = pipelines.of_deployment(engine, deployment_id)
        compiled = Compiled(
            text=pipeline.definition,
            source=pipeline.source,
            plan=Plan.model_validate(pipeline.plan),
            arguments={},
        )
        priority = (work_queue or "").upper()
        created = create_job(
            house,
            compiled,
            source=Path(parameters["input"]),
            runtime=runtime,
            timeout_s=timeout_s,
            priority=JobPriority(priority) if priority in JobPriority.__members__ else JobPriority.NORMAL,
            tenant=job_variables.get("tenant"),
            flow_run_id=flow_run_id,
        )
        return created.id
    finally:
        engine.dispose()
