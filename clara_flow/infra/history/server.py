"""The Prefect server as history uses it: quick to answer, or away."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

log = logging.getLogger(__name__)

TIMEOUT_S = 2.0
REST_S = 5.0
OVERLOADED = {408, 429}


class ServerAway(Exception):
    """It does not answer, or not in time; nobody asks it again for some seconds."""


class ServerRefused(Exception):
    """It answered that it will not. `status` is the HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status


class PrefectServer:
    """Requests to the server of one event loop; authentication and certificates are as Prefect's settings say.

    timeout_s   for one request.
    rest_s      how long a server that was away is left alone: a run must not wait for it again and again.
    """

    def __init__(self, api_url: str, *, timeout_s: float = TIMEOUT_S, rest_s: float = REST_S) -> None:
        self.api_url = api_url
        self.timeout_s, self.rest_s = timeout_s, rest_s
        self._away_until = 0.0
        self._flows: dict[str, str] = {}

    async def open(self) -> None:
        """Make the client; asks the server nothing."""
        with temporary_settings({PREFECT_API_URL: self.api_url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            self._client: PrefectClient = get_client()
            self._context = contextvars.copy_context()  # the client reads its settings with each request
        await self._client.__aenter__()

    async def close(self) -> None:
        """Close its connections."""
        await self._client.__aexit__(None, None, None)

    @property
    def away(self) -> bool:
        """Whether it did not answer a moment ago."""
        return time.monotonic() < self._away_until

    async def post(self, path: str, body: Any = None, *, text: bytes | None = None) -> Any:
        """The answer's JSON, None where it has none. `text` is a body that is JSON already.

        Raises ServerAway, ServerRefused.
        """
        return await self._ask("POST", path, body, text)

    async def get(self, path: str) -> Any:
        """The answer's JSON. Raises ServerAway, ServerRefused."""
        return await self._ask("GET", path, None, None)

    async def set_state(self, flow_run_id: UUID, state: dict[str, Any]) -> None:
        """Put a flow run into a state (`type`, and where wanted `name` and `message`), whatever it is in now.

        Raises as `post`; ServerRefused when there is no such run.
        """
        await self.post(f"/flow_runs/{flow_run_id}/set_state", {"state": state, "force": True})

    async def make_flow_run(self, flow_name: str, request: dict[str, Any]) -> dict[str, Any]:
        """The flow run that `idempotency_key` of the request names: a new one, or the one that is there.

        Where the server's database was exchanged, neither the pool nor the deployment may be there any more: then the
        run is made without them. Raises as `post`.
        """
        made: dict[str, Any]
        try:
            made = await self.post("/flow_runs/", request | {"flow_id": await self.flow_id(flow_name)})
        except ServerRefused:
            self._flows.clear()
            bare = {name: value for name, value in request.items() if not name.startswith(("work_", "deployment_"))}
            made = await self.post("/flow_runs/", bare | {"flow_id": await self.flow_id(flow_name)})
        return made

    async def flow_id(self, name: str) -> str:
        """Id of the flow of that name, made when there is none. Raises as `post`."""
        if name not in self._flows:
            self._flows[name] = (await self.post("/flows/", {"name": name}))["id"]
        return self._flows[name]

    async def _ask(self, method: Any, path: Any, body: Any, text: bytes | None) -> Any:
        if self.away:
            raise ServerAway("it did not answer a moment ago")
        content: dict[str, Any] = {}
        if text is not None:
            content = {"content": text, "headers": {"content-type": "application/json"}}
        elif body is not None:
            content = {"json": body}
        request = asyncio.get_running_loop().create_task(
            self._client.request(method, path, **content), context=self._context
        )
        try:
            async with asyncio.timeout(self.timeout_s):
                answer = await request
        except PrefectHTTPStatusError as error:
            status = error.response.status_code
            if status < 500 and status not in OVERLOADED:
                raise ServerRefused(status, error.response.text[:200]) from None
            raise self._gone(error) from None
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            raise self._gone(error) from None
        return answer.json() if answer.content else None

    def _gone(self, error: Exception) -> ServerAway:
        self._away_until = time.monotonic() + self.rest_s
        reason = str(error).partition("\n")[0] or type(error).__name__
        log.info("the Prefect server does not answer: %s", reason)
        return ServerAway(reason)
