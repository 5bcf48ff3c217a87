"""What every launcher promises. The public `run` is written once; a back end fills in the private half, `Attempt`."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar

from clara_flow.errors import (
    LauncherUnavailable,
    OperatorCancelled,
    OperatorError,
    OperatorFailed,
    OperatorLost,
    OperatorOutOfMemory,
    OperatorTimedOut,
    OutputMissing,
    StorageError,
)
from clara_flow.infra.launchers.log import OperatorLog
from clara_flow.infra.launchers.spec import ExitReport, LaunchSpec, Mount, RequiredOutput

KILL_WAIT_S = 30.0  # a killed operator that is not gone by then (a hung disk, a hung engine) is given up as lost

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an operator ended by itself, as the back end saw it.

    exit_code       128 + number for an operator that a signal ended.
    lost            why there is no exit status; "" when there is one.
    misdeed         what it did against its limits, read after "operator 'x' ..."; "" when nothing.
    """

    exit_code: int = 0
    out_of_memory: bool = False
    lost: str = ""
    misdeed: str = ""
    peak_memory_bytes: int | None = None
    cpu_s: float | None = None


class Attempt(ABC):
    """One attempt of one operator: what a back end knows how to do. Every method blocks and is called in a thread.

    `abandoned` is set when nobody waits for the attempt any more: `launch` then gives up as soon as it can.
    """

    def __init__(self, spec: LaunchSpec) -> None:
        self.spec = spec
        self.abandoned = threading.Event()

    @property
    @abstractmethod
    def identity(self) -> str:
        """Container id or `host:pid`."""

    @abstractmethod
    def launch(self) -> None:
        """Start the operator. Raises LauncherUnavailable when this machine cannot. May leave halves for `remove`."""

    @abstractmethod
    def follow(self, log: OperatorLog) -> Ending:
        """Feed the log until the operator has ended. Called once, after `launch`."""

    @abstractmethod
    def ask_to_stop(self) -> None:
        """Let the operator know that it should end. Returns at once."""

    @abstractmethod
    def kill(self) -> None:
        """Kill what still runs; `follow` then ends. Safe to call twice, and before `launch`."""

    @abstractmethod
    def remove(self) -> None:
        """Remove everything that `launch` made, killing it where that is still needed. Safe to call twice."""


class Launcher(ABC):
    """Runs operators on one runtime."""

    runtime: ClassVar[str]

    async def run(self, spec: LaunchSpec, *, stop: asyncio.Event, on_line: Callable[[str], None]) -> ExitReport:
        """Run one attempt of an operator.

        1. Launches with exactly the mounts, devices, limits and environment of `spec`.
        2. Returns on exit status 0 when every required output holds a file; OutputMissing otherwise.
        3. Raises OperatorFailed for any other exit status, OperatorOutOfMemory, OperatorTimedOut (`spec.timeout_s`
           after launch), OperatorCancelled (`stop` was set) or OperatorLost (no exit status; may be retried), each
           with the last 20 lines of the log; LauncherUnavailable when the operator could not be launched at all.
        4. Calls `on_line`, in this event loop and context, with each line of the log as it comes: decoded with
           replacement, long lines split, after a bound one line that says where the rest is. The whole log is in
           `spec.log_path`, cut at `spec.log_limit_bytes` with head and tail kept. No log fills memory.
        5. On timeout and on `stop` asks politely, waits `spec.grace_s`, then kills.
        6. Removes everything that it made, in every case, also when the calling task is cancelled.
        """
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()

        def deliver(lines: list[str]) -> None:
            for line in lines:
                on_line(line)

        def forward(lines: list[str]) -> None:
            loop.call_soon_threadsafe(deliver, lines, context=context)

        log = OperatorLog(spec.log_path, limit_bytes=spec.log_limit_bytes, on_lines=forward)
        try:
            log.open()
        except OSError as error:
            raise StorageError(f"the log {spec.log_path} cannot be written: {error.strerror}") from None
        attempt = self._attempt(spec)
        supervisor = _Supervision(attempt, log, stop)
        try:
            return await supervisor.run()
        finally:
            await _uninterrupted(supervisor.clean_up())

    @abstractmethod
    def path_inside(self, mount: Mount) -> str:
        """The path by which an operator of this launcher finds that mount."""

    @abstractmethod
    async def check(self) -> None:
        """Return when operators can be launched here. Raises LauncherUnavailable with the remedy when not."""

    @abstractmethod
    async def reap(self, job_is_alive: Callable[[str], bool]) -> list[str]:
        """Find and remove what launchers that died left behind; what a living one runs is never touched.

        job_is_alive    asked only about launchers of other machines, which cannot be looked up from here.

        Returns the ids of the jobs that something was removed of, one for each attempt.
        """

    @abstractmethod
    def _attempt(self, spec: LaunchSpec) -> Attempt:
        """An attempt that has not launched anything yet."""


class _Supervision:
    """The life of one attempt: two threads of its own, one that launches and follows, one for orders."""

    def __init__(self, attempt: Attempt, log: OperatorLog, stop: asyncio.Event) -> None:
        self.attempt = attempt
        self.spec = attempt.spec
        self.log = log
        self.stop = stop
        self.loop = asyncio.get_running_loop()
        self.threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix=f"operator-{self.spec.operator}")
        self.stopping: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        self.launched: asyncio.Future[Any] | None = None
        self.followed: asyncio.Future[Any] | None = None

    async def run(self) -> ExitReport:
        if self.stop.is_set():
            raise self._error(OperatorCancelled)
        self.launched = self.loop.run_in_executor(self.threads, self.attempt.launch)
        await asyncio.wait([self.launched, self.stopping], return_when=asyncio.FIRST_COMPLETED)
        if not self.launched.done():
            raise self._error(OperatorCancelled)
        self.launched.result()
        started = datetime.now(UTC)
        self.followed = self.loop.run_in_executor(self.threads, self._follow)
        await asyncio.wait(
            [self.followed, self.stopping], timeout=self.spec.timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not self.followed.done():
            cancelled = self.stop.is_set()
            await self._end(self.followed)
            raise (
                self._error(OperatorCancelled)
                if cancelled
                else self._error(OperatorTimedOut, timeout_s=self.spec.timeout_s)
            )
        return self._report(self.followed.result(), started)

    def _follow(self) -> Ending:
        try:
            return self.attempt.follow(self.log)
        finally:
            self.log.close()

    async def _end(self, followed: asyncio.Future[Ending]) -> None:
        """Polite request, grace, kill."""
        await self.loop.run_in_executor(self.threads, self.attempt.ask_to_stop)
        await asyncio.wait({followed}, timeout=self.spec.grace_s)
        if not followed.done():
            await self._kill(followed)

    async def _kill(self, followed: asyncio.Future[Ending]) -> None:
        await self.loop.run_in_executor(self.threads, self.attempt.kill)
        await asyncio.wait({followed}, timeout=KILL_WAIT_S)

    def _report(self, ending: Ending, started: datetime) -> ExitReport:
        if ending.out_of_memory:
            raise self._error(OperatorOutOfMemory, limit_mib=self.spec.request.memory_mib)
        if ending.lost:
            raise self._error(OperatorLost, reason=ending.lost)
        if ending.misdeed:
            raise self._error(OperatorError, reason=ending.misdeed)
        if ending.exit_code != 0:
            raise self._error(OperatorFailed, exit_code=ending.exit_code)
        for output in self.spec.outputs:
            if not _holds_a_file(output):
                raise self._error(OutputMissing, output=output.name, path=str(output.path))
        return ExitReport(
            started=started,
            stopped=datetime.now(UTC),
            peak_memory_bytes=ending.peak_memory_bytes,
            cpu_s=ending.cpu_s,
            log_bytes=self.log.total_bytes,
            identity=self.attempt.identity,
        )

    def _error(self, kind: type[OperatorError], **facts: Any) -> OperatorError:
        return kind(self.spec.operator, **facts, log_path=str(self.spec.log_path), last_lines=self.log.last_lines())

    async def clean_up(self) -> None:
        """Promise 6. What cannot be removed now (the engine went away) is left to the reaper."""
        self.stopping.cancel()
        self.attempt.abandoned.set()
        try:
            if self.launched is None:
                return
            await asyncio.wait({self.launched})
            if self.followed is not None and not self.followed.done():
                await self._kill(self.followed)
            await self.loop.run_in_executor(self.threads, self.attempt.remove)
        except (OSError, LauncherUnavailable) as error:
            logger.warning(
                "operator %s of job %s is left to the reaper: %s", self.spec.operator, self.spec.job_id, error
            )
        finally:
            for future in (self.launched, self.followed):
                if future is not None and future.done():
                    future.exception()  # seen: run() raised it, or nobody waits for it any more
            self.log.close()
            self.threads.shutdown(wait=False)


def _holds_a_file(output: RequiredOutput) -> bool:
    return output.path.is_file() or any(not entry.is_dir() for entry in output.path.rglob("*"))


async def _uninterrupted(work: Coroutine[Any, Any, None]) -> None:
    """Await `work` to its end; a cancellation that comes meanwhile is raised afterwards."""
    task = asyncio.ensure_future(work)
    interruption: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            interruption = error
    task.result()
    if interruption is not None:
        raise interruption
