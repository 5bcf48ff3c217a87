"""Keeps Prefect's picture of jobs true where no runner can: jobs that wait, runs whose runner died, outages.

One in each worker, in its event loop. Whatever several of them tell at once is the same, and told twice is told once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from clara_flow.errors import ClaraFlowError
from clara_flow.infra.history import job_rows, truth
from clara_flow.infra.history.server import PrefectServer, ServerAway, ServerRefused
from clara_flow.infra.ledger.model import Ask
from clara_flow.records import jobs, pipelines
from clara_flow.records.models import Job
from clara_flow.records.outages import Outage
from clara_flow.records.state_machine import JobState

log = logging.getLogger(__name__)

SHOWN_WAITING = 50
WAITED_S = 2.0  # a job that waits for less is not shown as waiting
SHOW_S = 0.5
CATCH_UP_S = 10.0
BATCH = 100
SETTLED = timedelta(seconds=15)  # a state may be younger than what the records say
UNTAKEN = timedelta(minutes=2)
UNTAKEN_MESSAGE = "No job was made of this run; run it again."
OPEN_STATES = ["PENDING", "RUNNING", "CANCELLING", "PAUSED"]


class Historian:
    """Shows what waits, fills in what is missing, repairs what is wrong.

    pool    name of the work pool whose runs it answers for.
    """

    def __init__(self, engine: sa.Engine, api_url: str, *, pool: str) -> None:
        self.engine = engine
        self.pool = pool
        self.server = PrefectServer(api_url)
        self._waiting: Sequence[tuple[Ask, str]] = ()
        self._shown: dict[UUID, str] = {}

    def show_waiting(self, waiting: Sequence[tuple[Ask, str]]) -> None:
        """These wait now, the next one first, each with what for. Safe to call in any thread; returns at once."""
        self._waiting = [(ask, reason) for ask, reason in waiting if not ask.operator][:SHOWN_WAITING]

    async def keep_up(self) -> None:
        """Do all of it, until cancelled."""
        await self.server.open()
        next_catch_up, outage = 0.0, Outage(log, "the history of jobs")
        try:
            while True:
                try:
                    await self._show_next()
                    if time.monotonic() >= next_catch_up:
                        await self.catch_up()
                        await self.repair()
                        next_catch_up = time.monotonic() + CATCH_UP_S
                except (ServerAway, ServerRefused) as error:
                    log.debug("history has to wait: %s", error)
                    outage.over()
                except ClaraFlowError as error:  # the database is away
                    outage.met(error)
                await asyncio.sleep(SHOW_S)
        finally:
            await self.server.close()

    async def catch_up(self) -> int:
        """Tell the server what runners could not, oldest first. Returns of how many jobs. Raises as `tell`."""
        due = await asyncio.to_thread(jobs.history_due, self.engine, limit=BATCH)
        for job in due:
            await self.tell(job)
            await asyncio.to_thread(jobs.mark_history_due, self.engine, job.id, False)
        return len(due)

    async def repair(self) -> int:
        """Put right the open flow runs of the pool whose job is not where they say. Returns how many.

        Raises ServerAway, ServerRefused, ServiceError.
        """
        request = {
            "work_pools": {"name": {"any_": [self.pool]}},
            "flow_runs": {"state": {"type": {"any_": OPEN_STATES}}},
            "sort": "EXPECTED_START_TIME_ASC",
            "limit": BATCH,
        }
        runs = await self.server.post("/flow_runs/filter", request)
        now = datetime.now(UTC)
        settled = [run for run in runs if now - _since(run) > SETTLED]
        repaired = 0
        named = {UUID(run["id"]): job_named_by(run) for run in settled}
        shown = await asyncio.to_thread(job_rows.of_flow_runs, self.engine, named)
        for run in settled:
            run_id = UUID(run["id"])
            job = shown.get(run_id)
            if job is not None and _is_wrong(run["state_type"], job):
                await self.tell(job, flow_run_id=run_id)
            elif job is None and now - _since(run) > UNTAKEN:
                await self.server.set_state(run_id, {"type": "CRASHED", "message": UNTAKEN_MESSAGE})
            else:
                continue
            repaired += 1
        return repaired

    async def tell(self, job: Job, *, flow_run_id: UUID | None = None) -> UUID:
        """Show a job as our records have it: flow run, task runs, state. Returns the flow run's id.

        flow_run_id     None: the job's own; where it has none, or the server does not know it, one is made.

        Raises ServerAway, ServerRefused, ServiceError.
        """
        pipeline = await asyncio.to_thread(pipelines.get_pipeline, self.engine, job.pipeline_id)
        state = truth.flow_run_state(job)
        run_id = flow_run_id or job.flow_run_id
        if run_id is not None and not await self._exists(run_id):
            run_id = None
        if run_id is None:
            run_id = await self._make(job, pipeline.name, getattr(pipeline, "deployment_id", None), state)
        operators = await asyncio.to_thread(jobs.list_operators, self.engine, job.id)
        if events := truth.task_run_events(run_id, job, operators, pipeline.plan.get("edges", ())):
            await self.server.post("/events", events)
        await self.server.set_state(run_id, state)
        return run_id

    async def _show_next(self) -> None:
        """Show one job that waits, or for what it waits now."""
        waiting = self._waiting
        present = {ask.job_id for ask, _ in waiting}
        self._shown = {job_id: reason for job_id, reason in self._shown.items() if job_id in present}
        asked_before = time.time() - WAITED_S
        for ask, reason in waiting:
            if ask.asked > asked_before or self._shown.get(ask.job_id) == reason:
                continue
            job = await asyncio.to_thread(jobs.get_job, self.engine, ask.job_id)
            if job.state is JobState.PENDING:
                state = truth.flow_run_state(job) | {"message": reason}
                run_id = job.flow_run_id
                if run_id is not None and await self._exists(run_id):
                    await self.server.set_state(run_id, state)
                else:
                    pipeline = await asyncio.to_thread(pipelines.get_pipeline, self.engine, job.pipeline_id)
                    run_id = await self._make(job, pipeline.name, pipeline.deployment_id, state)
                await self._say(run_id, reason)  # the page of a run shows its log, and a state's message behind a tab
            self._shown[ask.job_id] = reason
            return

    async def _say(self, flow_run_id: UUID, text: str) -> None:
        now = datetime.now(UTC).isoformat()
        line = {"name": "clara_flow.pool", "level": logging.INFO, "message": text, "timestamp": now}
        await self.server.post("/logs/", [line | {"flow_run_id": str(flow_run_id)}])

    async def _make(self, job: Job, flow_name: str, deployment_id: UUID | None, state: dict[str, Any]) -> UUID:
        request = truth.flow_run_request(job, pool=self.pool, deployment_id=deployment_id) | {"state": state}
        run_id = UUID((await self.server.make_flow_run(flow_name, request))["id"])
        await asyncio.to_thread(jobs.note_flow_run, self.engine, job.id, run_id)
        return run_id

    async def _exists(self, flow_run_id: UUID) -> bool:
        try:
            await self.server.get(f"/flow_runs/{flow_run_id}")
        except ServerRefused as refused:
            if refused.status == 404:
                return False
            raise
        return True


def job_named_by(run: dict[str, Any]) -> UUID | None:
    """The job that a flow run's parameters name."""
    try:
        return UUID(str(run["parameters"].get("job_id")))
    except ValueError:
        return None


def _is_wrong(state_type: str, job: Job) -> bool:
    """Whether an open run says something else than the record; a job that waits or runs is shown by others."""
    if job.state is JobState.STOPPED:
        return True
    return job.state is JobState.PENDING and state_type == "RUNNING"


def _since(run: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(run["state"]["timestamp"])
