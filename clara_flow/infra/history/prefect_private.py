"""The only module that touches what Prefect does not promise to keep.

1. `show_task_state`: the state of the current task run, changed from inside the task.
2. `EngineClient`: Prefect's client as its flow engine calls it, answered in this process and not by the server.
3. `tap`: what the engine tells the server on its own, task run events and log lines, handed to us instead.

tests/infra/history/test_prefect_private.py holds all of it to a real engine and server: a Prefect that changes it fails
there first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol
from uuid import UUID, uuid4

from prefect._internal.concurrency.api import create_call, from_async
from prefect.client.orchestration import PrefectClient, SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import Artifact, Flow, FlowRun, ServerDefaultResultStorage, State
from prefect.client.schemas.responses import OrchestrationResult, SetStateStatus, StateAcceptDetails
from prefect.context import AsyncClientContext, ContextModel, SyncClientContext, TaskRunContext
from prefect.events import Event
from prefect.events.worker import EventsWorker, ProcessPoolForwardingEventsClient
from prefect.logging.handlers import set_api_log_sink
from prefect.utilities.engine import emit_task_run_state_change_event

OnEvent = Callable[[Event], None]
OnLog = Callable[[dict[str, Any]], None]


def show_task_state(state: State[Any]) -> None:
    """Show the current task run in that state. Outside a task run: nothing happens.

    Prefect 3 keeps task run states in the client and tells the server by events, but offers no public call to change
    the state from inside the task.
    """
    context = TaskRunContext.get()
    if context is None:
        return
    task_run = context.task_run
    before = task_run.state
    state.state_details.flow_run_id = task_run.flow_run_id
    state.state_details.task_run_id = task_run.id
    task_run.state = state
    emit_task_run_state_change_event(task_run=task_run, initial_state=before, validated_state=state)


class EngineRun(Protocol):
    """A flow run as the engine sees it: made, named and moved through its states in this process."""

    flow_run: FlowRun
    flow_name: str

    def on_state(self, state: State[Any]) -> None:
        """The engine put the run into this state."""

    def on_artifact(self, artifact: ArtifactCreate) -> None:
        """The flow or one of its tasks made this artifact."""


_current: ContextVar[EngineRun] = ContextVar("clara_flow_engine_run")


class EngineClient(PrefectClient):
    """Answers the engine's calls about the runs of `serving` at once. Nothing of it goes to the server."""

    def __init__(self, api_url: str) -> None:
        super().__init__(api_url)
        self.runs: dict[UUID, EngineRun] = {}

    async def create_flow_run(self, *_: Any, state: State[Any] | None = None, **__: Any) -> FlowRun:
        """The run that is being served."""
        run = _current.get()
        run.flow_run.state = state
        return run.flow_run

    async def read_flow_run(self, flow_run_id: UUID) -> FlowRun:
        """As it stands."""
        return self.runs[flow_run_id].flow_run

    async def set_flow_run_state(
        self, flow_run_id: UUID | str, state: State[Any], force: bool = False
    ) -> OrchestrationResult[Any]:
        """Accepted, always: the server has no say in what our runs may do."""
        del force
        run = self.runs[UUID(str(flow_run_id))]
        run.flow_run.state = state
        run.flow_run.run_count += state.is_running()
        run.on_state(state)
        return OrchestrationResult(state=state, status=SetStateStatus.ACCEPT, details=StateAcceptDetails())

    async def set_flow_run_name(self, flow_run_id: UUID, name: str) -> Any:
        """Nothing: whoever serves the run has named it."""

    async def update_flow_run(self, *_: Any, **__: Any) -> Any:
        """Nothing: the run was made as it shall be."""

    async def create_artifact(self, artifact: ArtifactCreate) -> Artifact:
        """Handed on; the returned id is of no use."""
        assert artifact.flow_run_id is not None  # noqa: S101  the engine knows its run
        self.runs[artifact.flow_run_id].on_artifact(artifact)
        return Artifact(id=uuid4(), key=artifact.key, type=artifact.type)

    async def read_flow(self, flow_id: UUID) -> Flow:
        """What the run's events say of their flow."""
        names = (run.flow_name for run in self.runs.values() if run.flow_run.flow_id == flow_id)
        return Flow(id=flow_id, name=next(names, "flow"), labels={})

    async def read_server_default_result_storage(self) -> ServerDefaultResultStorage:
        """None: our tasks return folders, never data."""
        return ServerDefaultResultStorage()


class SyncEngineClient(SyncPrefectClient):
    """The one call that the async engine makes in its synchronous way."""

    def read_server_default_result_storage(self) -> ServerDefaultResultStorage:
        """None: our tasks return folders, never data."""
        return ServerDefaultResultStorage()


class _AsyncContext(AsyncClientContext):
    def __init__(self, client: PrefectClient) -> None:
        ContextModel.__init__(self, client=client)  # the parent's would make a client of its own


class _SyncContext(SyncClientContext):
    def __init__(self, client: SyncPrefectClient) -> None:
        ContextModel.__init__(self, client=client)


@contextmanager
def _clients(client: EngineClient, sync_client: SyncEngineClient) -> Iterator[None]:
    """`get_client()` gives these in this context."""
    in_async = AsyncClientContext.__var__.set(_AsyncContext(client))
    in_sync = SyncClientContext.__var__.set(_SyncContext(sync_client))
    try:
        yield
    finally:
        SyncClientContext.__var__.reset(in_sync)
        AsyncClientContext.__var__.reset(in_async)


class Engine:
    """Lets flows run in this process without a word to the server. Opened once, in the loop that runs the flows."""

    def __init__(self, api_url: str) -> None:
        self._client = EngineClient(api_url)
        self._sync_client = SyncEngineClient(api_url)
        self._clerk = EngineClient(api_url)
        self._clerk.runs = self._client.runs

    @asynccontextmanager
    async def opened(self, on_event: OnEvent, on_log: OnLog) -> AsyncIterator[None]:
        """While this is entered, all events and log lines of this process go to the two callables, in any thread."""
        # Prefect has these two outlets for processes whose parent talks to the server.
        EventsWorker.set_client_override(ProcessPoolForwardingEventsClient, event_queue=_Outlet(on_event))
        set_api_log_sink(on_log)
        try:
            # Its service that completes events asks a client for the names in them: the one of the context that starts
            # it, if that client belongs to the loop of Prefect's services.
            entering = from_async.call_soon_in_loop_thread(create_call(self._clerk.__aenter__))
            await asyncio.wrap_future(entering.future)
            with _clients(self._clerk, self._sync_client):
                worker = EventsWorker.instance()
            async with self._client:
                yield
            await asyncio.to_thread(worker.drain)
        finally:
            set_api_log_sink(None)
            EventsWorker.set_client_override(None)

    @contextmanager
    def serving(self, run: EngineRun) -> Iterator[None]:
        """The next flow that is called in this context is that run."""
        self._client.runs[run.flow_run.id] = run
        token = _current.set(run)
        try:
            with _clients(self._client, self._sync_client):
                yield
        finally:
            _current.reset(token)
            del self._client.runs[run.flow_run.id]

    async def settle(self) -> None:
        """Return when all events that were emitted before have been handed on."""
        await asyncio.to_thread(EventsWorker.instance().wait_until_empty)


class _Outlet:
    """What Prefect takes for the queue to a parent process."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event

    def put(self, item: tuple[str, Event]) -> None:
        self._on_event(item[1])
