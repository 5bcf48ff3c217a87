"""The life of a runner: a forked process that serves its worker's socket, one job at a time, many one after another.

Lines of JSON on the socket. From the worker:

    {"run": job id, "facts": {...}}         run this job; sent to an idle runner only
    {"stop": job id, "reason": text}        the job shall end
    {"leave": true}                         end when nothing runs

To the worker:

    {"pid": n}                              first of all, with a pidfd of the runner
    {"ready": true}                         the handler is open
    {"done": job id, "rss_mib": n}          the job is over, whatever became of it
    {"failed": job id, "error": text}       the handler itself broke; the runner ends

When the socket ends, the worker is gone: the job is abandoned and the runner ends, in bounded time. SIGTERM does the
same.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import select
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from clara_flow.infra.pool.runner_handle import line

LINE_BYTES = 2**20
LAST_WAIT_S = 1.0  # what the watchdog leaves to an orderly end that is nearly through

log = logging.getLogger(__name__)

OnStop = Callable[[str], None]


class Handler(Protocol):
    """What runs the jobs. One for the life of a runner, every method called in its one event loop."""

    async def open(self) -> None:
        """Get ready: connections, threads. A runner whose handler cannot be opened ends, and another one is tried."""

    async def run(self, job_id: UUID, facts: dict[str, Any], stop: Callable[[OnStop], None]) -> None:
        """Run the job to its end and record it. Whatever is raised ends the runner.

        facts       what the worker knows of the job.
        stop        call it with a function: that is called with a reason, once for each request to end the job, at once
                    when there was one already.
        """

    async def abandon(self) -> None:
        """End what the running job has started and record nothing: the worker is gone, and others will take the job.

        Called while `run` still runs; the process ends when it returns, or when it takes too long.
        """

    async def close(self) -> None:
        """Called once at the end, with nothing running."""


def live(connection: socket.socket, handler: Handler, *, abandon_s: float) -> int:
    """Serve the worker until it or this runner shall end; the exit status of the process.

    abandon_s   upper bound of everything between the end of the worker and the end of this process.
    """
    pidfd = os.pidfd_open(os.getpid())
    socket.send_fds(connection, [line(pid=os.getpid())], [pidfd])
    os.close(pidfd)
    watched = os.dup(connection.fileno())
    threading.Thread(target=_outlive_no_worker, args=(watched, abandon_s), name="watchdog", daemon=True).start()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    # Not asyncio.run, which waits without limit for threads that nobody needs any more: the caller ends the process.
    return loop.run_until_complete(_Service(connection, handler, abandon_s).serve())


def _outlive_no_worker(watched: int, abandon_s: float) -> None:
    """The last resort when the event loop is blocked."""
    poller = select.poll()
    poller.register(watched, select.POLLRDHUP)
    poller.poll()
    threading.Event().wait(abandon_s + LAST_WAIT_S)
    os.killpg(0, signal.SIGKILL)


class _Service:
    def __init__(self, connection: socket.socket, handler: Handler, abandon_s: float) -> None:
        self.connection = connection
        self.handler = handler
        self.abandon_s = abandon_s
        self.job: asyncio.Task[None] | None = None
        self.job_id: UUID | None = None
        self.stop_reasons: list[str] = []
        self.on_stop: OnStop | None = None

    async def serve(self) -> int:
        self.over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        reader, self.writer = await asyncio.open_connection(sock=self.connection, limit=LINE_BYTES)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._end, 0)
        await self.handler.open()
        self._tell(ready=True)
        reading = asyncio.create_task(self._read(reader))
        status = await self.over
        reading.cancel()
        try:
            async with asyncio.timeout(self.abandon_s):
                if self.job is not None and not self.job.done():
                    await self.handler.abandon()
                else:
                    await self.handler.close()
        except TimeoutError:
            log.warning("runner %s ends with its handler unfinished", os.getpid())
            return 1
        return status

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while text := await reader.readline():
                message = json.loads(text)
                if "run" in message:
                    self.job_id = UUID(message["run"])
                    self.stop_reasons, self.on_stop = [], None
                    self.job = asyncio.create_task(self._run(self.job_id, message["facts"]))
                elif "stop" in message and UUID(message["stop"]) == self.job_id:
                    self._stop(message["reason"])
                elif "leave" in message:
                    break
        except ConnectionError:  # the worker was killed while it wrote
            pass
        self._end(0)

    async def _run(self, job_id: UUID, facts: dict[str, Any]) -> None:
        try:
            await self.handler.run(job_id, facts, self._register)
        except Exception as error:
            log.exception("the handler of job %s broke", job_id)
            self._tell(failed=str(job_id), error=f"{type(error).__name__}: {error}")
            self._end(1)
        else:
            self.job_id = None
            self._tell(done=str(job_id), rss_mib=rss_mib(os.getpid()))

    def _stop(self, reason: str) -> None:
        self.stop_reasons.append(reason)
        if self.on_stop is not None:
            self.on_stop(reason)

    def _register(self, on_stop: OnStop) -> None:
        self.on_stop = on_stop
        for reason in self.stop_reasons:
            on_stop(reason)

    def _tell(self, **facts: Any) -> None:
        if not self.writer.is_closing():
            self.writer.write(line(**facts))

    def _end(self, status: int) -> None:
        if not self.over.done():
            self.over.set_result(status)


def rss_mib(pid: int) -> int:
    """Resident memory of a process, shared pages included; 0 when there is no such process."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * resource.getpagesize() // 2**20
