"""A running job without a pool and without Prefect: real records, payload and launcher, a desk of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
import yaml
from prefect.client.schemas.objects import State
from tiny.pipelines import tiny_catalog
from waiting import eventually

from clara_flow.flows.compiler import compile_pipeline
from clara_flow.infra.launchers.base import Launcher
from clara_flow.infra.launchers.spec import ResourceRequest
from clara_flow.infra.pool.desk import Desk, Grant, OnWait
from clara_flow.plan import Plan
from clara_flow.records import jobs, payloads, pipelines
from clara_flow.records.models import JobOperator
from clara_flow.records.owner import Owner
from clara_flow.records.payload_store import PayloadStore
from clara_flow.settings import Settings, load_settings
from clara_flow.tasks.early_start import early_start
from clara_flow.tasks.job_context import JobContext, running_job
from clara_flow.tasks.run_operator import run_operator


class PlainDesk(Desk):
    """So many cores and GPUs; who asks `early` waits for `lets_early` too."""

    def __init__(self, cpu: int = 8, gpus: tuple[str, ...] = ()) -> None:
        self.cpu, self.gpus = cpu, list(gpus)
        self.lets_early = True
        self.asked: list[tuple[str, str, bool]] = []
        self.granted: list[Grant] = []
        self.released: list[Grant] = []
        self.changed = asyncio.Condition()
        self.reasons = ["waits for cpu"]

    async def acquire(
        self,
        operator: str,
        request: ResourceRequest,
        *,
        limit_s: float,
        part: str = "",
        early: bool = False,
        on_wait: OnWait = lambda reason: None,
    ) -> Grant:
        assert limit_s > 0
        self.asked.append((operator, part, early))
        cpu, gpu = (0 if part else request.cpu), request.gpu
        async with self.changed:
            if not self._fits(cpu, gpu, early):
                for reason in self.reasons:
                    on_wait(reason)
                    await asyncio.sleep(0)
                await self.changed.wait_for(lambda: self._fits(cpu, gpu, early))
            self.cpu -= cpu
            gpus, self.gpus = tuple(self.gpus[:gpu]), self.gpus[gpu:]
            grant = Grant(lease_id=uuid.uuid4(), operator=operator, request=request, gpus=gpus, part=part)
            self.granted.append(grant)
            return grant

    async def release(self, grant: Grant) -> None:
        assert grant not in self.released
        self.released.append(grant)
        async with self.changed:
            self.cpu += 0 if grant.part else grant.request.cpu
            self.gpus += grant.gpus
            self.changed.notify_all()

    async def add(self, *, cpu: int = 0, gpus: tuple[str, ...] = ()) -> None:
        """There is more from now on."""
        async with self.changed:
            self.cpu += cpu
            self.gpus += gpus
            self.changed.notify_all()

    def _fits(self, cpu: int, gpu: int, early: bool) -> bool:
        return cpu <= self.cpu and gpu <= len(self.gpus) and (self.lets_early or not early)

    def is_whole(self) -> bool:
        """Whether everything that was granted was given back."""
        return sorted(g.lease_id for g in self.granted) == sorted(g.lease_id for g in self.released)


async def until(predicate: Callable[[], object]) -> None:
    """`eventually` beside a running event loop."""
    await asyncio.to_thread(eventually, predicate, within_s=20)


def lose(job: JobContext, operator: str) -> None:
    """Kill the supervisor of an operator of a job."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            environment = process.environ()
            if (environment.get("CLARA_JOB_ID"), environment.get("CLARA_STAGE_NAME")) == (str(job.job.id), operator):
                supervisor = process.parent()
                assert supervisor is not None
                supervisor.kill()
                return
    raise AssertionError(f"{operator} does not run")


class Bench:
    """Makes jobs and runs them."""

    def __init__(self, folder: Path, engine: sa.Engine, launcher: Launcher) -> None:
        self.engine, self.launcher = engine, launcher
        self.store = PayloadStore(folder / "payloads")
        self.source = folder / "study"
        self.source.mkdir()
        (self.source / "one.txt").write_text("1\n")
        self.settings: Settings = load_settings(data_dir=folder / "data", stop_grace_s=15, cancel_grace_s=0.5)
        self.desk = PlainDesk()
        self.time_limit = timedelta(seconds=60)

    def job(self, *operators: Mapping[str, Any], **changes: Any) -> JobContext:
        """A job that has begun, of a definition with these operators."""
        text = yaml.safe_dump({"api-version": "0.4.0", "name": "tiny", "operators": list(operators)})
        plan = compile_pipeline(text, source="tiny.yaml").require_plan()
        payload = self.store.stage(self.source)
        payloads.create_payload(self.engine, payload_id=payload.id)
        pipeline = pipelines.create_pipeline(
            self.engine, name="tiny", definition=text, plan=plan.model_dump(mode="json")
        )
        row = jobs.create_job(
            self.engine,
            name="tiny",
            pipeline_id=pipeline.id,
            payload_id=payload.id,
            operators=[operator.name for operator in plan.operators],
            runtime=self.launcher.runtime,
            timeout_s=60,
        )
        return self.begin(row.id, plan, **changes)

    def begin(self, job_id: uuid.UUID, plan: Plan, **changes: Any) -> JobContext:
        """A runner takes the job."""
        owner = Owner.of_this_process()
        row = jobs.begin_job(self.engine, job_id, owner)
        facts: dict[str, Any] = {
            "settings": self.settings,
            "engine": self.engine,
            "job": row,
            "plan": plan,
            "payload": self.store.folder(row.payload_id),
            "catalog": tiny_catalog(),
            "launcher": self.launcher,
            "desk": self.desk,
            "owner": owner,
            "time_limit": self.time_limit,
        }
        return JobContext(**{**facts, **changes})

    def again(self, job: JobContext, **changes: Any) -> JobContext:
        """The job went back to the queue, and another runner takes it."""
        jobs.requeue_job(self.engine, job.job.id, reason="to be run again", owner=job.owner)
        return self.begin(job.job.id, job.plan, **changes)

    async def run(self, job: JobContext) -> dict[str, str]:
        """Run all operators as the flow does; returns the name of each one's state."""
        job.start_clock()
        ends: dict[str, asyncio.Task[State[Any]]] = {}
        with running_job(job):
            for operator in job.plan.operators:
                upstreams = {name: ends[name] for name in operator.upstreams}
                ends[operator.name] = asyncio.create_task(self._run_after(job, operator, upstreams))
            try:
                await asyncio.gather(*ends.values())
            except BaseException:
                await asyncio.wait(ends.values())
                raise
        return {name: str(task.result().name) for name, task in ends.items()}

    async def _run_after(self, job: JobContext, operator: Any, upstreams: dict[str, Any]) -> State[Any]:
        async with early_start(job, operator, upstreams):
            states = {name: await task for name, task in upstreams.items()}
            failed = tuple(name for name, state in states.items() if not state.is_completed())
            return await run_operator.fn(operator.name, failed)

    def row(self, job: JobContext, operator: str) -> JobOperator:
        """An operator's record."""
        return next(row for row in jobs.list_operators(self.engine, job.job.id) if row.name == operator)
