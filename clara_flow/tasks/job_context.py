"""What the steps of one running job share. Whoever runs a job sets it, so that Prefect's parameters stay small."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from clara_flow.errors import ClaraFlowError, OperatorError
from clara_flow.infra.images.catalog import Catalog
from clara_flow.infra.launchers.base import Launcher
from clara_flow.infra.launchers.spec import RegistryAuth
from clara_flow.plan import Plan
from clara_flow.records.models import Job
from clara_flow.records.owner import Owner
from clara_flow.records.payload_store import PayloadFolder
from clara_flow.settings import Settings
from clara_flow.tasks.operator_io import JobIdentity

if TYPE_CHECKING:
    from clara_flow.infra.fastio.volumes import FastIOVolume
    from clara_flow.infra.pool.desk import Desk
    from clara_flow.tasks.early_start import EarlyStart


ModelProgress = Callable[[str, float, str], None]

# Why a job was asked to stop. ABANDONED: this runner has lost it, and must neither record nor export anything more.
# BROKEN: how one of its operators ended could not be recorded.
CANCELLED, TIMED_OUT, ABANDONED, BROKEN = "cancelled", "timed-out", "abandoned", "broken"


@dataclass(slots=True, kw_only=True)
class JobContext:
    """One running job.

    owner       fencing token of this runner: records refuse the writes of a stale one.
    time_limit  how long the job may run; the clock starts with its flow.
    resumes     payload of the earlier job whose sealed outputs may be taken over.
    desk        where operators get their resources.
    stop        set when the job shall end early; `stop_reason` says why.
    yielding    set when the job shall go back to the queue: operators that run end as they would, others do not begin
                and are `left_over`.
    fastio      its shared memory; None when it has none.
    begun       set for each operator that was launched, or whose outputs are there.
    early       early starts of its operators, where these are possible.
    models      folder of each model, once it is ready.
    deadline    UTC; stands once the clock is started.
    failures    operators that ended badly; messages: what else people must read about the job.
    """

    settings: Settings
    engine: sa.Engine
    job: Job
    plan: Plan
    payload: PayloadFolder
    catalog: Catalog
    launcher: Launcher
    desk: Desk
    owner: Owner
    time_limit: timedelta
    resumes: PayloadFolder | None = None
    fastio: FastIOVolume | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    stop_reason: str = ""
    yielding: asyncio.Event = field(default_factory=asyncio.Event)
    left_over: list[str] = field(default_factory=list)
    begun: defaultdict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))
    early: dict[str, EarlyStart] = field(default_factory=dict)
    on_model_progress: ModelProgress = lambda name, done, message: None
    models: dict[str, Path] = field(default_factory=dict)
    failures: dict[str, OperatorError] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    deadline: datetime = field(default_factory=lambda: datetime.now(UTC))

    def start_clock(self) -> None:
        """The job runs from now on: its deadline stands."""
        self.deadline = datetime.now(UTC) + self.time_limit

    @property
    def identity(self) -> JobIdentity:
        """What operators are told of the job."""
        return JobIdentity(
            job_id=str(self.job.id),
            job_name=self.job.name,
            payload_id=str(self.job.payload_id),
            pipeline_id=str(self.job.pipeline_id),
            deadline=self.deadline.isoformat(),
        )

    async def record(self, change: Callable[..., Any], *arguments: Any, **facts: Any) -> Any:
        """Call a function of the records in a thread, and again while the database is away.

        Raises what it raises; ServiceError when the database stays away for longer than the settings allow.
        """
        from clara_flow.records.database import persistently

        patience_s = self.settings.database_patience_s
        return await asyncio.to_thread(partial(persistently, change, *arguments, patience_s=patience_s, **facts))

    def seconds_left(self) -> float:
        """Until the deadline; never below 0."""
        return max(0.0, (self.deadline - datetime.now(UTC)).total_seconds())

    def request_stop(self, reason: str) -> None:
        """End the job early; the first reason counts. To be called in the job's event loop."""
        if not self.stop.is_set():
            self.stop_reason = reason
            self.stop.set()

    def registry_auth(self, image: str) -> RegistryAuth | None:
        """Login for an image, out of the credentials that the plan's `pull-secrets` name."""
        for secret in self.plan.pull_secrets:
            credential = self.settings.registry_credentials.get(secret)
            if credential is not None and image.startswith(f"{credential.registry}/"):
                return RegistryAuth(username=credential.username, password=credential.password.get_secret_value())
        return None


_current: ContextVar[JobContext] = ContextVar("clara_flow_job")


def current_job() -> JobContext:
    """The job that runs in this context. Raises ClaraFlowError outside of one."""
    try:
        return _current.get()
    except LookupError:
        raise ClaraFlowError("no job runs here; start jobs through clara_flow.deployments.trigger") from None


@contextmanager
def running_job(context: JobContext) -> Iterator[JobContext]:
    """Make `context` the current job of the body and of all it awaits."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)
