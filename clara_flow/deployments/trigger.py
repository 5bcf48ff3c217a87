"""The ONE way in: whoever wants a job (CLI, and later gRPC, DICOM, load generator) creates it here.

Everything that can be refused is refused here, before a record or a file exists.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from uuid import UUID

import sqlalchemy as sa

from clara_flow.deployments.pipelines import read_definition
from clara_flow.errors import InputError, ResourcesNeverFit, SettingsError
from clara_flow.flows.compiler import Defaults, compile_pipeline, to_yaml
from clara_flow.flows.definition.problem import Severity
from clara_flow.infra.capacity import Capacity
from clara_flow.infra.images.catalog import Catalog
from clara_flow.infra.launchers.registry import create_launcher
from clara_flow.infra.launchers.spec import ResourceRequest
from clara_flow.plan import Plan
from clara_flow.records import jobs, payloads, pipelines
from clara_flow.records.models import Job
from clara_flow.records.payload_store import PayloadFolder, PayloadStore
from clara_flow.records.state_machine import JobPriority, JobState, JobStatus
from clara_flow.settings import Runtime, Settings
from clara_flow.tasks.ensure_models import recipes
from clara_flow.tasks.operator_io import refuse_what_cannot_run

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What creating and running jobs needs: made once by a process and passed on.

    engine          the records' database.
    prefect_api_url the Prefect server that shows the jobs.
    catalog         the bundled operators.
    capacity        what this machine has.
    """

    settings: Settings
    engine: sa.Engine
    prefect_api_url: str
    catalog: Catalog
    capacity: Capacity = field(default_factory=Capacity.of_this_machine)

    @property
    def store(self) -> PayloadStore:
        """Payloads on disk."""
        return PayloadStore(self.settings.data_dir / "payloads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A definition that can become jobs: its resolved text, where it came from, its plan, its warnings."""

    text: str
    source: str
    plan: Plan
    arguments: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def compile_definition(settings: Settings, path: Path, arguments: Mapping[str, str]) -> Compiled:
    """Read and compile a definition file. Raises InputError when it cannot be read, DefinitionInvalid."""
    content = read_definition(path)
    defaults = Defaults(cpu=settings.operator_cpu_default, memory_mib=settings.operator_memory_default_mib)
    result = compile_pipeline(content, source=path.name, arguments=arguments, root=path.parent, defaults=defaults)
    plan = result.require_plan()
    warnings = tuple(str(problem) for problem in result.of(Severity.WARNING))
    resolved = to_yaml(result.definition)  # one text: imports put in, parameters substituted
    return Compiled(text=resolved, source=path.name, plan=plan, arguments=arguments, warnings=warnings)


def create_job(
    house: House,
    compiled: Compiled,
    *,
    source: Path,
    runtime: Runtime,
    name: str | None = None,
    timeout_s: int | None = None,
    priority: JobPriority = JobPriority.NORMAL,
    on_progress: Progress | None = None,
) -> Job:
    """Take the folder `source` as the job's payload and queue a job of the compiled definition.

    timeout_s       None: the definition's, else the settings' default.
    on_progress     (bytes, of bytes) while the payload is copied.

    Raises ResourcesNeverFit, LauncherUnavailable, PayloadError, StorageError, SettingsError; then no record and no file
    was left.
    """
    plan = compiled.plan
    check_plan(house, plan, runtime)
    timeout = allowed_timeout(house.settings, plan, timeout_s)
    house.store.check_room(house.settings.storage_limit_percent)
    folder = house.store.stage(source, on_progress)
    pipeline = pipelines.create_pipeline(
        house.engine,
        name=plan.name,
        definition=compiled.text,
        plan=plan.model_dump(mode="json"),
        source=compiled.source,
    )
    return _record(
        house, folder, plan, pipeline.id, name=name or plan.name, runtime=runtime, timeout_s=timeout,
        arguments=compiled.arguments, priority=priority,
    )  # fmt: skip


def resume_job(house: House, reference: str, *, runtime: Runtime | None = None, timeout_s: int | None = None) -> Job:
    """Queue a job again that did not complete; what it had sealed is not run again.

    The new job has a payload of its own, with the same input (hard links). Raises InputError when the job is not over,
    has completed, or its payload was removed; else as `create_job` does.
    """
    earlier = jobs.get_job(house.engine, reference)
    if earlier.state is not JobState.STOPPED:
        raise InputError(f"job {earlier.id} is still {earlier.state}: wait for its end, or cancel it")
    if earlier.status is JobStatus.HEALTHY:
        raise InputError(f"job {earlier.id} has completed: there is nothing to resume")
    before = house.store.folder(earlier.payload_id)
    if not before.input.is_dir():
        raise InputError(f"the payload of job {earlier.id} was removed: run the pipeline on its input again")
    pipeline = pipelines.get_pipeline(house.engine, earlier.pipeline_id)
    plan = Plan.model_validate(pipeline.plan)
    runtime = runtime or cast(Runtime, earlier.runtime)
    check_plan(house, plan, runtime)
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
        arguments=earlier.arguments, priority=earlier.priority, resumes=earlier.id,
    )  # fmt: skip


def check_plan(house: House, plan: Plan, runtime: Runtime) -> None:
    """Raise for what this machine can never run: runtime, resources, images, models, kinds of operators."""
    asyncio.run(create_launcher(runtime, house.settings).check())
    requests = []
    for operator in plan.operators:
        refuse_what_cannot_run(operator)
        house.catalog.resolve(operator.container.reference, operator.container.command, runtime)
        request = ResourceRequest(**operator.requests.model_dump())
        if missing := house.capacity.missing_for(request):
            raise ResourcesNeverFit(operator.name, missing=missing)
        requests.append(request)
    if plan.scheduling == "gang":
        whole = ResourceRequest(
            cpu=sum(r.cpu for r in requests),
            memory_mib=sum(r.memory_mib for r in requests),
            gpu=sum(r.gpu for r in requests),
        )
        if missing := house.capacity.missing_for(whole):
            raise ResourcesNeverFit("the whole job (scheduling: gang)", missing=missing)
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
    resumes: UUID | None = None,
) -> Job:
    """Store payload and job; the payload's files go when that fails."""
    manifest = folder.input_manifest()
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
            resumes=resumes,
        )
    except BaseException:
        house.store.remove(folder.id)
        raise
