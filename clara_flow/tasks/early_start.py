"""Starting an operator while those before it still run, so that its container boots and its models load meanwhile.

It holds CPU and memory alone, and only what nobody else could use; its GPUs are leased when it begins to work. An early
start can make a job quicker and never make it fail: whatever goes wrong before the go, the operator is started again
the ordinary way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from clara_flow.errors import ClaraFlowError
from clara_flow.infra.launchers.spec import ResourceRequest
from clara_flow.plan import PlanOperator
from clara_flow.tasks.attempt import Attempt, attempts_before
from clara_flow.tasks.job_context import JobContext

if TYPE_CHECKING:
    from clara_flow.infra.pool.desk import Grant

log = logging.getLogger(__name__)


class Started(NamedTuple):
    """An operator that prepares itself, and what it holds."""

    attempt: Attempt
    grant: Grant


def may_start_early(job: JobContext, operator: PlanOperator) -> bool:
    """Whether the plan, the operator's program, the runtime and the settings let it."""
    bundled = job.catalog.find(operator.container.reference)
    wanted = operator.early_start if operator.early_start is not None else bundled is not None and bundled.prepare
    needs_gpu = operator.requests.gpu or operator.requests.gpu_memory_mib
    devices_are_fixed_at_start = job.launcher.runtime != "process"
    sealed = [
        folder for folder in (job.payload, job.resumes) if folder and folder.operator_folder(operator.name).exists()
    ]
    return bool(
        wanted
        and job.settings.early_start
        and operator.upstreams
        and not (needs_gpu and devices_are_fixed_at_start)
        and not sealed  # it will hardly have to run
    )


@asynccontextmanager
async def early_start(
    job: JobContext, operator: PlanOperator, upstreams: Mapping[str, asyncio.Task[Any]]
) -> AsyncIterator[None]:
    """Try to start an operator early, where it may be; when the body ends, nothing of that is left."""
    if not may_start_early(job, operator):
        yield
        return
    job.early[operator.name] = early = EarlyStart(job, operator, upstreams)
    try:
        yield
    finally:
        await early.discard()


class EarlyStart:
    """The early start of one operator: tried from the job's beginning on, until it is taken or discarded.

    upstreams   the steps of the operators that it reads from, by their names.
    """

    def __init__(self, job: JobContext, operator: PlanOperator, upstreams: Mapping[str, asyncio.Task[Any]]) -> None:
        self.job = job
        self.operator = operator
        self.upstreams = upstreams
        self._grant: Grant | None = None
        self._attempt: Attempt | None = None
        self._trying = asyncio.create_task(self._try())

    async def take(self) -> Started | None:
        """What was started, from now on the caller's; None, and nothing is left, where that did not come about."""
        await self._stop_trying()
        if self._attempt is None or self._grant is None or not self._attempt.is_prepared:
            if self._attempt is not None:
                log.warning("operator %s ended before its inputs were there: it is started again", self.operator.name)
            await self.discard()
            return None
        started = Started(self._attempt, self._grant)
        self._attempt = self._grant = None
        return started

    async def discard(self) -> None:
        """End what was started and give back what it held. Safe to call twice."""
        await self._stop_trying()
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            await attempt.discard()
        grant, self._grant = self._grant, None
        if grant is not None:
            await self.job.desk.release(grant)

    async def _stop_trying(self) -> None:
        """Ends the wait for upstreams and resources; a launch that has begun comes to its end."""
        if self._grant is None:
            self._trying.cancel()
        await asyncio.wait({self._trying})

    async def _try(self) -> None:
        job, name = self.job, self.operator.name
        try:
            for upstream in self.upstreams:
                await job.begun[upstream].wait()
            if all(task.done() for task in self.upstreams.values()) or job.stop.is_set() or job.yielding.is_set():
                return
            number = 1 + await attempts_before(job, name)
            requests = self.operator.requests
            request = ResourceRequest(cpu=requests.cpu, memory_mib=requests.memory_mib)
            limit_s = job.seconds_left() + job.settings.stop_grace_s
            self._grant = await job.desk.acquire(name, request, limit_s=limit_s, early=True)
            attempt = Attempt(job, self.operator, number)
            await attempt.prepare(request)
            self._attempt = attempt
        except (ClaraFlowError, OSError) as error:  # the ordinary way will tell
            log.info("operator %s is not started early: %s", name, error)
