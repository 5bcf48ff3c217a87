"""Hears when somebody presses Cancel in the Prefect UI: by events at once, by looking from time to time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, Protocol
from uuid import UUID

from prefect.events.clients import PrefectEventSubscriber
from prefect.events.filters import EventFilter, EventNameFilter

from clara_flow.errors import ClaraFlowError
from clara_flow.infra.history.historian import job_named_by
from clara_flow.infra.history.server import PrefectServer, ServerAway, ServerRefused

log = logging.getLogger(__name__)

# A run that was never taken goes straight to Cancelled.
EVENTS = ["prefect.flow-run.Cancelling", "prefect.flow-run.Cancelled"]
FLOW_RUN = "prefect.flow-run."
POLL_S = 10.0
PAUSE_S = 1.0


class OnCancel(Protocol):
    """What is done about it."""

    def __call__(self, flow_run_id: UUID, job_id: UUID | None, *, is_open: bool) -> Awaitable[object]:
        """The job that the run's parameters name; `is_open`: the run is not shown as Cancelled yet."""


class CancelWatch:
    """Calls `on_cancel` for each run that shall be cancelled, perhaps more than once.

    That is also called for runs that we have shown as cancelled ourselves: it must be harmless for a job that is over.
    """

    def __init__(self, api_url: str, on_cancel: OnCancel, *, pool: str, poll_s: float = POLL_S) -> None:
        self.on_cancel = on_cancel
        self.pool = pool
        self.poll_s = poll_s
        self.server = PrefectServer(api_url)

    async def run(self) -> None:
        """Watch, until cancelled."""
        await self.server.open()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen())
                group.create_task(self._poll())
        finally:
            await self.server.close()

    async def _listen(self) -> None:
        """Events, for ever: a server that goes away comes back."""
        while True:
            events = EventFilter(event=EventNameFilter(name=EVENTS))
            subscriber = PrefectEventSubscriber(self.server.api_url, filter=events, reconnection_attempts=0)
            try:
                async with subscriber:
                    await self._look()  # what was pressed before the subscription stood
                    async for event in subscriber:
                        await self._cancel(event.resource.id.removeprefix(FLOW_RUN))
            except Exception as error:  # noqa: BLE001  whatever the network or the server brings
                log.debug("the stream of events ended: %s", error)
            await asyncio.sleep(PAUSE_S)

    async def _poll(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(self.poll_s)

    async def _look(self) -> None:
        request = {
            "work_pools": {"name": {"any_": [self.pool]}},
            "flow_runs": {"state": {"type": {"any_": ["CANCELLING"]}}},
        }
        try:
            for run in await self.server.post("/flow_runs/filter", request):
                await self._pass_on(run)
        except (ServerAway, ServerRefused) as error:
            log.debug("runs could not be looked at: %s", error)

    async def _cancel(self, run_id: str) -> None:
        try:
            run = await self.server.get(f"/flow_runs/{run_id}")
        except (ServerAway, ServerRefused) as error:
            log.info("flow run %s could not be looked at: %s", run_id, error)
        else:
            await self._pass_on(run)

    async def _pass_on(self, run: dict[str, Any]) -> None:
        try:
            await self.on_cancel(UUID(run["id"]), job_named_by(run), is_open=run["state_type"] == "CANCELLING")
        except ClaraFlowError as error:  # the next look tries again
            log.warning("flow run %s could not be cancelled: %s", run["id"], error)
