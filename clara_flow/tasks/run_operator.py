"""One operator of a job, as one Prefect task run: from its inputs' digests to sealed outputs.

1. When an upstream did not complete, it is Skipped.
2. When the same work (operator, configuration, inputs) was sealed before, by an earlier run of this job or by the job
   that it resumes, its outputs are taken: Cached.
3. It waits until the machine has what it asks for: WaitingForResources.
4. It is launched, or let go where it was started early; its log lines go to the task's log as they come.
5. What can heal is tried again, with resources asked for anew.
6. Its outputs are sealed, what it registered becomes delivery tasks, then the record says Completed. Whatever goes
   wrong before leaves no half output.

A job that shall go back to the queue begins no operator any more: what did not begin is left over, Preempted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import MissingContextError

from clara_flow.errors import ClaraFlowError, OperatorCancelled, OperatorError, ServiceError, StaleOwner
from clara_flow.infra.launchers.spec import ExitReport, ResourceRequest
from clara_flow.plan import PlanOperator
from clara_flow.records import jobs
from clara_flow.records.state_machine import OperatorEvent
from clara_flow.tasks import register_results, task_states
from clara_flow.tasks.attempt import Attempt, EndedEarly, attempts_before
from clara_flow.tasks.early_start import Started
from clara_flow.tasks.ensure_models import model_digest
from clara_flow.tasks.job_context import ABANDONED, BROKEN, JobContext, current_job
from clara_flow.tasks.operator_io import operator_digest

if TYPE_CHECKING:
    from clara_flow.infra.pool.desk import Grant


class LeftOver(Exception):
    """The operator does not begin: its job goes back to the queue."""


@task(persist_result=False, cache_policy=NO_CACHE)
async def run_operator(name: str, failed_upstreams: tuple[str, ...] = ()) -> State:
    """Run the current job's operator of that name; the returned state is the task run's.

    failed_upstreams    names of the upstreams that did not complete.

    Raises what makes it impossible to record how it ended; the job's other operators are stopped then.
    """
    job = current_job()
    step = Step(job, job.plan.operator(name))
    try:
        if failed_upstreams:
            return await step.skip(f"{', '.join(failed_upstreams)} did not complete")
        if job.stop.is_set():
            return await step.skip(f"the job was {job.stop_reason}")
        digest = await asyncio.to_thread(step.digest)
        return await step.reuse(digest) or await step.run(digest)
    except LeftOver:
        return step.leave_over()
    except (StaleOwner, ServiceError) as error:
        job.request_stop(ABANDONED if isinstance(error, StaleOwner) else BROKEN)
        raise
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
        """Take what was sealed for the same work before; None when there is none."""
        payload, earlier = self.job.payload, self.job.resumes
        sealed = await asyncio.to_thread(payload.sealed, self.name)
        message = "sealed in an earlier run of this job"
        if sealed is not None and sealed.work_digest != digest:  # by another version of the operator, say
            await asyncio.to_thread(payload.discard_sealed, self.name)
            await self._record(jobs.operator_reset)
            sealed = None
        if sealed is None and earlier is not None:
            sealed = await asyncio.to_thread(payload.adopt, self.name, earlier, digest)
            message = f"sealed by job {self.job.job.resumes}"
        if sealed is None:
            return None
        await register_results.register(self.job, self.operator, sealed.facts)
        await self._record(jobs.operator_ended, OperatorEvent.REUSE, message=message, digest=digest)
        self.job.begun[self.name].set()
        return task_states.cached(message)

    async def run(self, digest: str) -> State:
        """Attempt after attempt until one ends well. Raises ClaraFlowError when none does, LeftOver."""
        early = self.job.early.get(self.name)
        number = await attempts_before(self.job, self.name)
        for retries_left in range(self.operator.retries, -1, -1):
            number += 1
            if self.job.yielding.is_set():
                raise LeftOver
            started = await early.take() if early is not None else None
            try:
                report = await self._attempt(number, digest, started)
                return task_states.completed(f"ran {report.run_time_s:.2f} s")
            except OperatorError as error:
                if not retries_left or error.outcome not in self.operator.retry_on:
                    raise
                _logger().warning("attempt %d: %s", number, error)
                await self._end_attempt(error)
                await self._discard_early_downstreams()
        raise AssertionError("a range of at least one attempt either returned or raised")

    async def _attempt(self, number: int, digest: str, started: Started | None) -> ExitReport:
        """Wait for resources, work, seal, record."""
        desk, grants = self.job.desk, [] if started is None else [started.grant]
        try:
            try:
                report = await self._work(number, digest, started, grants)
            finally:
                if started is not None:
                    await started.attempt.discard()
            if self.job.stop_reason == ABANDONED:  # whoever has the job now seals
                raise OperatorCancelled(self.name, log_path=str(self.log_path))
            facts = await register_results.facts_of(self.job, self.operator)
        except BaseException:
            await asyncio.gather(*map(desk.release, grants))
            raise
        await asyncio.gather(
            asyncio.to_thread(self.job.payload.seal_outputs, self.name, digest, attempt=number, facts=facts),
            *map(desk.release, grants),
        )
        await register_results.register(self.job, self.operator, facts)
        await self._record(
            jobs.operator_ended,
            OperatorEvent.COMPLETE,
            exit_code=report.exit_code,
            run_time_s=report.run_time_s,
            peak_memory_bytes=report.peak_memory_bytes,
            identity=report.identity,
        )
        return report

    async def _work(self, number: int, digest: str, started: Started | None, grants: list[Grant]) -> ExitReport:
        """From the wait for resources to the operator's end; what is granted is added to `grants`."""
        asked = time.monotonic()
        wanted = ResourceRequest(**self.operator.requests.model_dump())
        needs_gpu = bool(wanted.gpu or wanted.gpu_memory_mib)
        waiting = _Waiting(self._record)
        try:
            if started is None:
                grants.append(await self._acquire(wanted, waiting))
            elif needs_gpu:
                grants.append(await self._acquire(wanted, waiting, part="gpu"))
        finally:
            await waiting.end()
        waited_s = time.monotonic() - asked
        gpus = grants[-1].gpus if needs_gpu else ()
        # The record is written while the operator starts: its milliseconds would add up over a chain of operators.
        running = asyncio.create_task(self._run_attempt(number, started, wanted, gpus))
        self.job.begun[self.name].set()
        try:
            await self._record(jobs.operator_started, attempt=number, waited_s=waited_s, digest=digest)
        except BaseException:  # the job is not ours any more, or the database is gone: so must the operator be
            running.cancel()
            await asyncio.wait({running})
            raise
        return await running

    async def _run_attempt(
        self, number: int, started: Started | None, request: ResourceRequest, gpus: tuple[str, ...]
    ) -> ExitReport:
        """What was started early goes on; where that has ended, and where nothing was, the ordinary way."""
        log = _logger()
        on_line = partial(log.info, "%s")
        if started is not None:
            try:
                return await started.attempt.go(gpus, on_line)
            except EndedEarly as error:
                log.warning("it is started again, having ended before its inputs were there: %s", error)
        return await Attempt(self.job, self.operator, number).run(request, gpus, on_line)

    async def _acquire(self, request: ResourceRequest, on_wait: Callable[[str], None], part: str = "") -> Grant:
        """The operator's resources. Raises OperatorCancelled, LeftOver when the job stops or yields before."""
        job = self.job
        left_s = job.seconds_left()
        limit_s = left_s if self.operator.timeout_s is None else min(self.operator.timeout_s, left_s)
        acquiring = asyncio.ensure_future(
            job.desk.acquire(
                self.name, request, limit_s=limit_s + job.settings.stop_grace_s, part=part, on_wait=on_wait
            )
        )
        ends = [asyncio.ensure_future(job.stop.wait()), asyncio.ensure_future(job.yielding.wait())]
        try:
            await asyncio.wait({acquiring, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if job.stop.is_set():
                raise OperatorCancelled(self.name, log_path=str(self.log_path))
            if job.yielding.is_set():
                raise LeftOver
            return acquiring.result()
        except BaseException:
            acquiring.cancel()
            await asyncio.wait({acquiring})
            if not acquiring.cancelled() and acquiring.exception() is None:
                await job.desk.release(acquiring.result())
            raise
        finally:
            for end in ends:
                end.cancel()

    async def _discard_early_downstreams(self) -> None:
        """What waits for this operator must not hold what it needs for its next attempt."""
        for early in self.job.early.values():
            if self.name in early.operator.upstreams:
                await early.discard()

    async def skip(self, reason: str) -> State:
        """Record that it did not run, and why."""
        await self._record(jobs.operator_ended, OperatorEvent.SKIP, message=reason)
        return task_states.skipped(reason)

    def leave_over(self) -> State:
        """It does not begin: its job goes back to the queue, which makes its record PENDING again."""
        self.job.left_over.append(self.name)
        return task_states.left_over("its job gave its place to a more urgent one")

    async def end_badly(self, error: OperatorError) -> State:
        """Throw away what it wrote, record how it ended."""
        await self._end_attempt(error)
        self.job.failures[self.name] = error
        return task_states.ended_badly(error)

    async def _end_attempt(self, error: OperatorError) -> None:
        await asyncio.to_thread(self.job.payload.discard_partial, self.name)
        await self._record(
            jobs.operator_ended,
            OperatorEvent(error.outcome),
            message=str(error),
            exit_code=error.facts.get("exit_code"),
        )

    async def _record(self, change: Callable[..., Any], *arguments: Any, **facts: Any) -> None:
        """Change this operator's record; nothing is recorded of a job that is not this runner's any more."""
        job = self.job
        if job.stop_reason != ABANDONED:
            await job.record(change, job.engine, job.job.id, self.name, job.owner, *arguments, **facts)


class _Waiting:
    """Tells Prefect and the records what an operator waits for, the latest reason last."""

    def __init__(self, record: Callable[..., Any]) -> None:
        self._record = record
        self._reason = ""
        self._writing: asyncio.Task[None] | None = None

    def __call__(self, reason: str) -> None:
        task_states.report_waiting(reason)
        self._reason = reason
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def end(self) -> None:
        """It waits no more."""
        if self._writing is not None:
            await self._writing
            task_states.report_running()

    async def _write(self) -> None:
        written = ""
        while written != self._reason:
            written = self._reason
            await self._record(jobs.operator_waits, message=written)


def _logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """The task run's; outside of one, this module's."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger(__name__)
