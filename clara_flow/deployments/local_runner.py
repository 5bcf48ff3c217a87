"""Running a queued job in this process: what `clara-flow run` does."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import State
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, temporary_settings

from clara_flow.deployments.trigger import House
from clara_flow.errors import JobFaulted
from clara_flow.flows.pipeline_job import pipeline_job
from clara_flow.infra.capacity import CapacityGate
from clara_flow.infra.launchers.registry import create_launcher
from clara_flow.plan import Plan
from clara_flow.records import jobs, pipelines
from clara_flow.records.models import Job, JobOperator
from clara_flow.records.owner import Owner
from clara_flow.records.payload_store import PayloadFolder
from clara_flow.records.state_machine import JobEvent, JobState, JobStatus, OperatorStatus
from clara_flow.tasks.job_context import CANCELLED, JobContext, ModelProgress, Observer, running_job


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFolder:
    """One output that nothing in the pipeline computes with: a result of the job. `output` "" = the only one."""

    operator: str
    output: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """A job that is over.

    results      result folders of operators that completed.
    deliveries   what was registered for delivery: the records that Register Results wrote, by operator.
    """

    job: Job
    plan: Plan
    operators: list[JobOperator]
    payload: PayloadFolder
    results: list[ResultFolder] = field(default_factory=list)
    deliveries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def raise_for_status(self) -> None:
        """Raise JobFaulted, with the job's messages, unless it completed."""
        if self.job.status is not JobStatus.HEALTHY:
            story = "\n".join(self.job.messages)
            raise JobFaulted(f"job {self.job.id} ended {self.job.state}/{self.job.status}\n{story}".rstrip())


class LocalRunner:
    """Runs one job in a thread of its own, so that the main thread can draw and take signals."""

    def __init__(
        self,
        house: House,
        job: Job,
        *,
        observer: Observer = lambda news: None,
        on_model_progress: ModelProgress = lambda name, done, message: None,
    ) -> None:
        self._house = house
        self._job = job
        self._plan = Plan.model_validate(pipelines.get_pipeline(house.engine, job.pipeline_id).plan)
        self._observer = observer
        self._on_model_progress = on_model_progress
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: JobContext | None = None

    def run(self) -> JobOutcome:
        """Run the job to its end, whatever the end is. Signals reach the calling thread while it waits.

        Raises what broke the machinery itself (database gone, flow could not start); the job is then FAULTED.
        """
        failures: list[BaseException] = []

        def work() -> None:
            try:
                asyncio.run(self._run())
            except BaseException as error:  # noqa: BLE001  carried to the caller's thread
                failures.append(error)

        thread = threading.Thread(target=work, name=f"job-{self._job.id}")
        thread.start()
        while thread.is_alive():
            thread.join(0.1)  # a bounded wait lets the main thread handle signals
        if failures:
            self._fault(failures[0])
            raise failures[0]
        return outcome(self._house, self._job, self._plan)

    def cancel(self) -> None:
        """Ask the job to end; safe to call from any thread and more than once."""
        if self._ready.wait(timeout=30) and self._loop and self._context and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._context.request_stop, CANCELLED)

    async def _run(self) -> None:
        house, job = self._house, self._job
        launcher = create_launcher(job.runtime, house.settings)
        self._loop = asyncio.get_running_loop()
        self._context = JobContext(
            settings=house.settings,
            engine=house.engine,
            job=job,
            plan=self._plan,
            payload=house.store.folder(job.payload_id),
            catalog=house.catalog,
            launcher=launcher,
            gate=CapacityGate(house.capacity),
            owner=Owner.of_this_process(),
            time_limit=timedelta(seconds=job.timeout_s),
            resumes=house.store.folder(jobs.get_job(house.engine, job.resumes).payload_id) if job.resumes else None,
            observer=self._observer,
            on_model_progress=self._on_model_progress,
        )
        self._ready.set()
        await reap(house, launcher.reap)
        with running_job(self._context), temporary_settings({PREFECT_API_URL: house.prefect_api_url}):
            flow = pipeline_job.with_options(name=self._plan.name, flow_run_name=f"{job.name}-{str(job.id)[:8]}")
            state: State[Any] = await flow(str(job.id), return_state=True)
            await APILogHandler.aflush()  # else the last lines would be sent after this process said it is done
            if jobs.get_job(house.engine, job.id).state is not JobState.STOPPED:
                await state.aresult()  # raises what kept the flow from recording the job's end

    def _fault(self, error: BaseException) -> None:
        """Record that the machinery broke, as far as the database can be reached."""
        context = self._context
        job = jobs.get_job(self._house.engine, self._job.id)
        if job.state is JobState.PENDING:
            jobs.fault_job(self._house.engine, job.id, messages=[str(error)])
        elif job.state is JobState.RUNNING and context is not None:
            jobs.finish_job(
                self._house.engine, job.id, context.owner, JobEvent.FAULT, messages=[*context.messages, str(error)]
            )


async def reap(house: House, reap_launcher: Callable[[Callable[[str], bool]], Any]) -> None:
    """Clean up after runners that died: their jobs are EVICTED, what they had launched is removed."""
    await asyncio.to_thread(jobs.evict_orphans, house.engine)
    running = {str(job.id) for job in await asyncio.to_thread(jobs.list_jobs, house.engine, states=[JobState.RUNNING])}
    await reap_launcher(lambda job_id: job_id in running)


def outcome(house: House, job: Job, plan: Plan) -> JobOutcome:
    """What became of a job, from the records and its payload."""
    rows = jobs.list_operators(house.engine, job.id)
    folder = house.store.folder(job.payload_id)
    completed = {row.name for row in rows if row.status is OperatorStatus.COMPLETED}
    sinks = {operator.name for operator in plan.operators if not operator.outputs}
    results = [
        ResultFolder(
            operator=operator.name, output=output.name, path=folder.operator_folder(operator.name, output.name)
        )
        for operator in plan.operators
        if operator.name in completed
        for output in operator.outputs
        if set(plan.consumers(operator.name, output.name)) <= sinks
    ]
    deliveries = {}
    for name in sorted(completed & sinks):
        record = folder.report_folder(name) / "delivery.json"
        if record.is_file():
            deliveries[name] = json.loads(record.read_text(encoding="utf-8"))
    return JobOutcome(
        job=jobs.get_job(house.engine, job.id),
        plan=plan,
        operators=rows,
        payload=folder,
        results=results,
        deliveries=deliveries,
    )
