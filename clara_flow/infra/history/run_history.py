"""What a runner tells Prefect of the jobs that it runs: all of it, in few requests, and never in the job's way.

The engine runs a flow against a client that answers in this process (`prefect_private`). What it would have told the
server is collected and sent in the background: the flow run, its task runs, logs and artifacts, and its end, in this
order. The server gives flow runs their ids, the engine needs one at once: the run has an id of its own here, which is
exchanged in whatever is sent. Ids of task runs are made of the flow run's and the operator's name, so that a job that
goes on after a preemption, or whose history is filled in later, shows each operator once.

Of a task's states that follow each other within one batch only the last is sent: a server's time is mostly spent on
these, and nobody could have seen them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

import orjson
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events import Event

from clara_flow.errors import ClaraFlowError
from clara_flow.infra.history.prefect_private import Engine
from clara_flow.infra.history.server import PrefectServer, ServerAway, ServerRefused
from clara_flow.infra.history.truth import task_run_id, task_run_keys

log = logging.getLogger(__name__)

BATCH_S = 0.5
PATIENCE_S = 3.0
LOG_LINES_LIMIT = 2000  # of one batch: what an operator says beyond that stands in its log file
LOG_LINES_AT_ONCE = 250  # of one request: a busy server must get through with it in time
EVENTS_LIMIT = 2000
TASK_RUN = "prefect.task-run."
HEARTBEAT = "prefect.flow-run.heartbeat"  # leases do what Prefect has heartbeats for

OnCreated = Callable[[UUID], Awaitable[object]]
Deployment = Callable[[], Awaitable[UUID | None]]


class RunHistory:
    """Tells the server of the runs of this process. For one event loop; opened once.

    patience_s  how long the end of a run waits until everything is told.
    """

    def __init__(self, api_url: str, *, patience_s: float = PATIENCE_S) -> None:
        self.patience_s = patience_s
        self.server = PrefectServer(api_url)
        self._engine = Engine(api_url)
        self._runs: dict[str, HistoryRun] = {}

    async def open(self) -> None:
        """Get ready; asks the server nothing."""
        await self.server.open()
        self._opened = self._engine.opened(self._on_event, self._on_log)
        await self._opened.__aenter__()

    async def close(self) -> None:
        """Let go of everything."""
        await self._opened.__aexit__(None, None, None)
        await self.server.close()

    @asynccontextmanager
    async def run(
        self,
        job_id: UUID,
        *,
        name: str,
        flow_name: str,
        deployment: Deployment | None = None,
        work_pool: str | None = None,
        work_queue: str | None = None,
        tags: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
        flow_run_id: UUID | None = None,
        on_created: OnCreated | None = None,
    ) -> AsyncIterator[HistoryRun]:
        """The one flow that is called inside is shown as this run. Waits for nothing but, at the end, `patience_s`.

        flow_run_id     the run, where it was made before: it is shown as Running again.
        deployment      awaited in the background before the run is made: the deployment it belongs to (without one,
                        the UI has no Cancel for it).
        on_created      awaited in the background with the run's id as soon as the server has given one.
        """
        run = HistoryRun(
            self.server,
            request={
                "name": name,
                "parameters": dict(parameters or {}),
                "tags": list(tags),
                "idempotency_key": str(job_id),
                "work_pool_name": work_pool,
                "work_queue_name": work_queue if work_pool else None,
            },
            flow_name=flow_name,
            flow_run_id=flow_run_id,
            deployment=deployment,
            on_created=on_created,
        )
        key = str(run.flow_run.id)
        self._runs[key] = run
        try:
            with self._engine.serving(run):
                yield run
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.patience_s):
                        await self._engine.settle()
                        await run.end()
        finally:
            del self._runs[key]
            await run.stop()

    def _on_event(self, event: Event) -> None:
        if event.event == HEARTBEAT:
            return
        for related in event.related:
            if related.role == "flow-run":
                run = self._runs.get(related.id.rpartition(".")[2])
                if run is not None:
                    run.on_event(event)
                return

    def _on_log(self, line: dict[str, Any]) -> None:
        run = self._runs.get(str(line["flow_run_id"]))
        if run is not None:
            run.on_log(line)


class HistoryRun:
    """One flow run: what the engine does in it, and what the server knows of it.

    flow_run_id     its id at the server; None until the server has given it one.
    complete        the server knows all of it.
    """

    def __init__(
        self,
        server: PrefectServer,
        *,
        request: dict[str, Any],
        flow_name: str,
        flow_run_id: UUID | None,
        deployment: Deployment | None,
        on_created: OnCreated | None,
    ) -> None:
        self.flow_name = flow_name
        self.flow_run_id = flow_run_id
        self.complete = False
        self.flow_run = FlowRun(
            id=uuid4(), flow_id=uuid4(), name=request["name"], parameters=request["parameters"], tags=request["tags"]
        )
        self._server = server
        self._request = request
        self._deployment = deployment
        self._on_created = on_created
        self._lock = threading.Lock()  # events and log lines come from other threads
        self._loop = asyncio.get_running_loop()
        self._awake = asyncio.Event()
        self._ended = asyncio.Event()
        self._final: State[Any] | None = None
        self._events: dict[str, Event] = {}
        self._logs: list[dict[str, Any]] = []
        self._lines_lost = 0
        self._artifacts: list[ArtifactCreate] = []
        self._ids: dict[str, str] = {}  # of this process -> of the server
        self._task_names: dict[str, str] = {}
        self._telling = asyncio.create_task(self._tell())

    # What the engine says

    def on_state(self, state: State[Any]) -> None:
        """See EngineRun. Only the end is told: the run was made Running."""
        if not state.is_running():
            self._final = state

    def on_artifact(self, artifact: ArtifactCreate) -> None:
        """See EngineRun."""
        if not self._telling.done():
            self._artifacts.append(artifact)
            self._awake.set()

    def on_event(self, event: Event) -> None:
        """Something happened in the run; called in any thread."""
        subject = event.resource.id
        key = subject if subject.startswith(TASK_RUN) else str(event.id)
        with self._lock:
            if self._telling.done() or (len(self._events) >= EVENTS_LIMIT and key not in self._events):
                return
            if subject.startswith(TASK_RUN):
                self._task_names[subject.removeprefix(TASK_RUN)] = event.resource.name or ""
            self._events.pop(key, None)  # the order is that of the last states
            self._events[key] = event
        self._loop.call_soon_threadsafe(self._awake.set)

    def on_log(self, line: dict[str, Any]) -> None:
        """A log line of the run; called in any thread."""
        with self._lock:
            if self._telling.done():
                return
            if len(self._logs) >= LOG_LINES_LIMIT:
                self._lines_lost += 1
                return
            self._logs.append({name: value for name, value in line.items() if not name.startswith("__")})
        self._loop.call_soon_threadsafe(self._awake.set)

    # What the server is told

    async def end(self) -> None:
        """The flow has ended: return when the server knows all of it, or does not listen."""
        self._ended.set()
        self._awake.set()
        await asyncio.wait({self._telling})

    async def stop(self) -> None:
        """Nothing more is told."""
        self._telling.cancel()
        await asyncio.wait({self._telling})

    async def _tell(self) -> None:
        try:
            await self._make()
            last = False
            while not last:
                await self._awake.wait()
                with suppress(TimeoutError):
                    async with asyncio.timeout(BATCH_S):
                        await self._ended.wait()
                last = self._ended.is_set()
                await self._send_batch(last=last)
            await self._send_end()
        except (ServerAway, ServerRefused, ClaraFlowError) as error:  # the last: our own records are away
            log.info("the history of %s is not complete: %s", self.flow_run.name, error)

    async def _make(self) -> None:
        """The run, Running, at the server."""
        flow_id = await self._server.flow_id(self.flow_name)
        running = {"type": "RUNNING"}
        if self.flow_run_id is not None:
            try:
                await self._server.set_state(self.flow_run_id, running)
            except ServerRefused:  # it was deleted, or its database was exchanged
                self.flow_run_id = None
        if self.flow_run_id is None:
            if self._deployment is not None and (deployment_id := await self._deployment()):
                self._request["deployment_id"] = str(deployment_id)
            made = await self._server.make_flow_run(self.flow_name, self._request | {"state": running})
            flow_id, self.flow_run_id = made["flow_id"], UUID(made["id"])
            if made["state_type"] != "RUNNING":  # an earlier attempt of the same job
                await self._server.set_state(self.flow_run_id, running)
            if self._on_created is not None:
                await self._on_created(self.flow_run_id)
        self._ids = {str(self.flow_run.id): str(self.flow_run_id), str(self.flow_run.flow_id): flow_id}

    async def _send_batch(self, *, last: bool) -> None:
        self._awake.clear()
        with self._lock:
            events, self._events = list(self._events.values()), {}
            known = [line for line in self._logs if last or line["task_run_id"] in (None, *self._task_names)]
            self._logs = [line for line in self._logs if line not in known] if len(known) < len(self._logs) else []
            lost, self._lines_lost = self._lines_lost, 0
            artifacts, self._artifacts = self._artifacts, []
            for local, name in self._task_names.items():
                if local not in self._ids and self.flow_run_id is not None:
                    self._ids[local] = str(task_run_id(self.flow_run_id, name))
        if events:
            await self._send("/events", [told(event) for event in events])
        if lost:
            known.append(known[-1] | {"message": f"({lost} more lines: they are in the operator's log file)"})
        for first in range(0, len(known), LOG_LINES_AT_ONCE):
            await self._send("/logs/", known[first : first + LOG_LINES_AT_ONCE])
        for artifact in artifacts:
            await self._send("/artifacts/", artifact.model_dump(mode="json", exclude_unset=True))

    async def _send_end(self) -> None:
        final = self._final
        if final is None or self.flow_run_id is None:  # the flow was given up: whoever repairs it says why
            return
        kind, name = final.type, final.name
        if kind is StateType.SCHEDULED:  # any worker would take a scheduled run
            kind = StateType.PENDING
        state = {"type": kind.value, "name": name, "message": final.message}
        await self._server.set_state(self.flow_run_id, state)
        self.complete = True

    async def _send(self, path: str, body: Any) -> None:
        text = orjson.dumps(body).decode()
        for local, told in self._ids.items():
            text = text.replace(local, told)
        await self._server.post(path, text=text.encode())


def told(event: Event) -> dict[str, Any]:
    """The event as the server gets it: a task run under the operator's name."""
    facts = event.model_dump(mode="json")
    facts["follows"] = None  # an event that was left out must not be waited for
    if event.resource.id.startswith(TASK_RUN):
        facts["payload"]["task_run"] |= task_run_keys(event.resource.name or "")
    return facts
