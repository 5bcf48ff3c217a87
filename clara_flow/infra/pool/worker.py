"""The Prefect worker of type `clara-gpu`: what Prefect sees of a machine of the pool.

    prefect work-pool create --type clara-gpu clara-flow
    prefect worker start --pool clara-flow

Jobs do not come through Prefect: the node that this worker hosts takes them from our records, and goes on while Prefect
is away. What Prefect's polling brings are runs that people made in its UI (Quick run of a deployment, Retry of a run);
each becomes a job of ours, and from then on is shown like every other.

Of Prefect's base class one private method is overridden, `_submit_run`: an error in it would end the whole worker.
"""

from __future__ import annotations

import asyncio
import os
import pkgutil
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from uuid import UUID

import anyio
import httpx
import sqlalchemy as sa
from anyio.abc import TaskStatus
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_URL
from prefect.states import Failed
from prefect.workers.base import BaseJobConfiguration, BaseWorker, BaseWorkerResult

from clara_flow.errors import ClaraFlowError, SettingsError
from clara_flow.infra.history import job_rows
from clara_flow.infra.history.cancel_watch import CancelWatch
from clara_flow.infra.history.historian import Historian
from clara_flow.infra.history.server import ServerAway, ServerRefused
from clara_flow.infra.ledger.model import Ask
from clara_flow.infra.pool.variables import PoolVariables, base_job_template
from clara_flow.infra.pool.work_pool import WORKER_TYPE, ensure_pool
from clara_flow.infra.postgres import records_url
from clara_flow.records import jobs
from clara_flow.records.database import connect
from clara_flow.records.state_machine import JobState
from clara_flow.settings import Settings, load_settings

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

INTAKE = "clara_flow.deployments.intake:job_for_flow_run"  # named, not imported: it stands above this room
REGISTER = "clara_flow.deployments.register:register_again"
POLL_S = 1.0

OnWaiting = Callable[[Sequence[tuple[Ask, str]]], None]


class Node(Protocol):
    """What does the work of this machine: `infra.pool.node.PoolNode`."""

    def start(self) -> None:
        """Join the pool. Raises ClaraFlowError when that is impossible."""

    def stop(self) -> None:
        """Leave the pool."""


def pool_node(settings: Settings, on_waiting: OnWaiting) -> Node:
    """The real one."""
    from clara_flow.infra.pool.node import PoolNode

    return PoolNode(settings, on_waiting=on_waiting)


class ClaraGpuJobConfiguration(PoolVariables, BaseJobConfiguration):
    """The form's values for one run."""


class ClaraGpuWorkerResult(BaseWorkerResult):
    """How a run ended, as Prefect's worker understands it: always well, since our records have shown the true end."""


class ClaraGpuWorker(BaseWorker[ClaraGpuJobConfiguration, Any, ClaraGpuWorkerResult]):
    """Hosts this machine's node. Its settings are the platform's (`CLARA_FLOW_*`, clara-flow.toml)."""

    type: str = WORKER_TYPE
    job_configuration = ClaraGpuJobConfiguration
    _display_name = "clara-flow GPU pool"
    _description = "Runs medical imaging pipelines; leases GPUs, memory and cores to each operator."

    node_factory: ClassVar[Callable[[Settings, OnWaiting], Node]] = staticmethod(pool_node)

    @classmethod
    def get_default_base_job_template(cls) -> dict[str, Any]:
        """The pool's form, without Prefect's fields for infrastructure that we do not have."""
        return base_job_template()

    async def setup(self) -> None:
        """Join the pool first, whether Prefect is there or not. Raises ClaraFlowError when the database is not."""
        self._settings = load_settings()
        self._work = AsyncExitStack()
        self._away = False
        self._followed: dict[UUID, asyncio.Event] = {}
        self._engine: sa.Engine = connect(records_url(self._settings))
        self._work.callback(self._engine.dispose)
        try:
            await self._begin()
            await super().setup()
        except BaseException:
            await self._work.aclose()
            raise

    async def teardown(self, *exc_info: Any) -> None:
        """Leave the pool, then Prefect."""
        await self._work.aclose()
        await super().teardown(*exc_info)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ClaraGpuJobConfiguration,
        task_status: TaskStatus[Any] | None = None,
    ) -> ClaraGpuWorkerResult:
        """Make a job of the run and follow it to its end."""
        pid = f"{socket.gethostname()}:{os.getpid()}:{flow_run.id}"
        started = task_status or anyio.TASK_STATUS_IGNORED
        try:
            job_id = await self._take_in(flow_run, configuration)
        except ClaraFlowError as error:
            await self.client.set_flow_run_state(flow_run.id, Failed(name="Refused", message=str(error)), force=True)
            started.started(pid)
        else:
            started.started(pid)
            await self._followed.setdefault(job_id, asyncio.Event()).wait()
        return ClaraGpuWorkerResult(identifier=pid, status_code=0)

    async def kill_infrastructure(
        self, infrastructure_pid: str, configuration: ClaraGpuJobConfiguration, grace_seconds: int = 30
    ) -> None:
        """Cancel the job of a run that Prefect gives up."""
        del configuration, grace_seconds
        await self._cancel(UUID(infrastructure_pid.rpartition(":")[2]), None, is_open=False)

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """As Prefect's, but an outage ends nothing."""
        try:
            runs = await super().get_and_submit_flow_runs()
        except (httpx.HTTPError, PrefectException) as error:
            self._note(error)
            return []
        self._note(None)
        return runs

    async def sync_with_backend(self) -> None:
        """As Prefect's, but an outage ends nothing, and an empty database gets pool and deployments again."""
        try:
            if await ensure_pool(self.client, self._work_pool_name):
                register = pkgutil.resolve_name(REGISTER)
                await asyncio.to_thread(
                    register, self._engine, pool=self._work_pool_name, api_url=str(self.client.api_url)
                )
            await super().sync_with_backend()
        except (httpx.HTTPError, PrefectException, ClaraFlowError) as error:
            self._note(error)

    async def _submit_run(self, flow_run: FlowRun) -> None:
        try:
            await super()._submit_run(flow_run)
        except (httpx.HTTPError, PrefectException) as error:
            self._note(error)
            self._submitting_flow_run_ids.discard(flow_run.id)

    async def _begin(self) -> None:
        """Start the node and what keeps Prefect's picture true."""
        api_url = PREFECT_API_URL.value()
        if not api_url:
            raise SettingsError("PREFECT_API_URL is not set: the worker must know the Prefect server")
        self._historian = Historian(self._engine, api_url, pool=self._work_pool_name)
        watch = CancelWatch(api_url, self._cancel, pool=self._work_pool_name)
        node = type(self).node_factory(self._settings, self._historian.show_waiting)
        await asyncio.to_thread(node.start)
        self._work.push_async_callback(asyncio.to_thread, node.stop)
        for work in (self._historian.keep_up(), watch.run(), self._follow()):
            task = asyncio.create_task(work)
            self._work.push_async_callback(_ended, task)

    async def _take_in(self, flow_run: FlowRun, configuration: ClaraGpuJobConfiguration) -> UUID:
        intake = pkgutil.resolve_name(INTAKE)
        variables = configuration.model_dump(include=set(PoolVariables.model_fields), exclude_none=True)
        job_id: UUID = await asyncio.to_thread(
            intake,
            flow_run.id,
            deployment_id=flow_run.deployment_id,
            parameters=flow_run.parameters,
            job_variables=variables,
            work_queue=flow_run.work_queue_name,
        )
        return job_id

    async def _cancel(self, flow_run_id: UUID, job_id: UUID | None, *, is_open: bool) -> None:
        """Cancel the job that a flow run shows. Raises ServiceError."""
        shown = await asyncio.to_thread(job_rows.of_flow_runs, self._engine, {flow_run_id: job_id})
        job = shown.get(flow_run_id)
        if job is None:
            return
        if job.state is not JobState.STOPPED:
            job = await asyncio.to_thread(jobs.cancel_job, self._engine, job.id, reason="cancelled in the Prefect UI")
        if job.state is JobState.STOPPED and is_open:  # no runner will show its end
            try:
                await self._historian.tell(job, flow_run_id=flow_run_id)
            except (ServerAway, ServerRefused) as error:
                self._logger.info("flow run %s is shown as cancelled later: %s", flow_run_id, error)

    async def _follow(self) -> None:
        """Let go of the runs whose jobs are over; one look for all of them."""
        while True:
            await asyncio.sleep(POLL_S)
            if not self._followed:
                continue
            try:
                over = await asyncio.to_thread(job_rows.over, self._engine, tuple(self._followed))
            except ClaraFlowError as error:
                self._logger.info("jobs could not be looked at: %s", error)
                continue
            for job_id in over:
                self._followed.pop(job_id).set()

    def _note(self, error: Exception | None) -> None:
        """Tell of an outage once, and of its end."""
        if (error is not None) == self._away:
            return
        self._away = error is not None
        if error is not None:
            self._logger.warning("Prefect is away, jobs go on without it: %s", str(error).partition("\n")[0])
        else:
            self._logger.info("Prefect is back")


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
