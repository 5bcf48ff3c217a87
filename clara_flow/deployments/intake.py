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

BOUNDS = {"gpus": "gpu", "gpu_memory": "gpu_memory_mib", "cpu": "cpu", "memory": "memory_mib"}


def check_bounds(plan: Plan, variables: Mapping[str, Any]) -> None:
    """Raise InputError for an operator that asks for more than the pool's form allows."""
    for name, resource in BOUNDS.items():
        most = variables.get(name)
        for operator in plan.operators:
            asked = getattr(operator.requests, resource)
            if most is not None and asked > most:
                raise InputError(
                    f"operator {operator.name!r} asks for {asked} {resource}, and this run is bounded to {most}; "
                    f"raise `{name}` of the run, its deployment or the work pool"
                )


def changed_plan(plan: Plan, variables: Mapping[str, Any]) -> Plan:
    """The plan with what the pool's form sets instead of the definition: FastIO volume and scheduling."""
    changes = {"fastio_mib": variables.get("fastio_size"), "scheduling": variables.get("scheduling")}
    return plan.model_copy(update={name: value for name, value in changes.items() if value is not None})


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
    job_variables   the values of the pool's form (`infra.pool.variables`).
    work_queue      its name is the priority where the form names none; any other queue means normal.

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
            again = resume_job(house, str(job.id), timeout_s=timeout_s, completed_too=True, flow_run_id=flow_run_id)
            return again.id
        if not parameters.get("input"):
            raise InputError("give the run an `input` (a folder on the platform's machine) or the `job_id` of a job")
        pipeline = pipelines.of_deployment(engine, deployment_id)
        plan = Plan.model_validate(pipeline.plan)
        check_bounds(plan, job_variables)
        changed = changed_plan(plan, job_variables)
        compiled = Compiled(
            text=pipeline.definition,
            source=pipeline.source,
            plan=changed,
            arguments={},
            is_variant=changed != plan,
        )
        priority = str(job_variables.get("priority") or work_queue or "").upper()
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
