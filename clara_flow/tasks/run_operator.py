"""One operator of a job, as one Prefect task run: from its inputs' digests to sealed outputs.

1. When an upstream did not complete, it is Skipped.
2. When the same work (operator, configuration, inputs) was sealed before, its outputs are taken over: Cached.
3. It waits until the machine has what it asks for: WaitingForResources.
4. It is launched; its log lines go to the task's log as they come.
5. Its outputs are sealed, then the record says Completed. Whatever goes wrong before leaves no half output.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from clara_flow.errors import ClaraFlowError, OperatorCancelled, OperatorError, OperatorLost
from clara_flow.infra.launchers.spec import ExitReport, LaunchSpec, ResourceRequest
from clara_flow.plan import PlanOperator, expand_command, substitute_builtins
from clara_flow.records import jobs
from clara_flow.records.state_machine import OperatorEvent
from clara_flow.tasks import task_states
from clara_flow.tasks.ensure_models import model_digest
from clara_flow.tasks.job_context import JobContext, current_job
from clara_flow.tasks.operator_io import OperatorFolders, operator_digest, prepare_io

if TYPE_CHECKING:
    from clara_flow.infra.pool.desk import Grant


@task(persist_result=False, cache_policy=NO_CACHE)
async def run_operator(name: str, failed_upstreams: tuple[str, ...] = ()) -> State:
    """Run the current job's operator of that name; the returned state is the task run's.

    failed_upstreams    names of the upstreams that did not complete.
    """
    job = current_job()
    step = Step(job, job.plan.operator(name))
    if failed_upstreams:
        return await step.skip(f"{', '.join(failed_upstreams)} did not complete")
    if job.stop.is_set():
        return await step.skip(f"the job was {job.stop_reason}")
    if job.yielding.is_set():
        return step.leave_over()
    try:
        digest = await asyncio.to_thread(step.digest)
        return await step.reuse(digest) or await step.run(digest)
    except OperatorError as error:
        return await step.end_badly(error)
    except ClaraFlowError as error:  # no image, never fits, disk full: this operator's failure, and the job's story
        return await step.end_badly(OperatorError(name, f"could not run: {error}", log_path=str(step.log_path)))


class Step:
    """One operator of one job on its way. Blocking calls (database, disk) go to threads."""

    def __init__(self, job: JobContext, operator: PlanOperator) -> None:
        self.job = job
        self.operator = operator
        self.name = operator.name
        self.log_path = job.payload.log_path(operator.name)

    def digest(self) -> str:
        """What decides this operator's outputs, hashed. Reads manifests only, no data."""
        job, payload = self.job, self.job.payload
        inputs = {"": payload.input_manifest().digest}
        for upstream in self.operator.upstreams:
            manifest = payload.sealed(upstream)
            inputs[upstream] = manifest.digest if manifest else ""
        models = {model.name: model_digest(job.models[model.name]) for model in self.operator.models}
        reference = self.operator.container.reference
        bundled = job.catalog.find(reference)
        code = bundled.image if bundled else reference
        return operator_digest(self.operator, code=code, inputs=inputs, models=models)

    async def reuse(self, digest: str) -> State | None:
        """Take over what the job that this one resumes has sealed for the same work; None when there is none."""
        earlier = self.job.resumes
        if earlier is None or not await asyncio.to_thread(self.job.payload.adopt, self.name, earlier, digest):
            return None
        message = f"sealed by job {self.job.job.resumes}"
        await self._record(jobs.operator_ended, OperatorEvent.REUSE, message=message, digest=digest)
        return task_states.cached(message)

    async def run(self, digest: str) -> State:
        """Wait for resources, launch, seal. Raises ClaraFlowError when anything goes wrong."""
        request = ResourceRequest(**self.operator.requests.model_dump())
        asked = time.monotonic()
        waits: list[asyncio.Task[Any]] = []

        def on_wait(reason: str) -> None:
            task_states.report_waiting(reason)
            waits.append(asyncio.create_task(self._record(jobs.operator_waits)))

        grant = await self._admitted(request, on_wait)
        waited_s = time.monotonic() - asked
        try:
            if waits:
                await asyncio.wait(waits)
                task_states.report_running()
            attempt, report = await self._attempts(grant, waited_s, digest)
        finally:
            await self.job.desk.release(grant)
        await asyncio.to_thread(self.job.payload.seal_outputs, self.name, digest, attempt=attempt)
        await self._record(
            jobs.operator_ended,
            OperatorEvent.COMPLETE,
            exit_code=report.exit_code,
            run_time_s=report.run_time_s,
            peak_memory_bytes=report.peak_memory_bytes,
            identity=report.identity,
        )
        return task_states.completed(f"ran {report.run_time_s:.2f} s")

    async def _admitted(self, request: ResourceRequest, on_wait: Callable[[str], None]) -> Grant:
        """The operator's resources, or OperatorCancelled when the job is stopped before they are free."""
        limits = [limit for limit in (self.operator.timeout_s, self.job.seconds_left()) if limit is not None]
        limit_s = min(limits) + self.job.settings.stop_grace_s
        acquiring = asyncio.ensure_future(self.job.desk.acquire(self.name, request, limit_s=limit_s, on_wait=on_wait))
        stopping = asyncio.ensure_future(self.job.stop.wait())
        try:
            await asyncio.wait({acquiring, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not acquiring.done():
                raise OperatorCancelled(self.name, log_path=str(self.log_path))
            return acquiring.result()
        finally:
            stopping.cancel()
            acquiring.cancel()

    async def _attempts(self, grant: Grant, waited_s: float, digest: str) -> tuple[int, ExitReport]:
        """The first attempt that ends well, with its number; only OperatorLost, which another one can heal, has one."""
        for attempt in range(1, self.operator.retries + 2):
            # The record is written while the operator starts: its milliseconds would add up over a chain of operators.
            running = asyncio.create_task(self._attempt(attempt, grant))
            try:
                await self._record(jobs.operator_started, waited_s=waited_s, digest=digest)
            except BaseException:  # the job is not ours any more, or the database is gone: so must the operator be
                running.cancel()
                await asyncio.wait({running})
                raise
            try:
                return attempt, await running
            except OperatorLost as error:
                if attempt > self.operator.retries:
                    raise
                get_run_logger().warning("attempt %d: %s", attempt, error)
                await self._record(jobs.operator_ended, OperatorEvent.LOSE, message=str(error))
        raise AssertionError("a range of at least one attempt either returned or raised")

    async def _attempt(self, attempt: int, grant: Grant) -> ExitReport:
        job, operator, payload = self.job, self.operator, self.job.payload
        folders = OperatorFolders(
            payload=payload.input,
            upstreams={upstream: payload.operator_folder(upstream) for upstream in operator.upstreams},
            output=await asyncio.to_thread(
                payload.open_outputs, self.name, [output.name for output in operator.outputs], attempt=attempt
            ),
            report=payload.report_folder(self.name),
            manifest=payload.control_folder(self.name) / "io.json",
            models={model.name: job.models[model.name] for model in operator.models},
        )
        io = prepare_io(operator, folders, job.identity, job.launcher.path_inside)
        builtins = job.identity.builtins(self.name)
        command = tuple(substitute_builtins(word, builtins) for word in operator.container.command)
        command = expand_command(command, io.environment)
        resolved = job.catalog.resolve(operator.container.reference, command, job.launcher.runtime)
        timeouts = [limit for limit in (operator.timeout_s, job.seconds_left()) if limit is not None]
        spec = LaunchSpec(
            operator=self.name,
            job_id=job.identity.job_id,
            attempt=attempt,
            image=resolved.image,
            command=resolved.command,
            environment=io.environment,
            mounts=io.mounts,
            outputs=io.outputs,
            request=grant.request,
            gpu_devices=grant.gpus,
            timeout_s=min(timeouts),
            grace_s=job.settings.stop_grace_s,
            log_path=self.log_path,
            log_limit_bytes=job.settings.operator_log_limit_mib * 2**20,
            pull_policy=job.settings.image_pull_policy,
            registry_auth=job.registry_auth(operator.container.image),
        )
        log = get_run_logger()
        return await job.launcher.run(spec, stop=job.stop, on_line=partial(log.info, "%s"))

    async def skip(self, reason: str) -> State:
        """Record that it did not run, and why."""
        await self._record(jobs.operator_ended, OperatorEvent.SKIP, message=reason)
        return task_states.skipped(reason)

    def leave_over(self) -> State:
        """It does not begin: its job goes back to the queue. The record keeps it PENDING."""
        self.job.left_over.append(self.name)
        return task_states.left_over("its job gave its place to a more urgent one")

    async def end_badly(self, error: OperatorError) -> State:
        """Throw away what it wrote, record how it ended."""
        await asyncio.to_thread(self.job.payload.discard_partial, self.name)
        await self._record(
            jobs.operator_ended,
            OperatorEvent(error.outcome),
            message=str(error),
            exit_code=error.facts.get("exit_code"),
        )
        self.job.failures[self.name] = error
        return task_states.ended_badly(error)

    async def _record(self, change: Callable[..., Any], *arguments: Any, **facts: Any) -> None:
        job = self.job
        await job.record(change, job.engine, job.job.id, self.name, job.owner, *arguments, **facts)
