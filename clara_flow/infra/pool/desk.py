"""Where the operators of one running job get their resources: rows that the dispatcher answers, awaited in a runner."""

from __future__ import annotations

import asyncio
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import sqlalchemy as sa

from clara_flow.infra.launchers.spec import ResourceRequest
from clara_flow.infra.ledger.model import Amounts
from clara_flow.records import jobs, leases
from clara_flow.records.doorbell import Doorbell
from clara_flow.records.owner import Owner

OnWait = Callable[[str], None]
FIRST_REASON = "waits for its turn"
PATIENT_S = 0.05  # a grant that comes sooner is not told as a wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one operator got: the whole request, and which GPUs (UUIDs). `lease_id` is its row's, and fences it."""

    lease_id: uuid.UUID
    operator: str
    request: ResourceRequest
    gpus: tuple[str, ...] = ()
    part: str = ""


class Desk(ABC):
    """Serves the operators of one job."""

    @abstractmethod
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
        """The request, granted whole, for at most `limit_s`; waits for it. A cancelled wait holds nothing.

        part        "gpu" for the rest of an operator that was started early, which holds CPU and memory already.
        early       only out of what nobody else could use; give up with `withdraw`.
        on_wait     called with what is waited for, again whenever that changes.
        """

    @abstractmethod
    async def release(self, grant: Grant) -> None:
        """Give it back; nothing happens when the record of the operator's end has done so already."""


class Persist(Protocol):
    """Calls a function of the records in a thread, and again while the database is away."""

    def __call__(self, change: Callable[..., Any], *arguments: Any, **facts: Any) -> Awaitable[Any]:
        """The function's result."""


def amounts_of(request: ResourceRequest) -> Amounts:
    """A launcher's request in the ledger's words."""
    return Amounts(
        cpu=request.cpu,
        memory_mib=request.memory_mib,
        gpu=request.gpu,
        gpu_memory_mib=request.gpu_memory_mib,
    )


class LeaseDesk(Desk):
    """A desk over the rows of `records.leases`. One for each running job; they share a `Switchboard`.

    steps_s     how long its operators took lately, by name: for forecasts.
    """

    def __init__(
        self,
        *,
        engine: sa.Engine,
        persist: Persist,
        switchboard: Switchboard,
        job_id: uuid.UUID,
        owner: Owner,
        poll_s: float,
        steps_s: Mapping[str, float] | None = None,
    ) -> None:
        self.steps_s = steps_s or {}
        self.engine = engine
        self.persist = persist
        self.switchboard = switchboard
        self.job_id = job_id
        self.owner = owner
        self.poll_s = poll_s

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
        """See Desk.acquire."""
        amounts = amounts_of(request)
        if part == "gpu":
            amounts = replace(amounts, cpu=0, memory_mib=0)
        elif early:
            amounts = replace(amounts, gpu=0, gpu_memory_mib=0)
        said = ""

        def ask() -> Awaitable[leases.LeaseRow]:
            return self.persist(
                leases.ask, self.engine, job_id=self.job_id, operator=operator, part=part, owner=self.owner,
                amounts=amounts.as_json(), limit_s=limit_s, expected_s=self.steps_s.get(operator), early=early,
            )  # fmt: skip

        key = (self.job_id, operator, part)
        try:
            with self.switchboard.listening(key) as answers:
                row = await ask()
                timeout_s = PATIENT_S
                while row.state != leases.LeaseState.GRANTED:
                    reason = ""
                    try:
                        message = await asyncio.wait_for(answers.get(), timeout_s)
                    except TimeoutError:  # nobody said anything: say that it waits, then look from time to time
                        reason = row.reason or FIRST_REASON
                    else:
                        reason = message.get("reason", "")
                    if reason and reason != said:
                        said = reason
                        on_wait(reason)
                    if timeout_s == self.poll_s or not reason:
                        row = await ask()  # asking again gives the row as it is
                    timeout_s = self.poll_s
        except BaseException:
            await asyncio.shield(self._give_back(operator, part))
            raise
        return Grant(lease_id=row.id, operator=operator, request=request, gpus=tuple(row.devices), part=part)

    async def release(self, grant: Grant) -> None:
        """See Desk.release."""
        await self._give_back(grant.operator, grant.part)

    async def _give_back(self, operator: str, part: str) -> None:
        await self.persist(leases.release, self.engine, self.job_id, operator, part, self.owner)


class GangDesk(Desk):
    """Serves a job whose lease holds everything that all of its operators need together (`scheduling: gang`)."""

    def __init__(self, lease_id: uuid.UUID, gpus: tuple[str, ...]) -> None:
        self.lease_id = lease_id
        self._free = list(gpus)

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
        """See Desk.acquire."""
        del limit_s, early, on_wait  # everything is there: nobody waits
        wanted = request.gpu or (1 if request.gpu_memory_mib else 0)
        gpus = tuple(self._free[:wanted])
        del self._free[:wanted]
        return Grant(lease_id=self.lease_id, operator=operator, request=request, gpus=gpus, part=part)

    async def release(self, grant: Grant) -> None:
        """See Desk.release."""
        self._free.extend(grant.gpus)


Key = tuple[uuid.UUID, str, str]


class Switchboard:
    """Hears the database's notices for a runner and passes each on to whom it concerns, in the runner's event loop.

    on_stop     called with a job's id when somebody asked for its end.
    on_yield    called with a job's id when it shall go back to the queue between two operators.
    """

    def __init__(
        self, engine: sa.Engine, *, on_stop: Callable[[uuid.UUID], None], on_yield: Callable[[uuid.UUID], None]
    ) -> None:
        self._bell = Doorbell(engine, (leases.GRANTS, jobs.CHANNEL))
        self._loop = asyncio.get_running_loop()
        self._on_stop, self._on_yield = on_stop, on_yield
        self._listeners: dict[Key, asyncio.Queue[dict[str, Any]]] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="switchboard", daemon=True)
        self._thread.start()

    def listening(self, key: Key) -> _Listening:
        """A context manager: the queue of notices for that lease while it is open."""
        return _Listening(self._listeners, key)

    def close(self) -> None:
        """Stop listening."""
        self._closing.set()
        self._bell.interrupt()
        self._thread.join()
        self._bell.close()

    def _listen(self) -> None:
        while not self._closing.is_set():
            for channel, facts in self._bell.wait(timeout_s=60):
                self._loop.call_soon_threadsafe(self._pass_on, channel, facts)

    def _pass_on(self, channel: str, facts: dict[str, Any]) -> None:
        if facts.get("reconnected"):  # something may have been missed: everybody looks at its row
            for queue in self._listeners.values():
                queue.put_nowait({})
        elif channel == jobs.CHANNEL:
            if facts["effect"] == "stop-operators":
                self._on_stop(uuid.UUID(facts["job"]))
        elif "yield" in facts:
            self._on_yield(uuid.UUID(facts["yield"]))
        else:
            key = (uuid.UUID(facts["job"]), facts["operator"], facts["part"])
            if key in self._listeners:
                self._listeners[key].put_nowait(facts)


class _Listening:
    def __init__(self, listeners: dict[Key, asyncio.Queue[dict[str, Any]]], key: Key) -> None:
        self._listeners, self._key = listeners, key

    def __enter__(self) -> asyncio.Queue[dict[str, Any]]:
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._listeners[self._key] = queue
        return queue

    def __exit__(self, *exc_info: object) -> None:
        del self._listeners[self._key]
