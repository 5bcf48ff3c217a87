"""THE flow: runs any plan. One task run per operator, named after it, edges drawn by Prefect.

The flow is async (a sync flow of Prefect 3.8 ends up to 1 s late) and takes the job's id alone: the plan travels by id,
and between operators only folders are handed over, never data.

How a job ends:

    every operator Completed or Cached     flow Completed             job STOPPED/HEALTHY
    an operator ended badly                flow Failed "Faulted"      job STOPPED/FAULTED; its siblings finish
    asked to stop                          flow Cancelled             job STOPPED/CANCELED
    past its deadline                      flow Failed "TimedOut"     job STOPPED/TERMINATED
    preempted                              flow "Requeued"            job QUEUED again; sealed operators are kept
    its worker died                        (the reconciler says it)   the same
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed, Pending

from clara_flow.errors import ClaraFlowError
from clara_flow.flows import job_report
from clara_flow.infra.history.truth import origin_of
from clara_flow.plan import PlanOperator
from clara_flow.records import jobs
from clara_flow.records.state_machine import JobEvent
from clara_flow.tasks.early_start import early_start
from clara_flow.tasks.ensure_models import ensure_models
from clara_flow.tasks.job_context import ABANDONED, BROKEN, CANCELLED, TIMED_OUT, JobContext, current_job
from clara_flow.tasks.run_operator import run_operator
from clara_flow.tasks.task_states import edge_from

SHOWN_LOG_LINES = 10


@flow(name="pipeline-job", persist_result=False, validate_parameters=False)
async def pipeline_job(job_id: str) -> State:
    """Run the current job (`job_id` is for people who look at the run) to its end and record it.

    The returned state is the flow run's.
    """
    del job_id
    job = current_job()
    job.start_clock()
    if origin := origin_of(job.job):
        get_run_logger().info(origin)
    watchdog = asyncio.create_task(_stop_at_deadline(job))
    try:
        await _run_operators(job)
    except ClaraFlowError as error:  # before any operator: a model that cannot be made
        job.messages.append(str(error))
    finally:
        watchdog.cancel()
    return await _finish(job)


async def _stop_at_deadline(job: JobContext) -> None:
    await asyncio.sleep(job.seconds_left())
    job.request_stop(TIMED_OUT)


async def _run_operators(job: JobContext) -> None:
    """Run all operators, each as soon as its upstreams have ended."""
    await ensure_models(job)
    ends: dict[str, asyncio.Task[State]] = {}
    for operator in job.plan.operators:  # in topological order: upstreams are there already
        upstreams = {name: ends[name] for name in operator.upstreams}
        ends[operator.name] = asyncio.create_task(_run_after(operator, upstreams))
    for end in await asyncio.gather(*ends.values(), return_exceptions=True):  # all have ended before one is raised
        if isinstance(end, BaseException):
            raise end


async def _run_after(operator: PlanOperator, upstreams: dict[str, asyncio.Task[State]]) -> State:
    async with early_start(current_job(), operator, upstreams):
        return await _run_step(operator, {name: await task for name, task in upstreams.items()})


async def _run_step(operator: PlanOperator, states: dict[str, State]) -> State:
    failed = tuple(name for name, state in states.items() if not state.is_completed())
    step = _task(operator.name, operator.description or operator.container.reference)
    after = [edge_from(state) for state in states.values()]
    state: State[Any] = await step(operator.name, failed, wait_for=after, return_state=True)
    return state


@lru_cache(maxsize=256)  # Prefect reads the function's source for each
def _task(name: str, description: str) -> Any:
    """The task of an operator; without tags: a task with tags asks the server for leave, and fails without one."""
    return run_operator.with_options(name=name, task_run_name=name, description=description)


async def _finish(job: JobContext) -> State:
    """Record the job's end first, then show it."""
    log = get_run_logger()
    state: State[Any]
    if job.stop_reason == ABANDONED:
        return Failed(name="Abandoned", message="its runner stopped before the job's end")
    if job.left_over and not (job.stop_reason or job.failures or job.messages):
        reason = "gave its place to a more urgent job"
        await job.record(jobs.requeue_job, job.engine, job.job.id, reason=reason, owner=job.owner)
        return Pending(name="Requeued", message=f"{reason}; to be done: {', '.join(job.left_over)}")
    if job.stop_reason == CANCELLED:
        event, state = JobEvent.CANCEL, Cancelled(message="cancelled on request")
    elif job.stop_reason == TIMED_OUT:
        message = f"ran past its timeout of {job.job.timeout_s} s"
        job.messages.append(message)
        event, state = JobEvent.EXPIRE, Failed(name="TimedOut", message=message)
    elif job.failures or job.messages or job.stop_reason == BROKEN:
        if job.stop_reason == BROKEN:
            job.messages.append("how an operator ended could not be recorded: the database was away for too long")
        job.messages.extend(_story(error) for error in job.failures.values())
        event, state = JobEvent.FAULT, Failed(name="Faulted", message="\n".join(job.messages))
    else:
        event, state = JobEvent.COMPLETE, Completed(message=f"{len(job.plan.operators)} operators completed")
    job.job = await job.record(jobs.finish_job, job.engine, job.job.id, job.owner, event, messages=job.messages)
    rows = await job.record(jobs.list_operators, job.engine, job.job.id)
    try:
        await job_report.publish(job.plan, rows, job.payload)
    except Exception as error:  # noqa: BLE001  pictures are a courtesy: their failure must not touch the job
        log.warning("the job's artifacts could not be made: %s", error)
    return state


def _story(error: ClaraFlowError) -> str:
    """The failure with the last lines of the operator's log, as a person needs it."""
    lines = error.facts.get("last_lines", ())[-SHOWN_LOG_LINES:]
    return "\n".join([str(error), *(f"    {line}" for line in lines)])
