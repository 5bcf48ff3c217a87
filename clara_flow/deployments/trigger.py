"""The ONE way in: whoever wants a job (CLI, and later gRPC, DICOM, load generator) creates it here.

Everything that can be refused is refused here, before a record or a file exists.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from uuid import UUID

import sqlalchemy as sa

from clara_flow.deployments.pipelines import read_definition
from clara_flow.errors import InputError, ResourcesNeverFit, SettingsError
from clara_flow.flows.compiler import Defaults, compile_pipeline, to_yaml
from clara_flow.flows.definition.problem import Severity
from clara_flow.infra.images.catalog import Catalog
from clara_flow.infra.launchers.registry import create_launcher
from clara_flow.plan import Plan
from clara_flow.records import jobs, payloads, pipelines
from clara_flow.records.models import Job
from clara_flow.records.payload_store import PayloadFolder, PayloadStore
from clara_flow.records.state_machine import JobPriority, JobState, JobStatus
from clara_flow.settings import Runtime, Settings
from clara_flow.tasks.demand import GANG, demand_of, job_amounts, operator_amounts
from clara_flow.tasks.ensure_models import recipes
from clara_flow.tasks.operator_io import refuse_what_cannot_run

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What creating and running jobs needs: made once by a process and passed on.

    engine          the records' database.
    catalog         the operators that run without an image of their own.
    """

    settings: Settings
    engine: sa.Engine
    catalog: Catalog

    @property
    def store(self) -> PayloadStore:
        """Payloads on disk."""
        return PayloadStore(self.settings.data_dir / "payloads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A definition that can become jobs: its resolved text, where it came from, its plan, its warnings.

    is_variant  its plan was changed for one job.
    """

    text: str
    source: str
    plan: Plan
    arguments: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    is_variant: bool = False


def compile_definition(settings: Settings, path: Path, arguments: Mapping[str, str]) -> Compiled:
    """Read and compile a definition file. Raises InputError when it cannot be read, DefinitionInvalid."""
    content = read_definition(path)
    result = compile_pipeline(
        content, source=path.name, arguments=arguments, root=path.parent, defaults=Defaults.of(settings)
    )
    plan = result.require_plan()
    warnings = tuple(str(problem) for problem in result.of(Severity.WARNING))
    resolved = to_yaml(result.definition)  # one text: imports put in, parameters substituted
    return Compiled(text=resolved, source=path.name, plan=plan, arguments=arguments, warnings=warnings)


def create_job(
    house: House,
    compiled: Compiled,
    *,
    source: Path | Mapping[str, Path],
    runtime: Runtime,
    name: str | None = None,
    timeout_s: int | None = None,
    priority: JobPriority = JobPriority.NORMAL,
    tenant: str | None = None,
    flow_run_id: UUID | None = None,
    job_id: UUID | None = None,
    payload_id: UUID | None = None,
    metadata: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
) -> Job:
    """Take `source` as the job's payload and queue a job of the compiled definition.

    source          a folder, which is copied; or finished files by their name in the payload, which are hard-linked.
    job_id          idempotency key: a job that has it already is returned, and nothing is made.
    payload_id      of the new payload, where files are linked and somebody was told it before; half a payload of
                    that id goes.
    timeout_s       None: the definition's, else the settings' default.
    tenant          who it counts for; None: the definition's label `tenant`, else the settings' default.
    flow_run_id     the Prefect flow run that shows it, where there is one already.
    on_progress     (bytes, of bytes) while the payload is copied.

    Raises ResourcesNeverFit, LauncherUnavailable, PayloadError, StorageError, SettingsError; then no record and no file
    was left.
    """
    if job_id is not None and (existing := jobs.find_job(house.engine, job_id)) is not None:
        return existing
    plan = compiled.plan
    tenant = tenant or plan.tenant or house.settings.tenant
    check_plan(house, plan, runtime, tenant)
    timeout = allowed_timeout(house.settings, plan, timeout_s)
    house.store.check_room(house.settings.storage_limit_percent)
    store = house.store
    if payload_id is not None:
        store.remove(payload_id)  # no job has it: a crash left it
    folder = store.stage(source, on_progress) if isinstance(source, Path) else store.link(source, payload_id)
    pipeline = pipelines.create_pipeline(
        house.engine,
        name=plan.name,
        definition=compiled.text,
        plan=plan.model_dump(mode="json"),
        source=compiled.source,
        is_variant=compiled.is_variant,
    )
    return _record(
        house, folder, plan, pipeline.id, name=name or plan.name, runtime=runtime, timeout_s=timeout,
        arguments=compiled.arguments, priority=priority, tenant=tenant, flow_run_id=flow_run_id,
        job_id=job_id, metadata=metadata,
    )  # fmt: skip


def resume_job(
    house: House,
    reference: str,
    *,
    runtime: Runtime | None = None,
    timeout_s: int | None = None,
    completed_too: bool = False,
    flow_run_id: UUID | None = None,
) -> Job:
    """Queue a job again that did not complete; what it had sealed is not run again.

    The new job has a payload of its own, with the same input (hard links). Raises InputError when the job is not over,
    has completed (unless `completed_too`), or its payload was removed; else as `create_job` does.
    """
    earlier = jobs.get_job(house.engine, reference)
    if earlier.state is not JobState.STOPPED:
        raise InputError(f"job {earlier.id} is still {earlier.state}: wait for its end, or cancel it")
    if earlier.status is JobStatus.HEALTHY and not completed_too:
        raise InputError(f"job {earlier.id} has completed: there is nothing to resume")
    before = house.store.folder(earlier.payload_id)
    if not before.input.is_dir():
        raise InputError(f"the payload of job {earlier.id} was removed: run the pipeline on its input again")
    pipeline = pipelines.get_pipeline(house.engine, earlier.pipeline_id)
    plan = Plan.model_validate(pipeline.plan)
    runtime = runtime or cast(Runtime, earlier.runtime)
    check_plan(house, plan, runtime, earlier.tenant)
    timeout = allowed_timeout(house.settings, plan, timeout_s or earlier.timeout_s)
    house.store.check_room(house.settings.storage_limit_percent)
    folder = house.store.create()
    try:
        folder.adopt_input(before)
    except BaseException:
        house.store.remove(folder.id)
        raise
    return _record(
        house, folder, plan, pipeline.id, name=earlier.name, runtime=runtime, timeout_s=timeout,
        arguments=earlier.arguments, priority=earlier.priority, tenant=earlier.tenant, resumes=earlier.id,
        flow_run_id=flow_run_id,
    )  # fmt: skip


def check_plan(house: House, plan: Plan, runtime: Runtime, tenant: str) -> None:
    """Raise for what can never run: runtime, resources, quota, images, models, kinds of operators."""
    from clara_flow.infra.ledger.ledger import missing_for
    from clara_flow.infra.pool.dispatcher import ledger_nodes, ledger_quotas
    from clara_flow.records import nodes, quotas

    asyncio.run(create_launcher(runtime, house.settings).check())
    for operator in plan.operators:
        refuse_what_cannot_run(operator)
        house.catalog.resolve(operator.container.reference, operator.container.command, runtime)
    machines = ledger_nodes(nodes.list_nodes(house.engine), now=0.0)
    quota = next((quota for quota in ledger_quotas(quotas.list_quotas(house.engine)) if quota.tenant == tenant), None)
    if machines:  # else the pool has not come up yet, and the job waits for it
        holders = [(operator.name, operator_amounts(operator)) for operator in plan.operators]
        holders.append(
            ("the whole job" + (" (scheduling: gang)" if plan.scheduling == GANG else ""), job_amounts(plan))
        )
        for holder, amounts in holders:
            if missing := missing_for(machines, quota, amounts):
                raise ResourcesNeverFit(holder, missing=missing)
    recipes(plan, house.catalog)


def allowed_timeout(settings: Settings, plan: Plan, asked_s: int | None) -> int:
    """Seconds that the job may run. Raises SettingsError when more is asked for than the administrator allows."""
    timeout_s = asked_s or plan.timeout_s or settings.job_timeout_s
    if timeout_s > settings.job_timeout_maximum_s:
        raise SettingsError(
            f"a timeout of {timeout_s} s is above the maximum of {settings.job_timeout_maximum_s} s; "
            "ask for less, or raise CLARA_FLOW_JOB_TIMEOUT_MAXIMUM_S"
        )
    return timeout_s


def _record(
    house: House,
    folder: PayloadFolder,
    plan: Plan,
    pipeline_id: UUID,
    *,
    name: str,
    runtime: str,
    timeout_s: int,
    arguments: Mapping[str, str],
    priority: JobPriority,
    tenant: str,
    resumes: UUID | None = None,
    flow_run_id: UUID | None = None,
    job_id: UUID | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Job:
    """Store payload and job; the payload's files go when that fails."""
    manifest = folder.input_manifest()
    expected_s, steps_s = jobs.typical_run_times(house.engine, pipeline_id)
    try:
        payloads.create_payload(
            house.engine,
            payload_id=folder.id,
            input_digest=manifest.digest,
            input_files=len(manifest.files),
            input_bytes=manifest.size_bytes,
        )
        return jobs.create_job(
            house.engine,
            name=name,
            pipeline_id=pipeline_id,
            payload_id=folder.id,
            operators=[operator.name for operator in plan.operators],
            runtime=runtime,
            timeout_s=timeout_s,
            arguments=arguments,
            priority=priority,
            tenant=tenant,
            demand=demand_of(
                plan,
                timeout_s=timeout_s,
                grace_s=house.settings.stop_grace_s,
                expected_s=expected_s,
                steps_s=steps_s,
            ),
            preemptible=plan.preemptible,
            on_restart=plan.on_restart,
            fastio_mib=plan.fastio_mib,
            resumes=resumes,
            flow_run_id=flow_run_id,
            job_id=job_id,
            metadata=metadata,
        )
    except BaseException:
        house.store.remove(folder.id)
        raise
