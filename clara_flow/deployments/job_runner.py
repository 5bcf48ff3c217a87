"""What a warm runner does with the jobs it is given, one after another. The pool's zygote starts it, never a person.

python -m clara_flow.deployments.job_runner
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache, partial
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL

from clara_flow.deployments.own_log import log_to_stderr
from clara_flow.deployments.register import register_pipeline
from clara_flow.errors import ClaraFlowError, InvalidTransition, ServiceError, StaleOwner
from clara_flow.flows.pipeline_job import pipeline_job
from clara_flow.infra.fastio.volumes import FastIOVolume, FastIOVolumes
from clara_flow.infra.history.run_history import RunHistory
from clara_flow.infra.history.truth import flow_run_name, flow_run_tags
from clara_flow.infra.images.catalog import installed
from clara_flow.infra.launchers.base import Launcher
from clara_flow.infra.launchers.registry import create_launcher
from clara_flow.infra.launchers.supervisors import start_server
from clara_flow.infra.pool import zygote
from clara_flow.infra.pool.desk import Desk, GangDesk, LeaseDesk, Switchboard
from clara_flow.infra.postgres import records_url
from clara_flow.plan import Plan
from clara_flow.records import jobs, leases, pipelines
from clara_flow.records.database import connect, persistently
from clara_flow.records.models import Job, Pipeline
from clara_flow.records.owner import Owner
from clara_flow.records.payload_store import PayloadStore
from clara_flow.records.state_machine import JobEvent, JobState
from clara_flow.settings import Settings, load_settings
from clara_flow.tasks.demand import GANG
from clara_flow.tasks.job_context import ABANDONED, CANCELLED, JobContext, running_job

log = logging.getLogger(__name__)

MODEL_STEP = 0.05  # the least progress of a model that is worth a notice

# What others import only when a flow runs: half a second in the first job of each runner. Here the zygote does it once.
IMPORTED_LATE = (
    "anyio._backends._asyncio",
    "clara_flow.infra.launchers.docker",
    "clara_flow.infra.launchers.process",
    "fastapi.encoders",
    "graphviz",
    "prefect._internal.states",
    "prefect.concurrency._events",
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect.telemetry.run_telemetry",
    "prefect.utilities.visualization",
)


@dataclass
class JobRunner:
    """Runs the jobs of one runner process; what they share is opened once.

    Raises, out of `run`, what broke the machinery itself; the job is then FAULTED, as far as the database answers.
    """

    settings: Settings = field(default_factory=load_settings)
    _launchers: dict[str, Launcher] = field(default_factory=dict)
    _plans: dict[UUID, tuple[Pipeline, Plan]] = field(default_factory=dict)
    _current: JobContext | None = None
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _telling: set[asyncio.Task[None]] = field(default_factory=set)

    async def open(self) -> None:
        """Connect to the database and to Prefect."""
        settings = self.settings
        self.store = PayloadStore(settings.data_dir / "payloads")
        self.catalog = installed(settings.catalogs)
        self.fastio = FastIOVolumes()
        self.engine = connect(records_url(settings), pre_ping=False)  # a call on a lost connection is repeated
        self.switchboard = Switchboard(self.engine, on_stop=self._on_stop, on_yield=self._on_yield)
        self.history = RunHistory(PREFECT_API_URL.value())
        await self.history.open()
        await asyncio.to_thread(start_server)

    async def close(self) -> None:
        """Let go of everything, when Prefect knows of the last jobs."""
        if self._telling:
            await asyncio.wait(self._telling)
        await self.history.close()
        self.switchboard.close()
        self.engine.dispose()

    async def run(self, job_id: UUID, facts: dict[str, Any], stop: Callable[[Callable[[str], None]], None]) -> None:
        """Take the job, run it to its end, record that. A job that is not there to be taken any more is left alone."""
        del facts
        owner = Owner.of_this_process()
        try:
            node = self.settings.node_name or socket.gethostname()
            job = await self._persist(jobs.begin_job, self.engine, job_id, owner, node=node)
        except (InvalidTransition, StaleOwner) as error:  # cancelled, or given to another runner, in the meantime
            log.info("job %s is not taken: %s", job_id, error)
            return
        try:
            await self._run(job, owner, stop)
        except StaleOwner as error:
            log.warning("job %s was taken away: %s", job_id, error)
        except ClaraFlowError as error:
            await self._fault(job, owner, error)
        finally:
            self._current = None
            self._over.set()

    async def abandon(self) -> None:
        """Stop what runs and record nothing: the worker is gone, and the job goes on elsewhere."""
        if self._current is not None:
            self._current.request_stop(ABANDONED)
            await self._over.wait()

    async def _run(self, job: Job, owner: Owner, stop: Callable[[Callable[[str], None]], None]) -> None:
        pipeline, plan = await self._plan_of(job)
        volume = await self._volume(job, owner)
        try:
            context = await self._context(job, plan, owner, volume)
            self._current = context
            self._over.clear()
            stop(lambda reason: context.request_stop(CANCELLED))
            if job.cancel_requested:
                context.request_stop(CANCELLED)
            await self._run_flow(job, pipeline, context)
        finally:
            if volume is not None:
                await asyncio.to_thread(volume.remove)

    async def _run_flow(self, job: Job, pipeline: Pipeline, context: JobContext) -> None:
        """The flow. What Prefect is told of it is told while the runner takes the next job."""
        ended: asyncio.Future[State[Any]] = asyncio.get_running_loop().create_future()
        with running_job(context):
            telling = asyncio.create_task(self._run_shown(job, pipeline, context, ended))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)
        either: set[asyncio.Future[Any]] = {telling, ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await telling  # raises what kept the flow from running
        state = ended.result()
        if context.job.state is JobState.STOPPED:
            return
        after = await self._persist(jobs.get_job, self.engine, job.id)
        if after.state is JobState.RUNNING and after.fence == context.owner.token and not context.stop_reason:
            await state.aresult()  # raises what kept the flow from recording the job's end
            raise ClaraFlowError(f"the flow of job {job.id} ended {state.name} without recording it")

    async def _run_shown(
        self, job: Job, pipeline: Pipeline, context: JobContext, ended: asyncio.Future[State[Any]]
    ) -> None:
        """The flow, seen by Prefect or not: it runs all the same. Sets `ended`, and returns when all of it is told."""
        async with self.history.run(
            job.id,
            name=flow_run_name(job),
            flow_name=context.plan.name,
            deployment=partial(self._deployment_of, pipeline),
            work_pool=self.settings.pool,
            work_queue=job.priority.lower(),
            tags=flow_run_tags(job),
            parameters={"job_id": str(job.id)},
            flow_run_id=job.flow_run_id,
            on_created=lambda flow_run_id: self._persist(jobs.note_flow_run, self.engine, job.id, flow_run_id),
        ) as run:
            ended.set_result(await _flow(context.plan.name)(str(job.id), return_state=True))
        if run.complete and context.job.state is JobState.STOPPED:
            try:
                await self._persist(jobs.mark_history_due, self.engine, job.id, False)
            except ServiceError as error:  # then it is told once more
                log.info("that the history of job %s is complete could not be recorded: %s", job.id, error)

    async def _context(self, job: Job, plan: Plan, owner: Owner, volume: FastIOVolume | None) -> JobContext:
        resumed = await self._persist(jobs.get_job, self.engine, job.resumes) if job.resumes else None
        return JobContext(
            settings=self.settings,
            engine=self.engine,
            job=job,
            plan=plan,
            payload=self.store.folder(job.payload_id),
            catalog=self.catalog,
            launcher=self._launcher(job.runtime),
            desk=await self._desk(job, plan, owner),
            owner=owner,
            time_limit=timedelta(seconds=job.timeout_s),
            resumes=self.store.folder(resumed.payload_id) if resumed else None,
            fastio=volume,
            on_model_progress=ModelNews(self, job.id),
        )

    async def _desk(self, job: Job, plan: Plan, owner: Owner) -> Desk:
        if plan.scheduling == GANG:
            own = next(row for row in await self._persist(leases.load, self.engine, {job.id}) if not row.operator)
            return GangDesk(own.id, tuple(own.devices))
        return LeaseDesk(
            engine=self.engine,
            persist=self._persist,
            switchboard=self.switchboard,
            job_id=job.id,
            owner=owner,
            poll_s=self.settings.poll_s,
            steps_s=job.demand.get("steps_s"),
        )

    async def _plan_of(self, job: Job) -> tuple[Pipeline, Plan]:
        if job.pipeline_id not in self._plans:
            pipeline = await self._persist(pipelines.get_pipeline, self.engine, job.pipeline_id)
            self._plans[job.pipeline_id] = (pipeline, Plan.model_validate(pipeline.plan))
        return self._plans[job.pipeline_id]

    async def _deployment_of(self, pipeline: Pipeline) -> UUID | None:
        """The Prefect deployment of a pipeline, made when this is its first job."""
        if pipeline.deployment_id is None and not pipeline.is_variant:
            try:
                pipeline.deployment_id = await asyncio.to_thread(
                    register_pipeline, self.engine, pipeline, pool=self.settings.pool, api_url=PREFECT_API_URL.value()
                )
            except ServiceError as error:  # the worker does it when Prefect is back
                log.info("pipeline %s has no deployment yet: %s", pipeline.name, error)
        return pipeline.deployment_id

    async def _volume(self, job: Job, owner: Owner) -> FastIOVolume | None:
        if not job.fastio_mib:
            return None
        return await asyncio.to_thread(self.fastio.create, job.id, job.fastio_mib)

    def _launcher(self, runtime: str) -> Launcher:
        if runtime not in self._launchers:
            self._launchers[runtime] = create_launcher(runtime, self.settings)
        return self._launchers[runtime]

    async def _fault(self, job: Job, owner: Owner, error: ClaraFlowError) -> None:
        """Record that the machinery broke."""
        log.error("job %s: %s", job.id, error)
        messages = [*(self._current.messages if self._current else ()), str(error)]
        await self._persist(jobs.finish_job, self.engine, job.id, owner, JobEvent.FAULT, messages=messages)

    async def _persist(self, change: Callable[..., Any], *arguments: Any, **facts: Any) -> Any:
        call = partial(persistently, change, *arguments, patience_s=self.settings.database_patience_s, **facts)
        return await asyncio.to_thread(call)

    def _on_stop(self, job_id: UUID) -> None:
        if self._current is not None and self._current.job.id == job_id:
            self._current.request_stop(CANCELLED)

    def _on_yield(self, job_id: UUID) -> None:
        if self._current is not None and self._current.job.id == job_id:
            self._current.yielding.set()


@lru_cache(maxsize=64)  # Prefect reads the function's source for each
def _flow(name: str) -> Any:
    """The flow under the pipeline's name. Its runs are named by whoever serves them: see RunHistory."""
    return pipeline_job.with_options(name=name)


class ModelNews:
    """Tells whoever watches a job how the making of its models goes; called in any thread."""

    def __init__(self, runner: JobRunner, job_id: UUID) -> None:
        self._runner, self._job_id = runner, job_id
        self._told: dict[str, tuple[float, str]] = {}

    def __call__(self, model: str, done: float, message: str) -> None:
        before = self._told.get(model)
        if before is None or message != before[1] or done >= before[0] + MODEL_STEP:
            self._told[model] = (done, message)
            jobs.tell_news(self._runner.engine, self._job_id, model=model, done=done, message=message)


if __name__ == "__main__":
    for module in IMPORTED_LATE:
        importlib.import_module(module)
    log_to_stderr()
    zygote.main(JobRunner)
