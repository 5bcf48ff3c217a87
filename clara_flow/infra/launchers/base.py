"""What every launcher promises. The public `run` is written once; a back end fills in the private half, `Attempt`."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
from clara_flow.settings import Runtime

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


class Stop(asyncio.Event):
    """Set when an attempt shall end: by `set` when nobody wants it any more, by `expire` when its time is over.

    limit_s     the time that is over; None while it is not.
    """

    limit_s: float | None = None

    def expire(self, limit_s: float) -> None:
        """Its time, of which it had `limit_s`, is over. Whatever was asked first counts."""
        if not self.is_set():
            self.limit_s = limit_s
            self.set()


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

    runtime: ClassVar[Runtime]

    async def run(self, spec: LaunchSpec, *, stop: Stop, on_line: Callable[[str], None]) -> ExitReport:
        """Run one attempt of an operator.

        1. Launches with exactly the mounts, devices, limits and environment of `spec`.
        2. Returns on exit status 0 when every required output holds a file; OutputMissing otherwise.
        3. Raises OperatorFailed for any other exit status, OperatorOutOfMemory, OperatorTimedOut (`spec.timeout_s`
           after launch, or `stop` expired), OperatorCancelled (`stop` was set) or OperatorLost (no exit status; may be
           retried), each with the last 20 lines of the log; LauncherUnavailable when the operator could not be
           launched at all.
        4. Calls `on_line`, in this event loop and context, with each line of the log as it comes: decoded with
           replacement, long lines split, after a bound one line that says where the rest is. The whole log is in
           `spec.log_path`, cut at `spec.log_limit_bytes` with head and tail kept. No log fills memory.
        5. Then asks politely, waits `spec.grace_s` after its time was over, `spec.cancel_grace_s` when it was
           cancelled, and kills.
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
        supervision = _Supervision(self._attempt(spec), log, stop)
        try:
            return await supervision.run()
        finally:
            await supervision.clean_up()

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

    def __init__(self, attempt: Attempt, log: OperatorLog, stop: Stop) -> None:
        self.attempt = attempt
        self.spec = attempt.spec
        self.log = log
        self.stop = stop
        self.threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix=f"operator-{self.spec.operator}")
        self.launched: Future[None] | None = None
        self.followed: Future[Ending] | None = None

    async def run(self) -> ExitReport:
        if self.stop.is_set():
            raise self._stopped(self.stop.limit_s)
        stopping = asyncio.ensure_future(self.stop.wait())
        try:
            return await self._run(stopping)
        finally:
            stopping.cancel()

    async def _run(self, stopping: asyncio.Future[Any]) -> ExitReport:
        self.launched = self.threads.submit(self.attempt.launch)
        await asyncio.wait([_awaitable(self.launched), stopping], return_when=asyncio.FIRST_COMPLETED)
        if not self.launched.done():
            raise self._stopped(self.stop.limit_s)
        self.launched.result()
        started = datetime.now(UTC)
        self.followed = self.threads.submit(self._follow)
        followed = _awaitable(self.followed)
        await asyncio.wait([followed, stopping], timeout=self.spec.timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if self.followed.done():
            return self._report(self.followed.result(), started)
        limit_s = self.stop.limit_s if self.stop.is_set() else self.spec.timeout_s
        grace_s = self.spec.cancel_grace_s if limit_s is None else self.spec.grace_s
        await _awaitable(self.threads.submit(self.attempt.ask_to_stop))
        await asyncio.wait([followed], timeout=grace_s)  # and clean_up kills
        raise self._stopped(limit_s)

    def _follow(self) -> Ending:
        try:
            return self.attempt.follow(self.log)
        finally:
            self.log.close()

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

    def _stopped(self, limit_s: float | None) -> OperatorError:
        """The error of an attempt that ran past `limit_s`, or that nobody wanted any more."""
        if limit_s is None:
            return self._error(OperatorCancelled)
        return self._error(OperatorTimedOut, timeout_s=limit_s)

    def _error(self, kind: type[OperatorError], **facts: Any) -> OperatorError:
        return kind(self.spec.operator, **facts, log_path=str(self.spec.log_path), last_lines=self.log.last_lines())

    async def clean_up(self) -> None:
        """Promise 6, in a thread that finishes even when this loop is torn down (Ctrl-C, and again Ctrl-C)."""
        self.attempt.abandoned.set()
        cleaned = _awaitable(self.threads.submit(self._clean_up))
        self.threads.shutdown(wait=False)
        interruption: asyncio.CancelledError | None = None
        while not cleaned.done():
            try:
                await asyncio.shield(cleaned)
            except asyncio.CancelledError as error:
                interruption = error
        cleaned.result()
        if interruption is not None:
            raise interruption

    def _clean_up(self) -> None:
        try:
            if self.launched is not None:
                wait([self.launched])
                if self.followed is not None and not self.followed.done():
                    self.attempt.kill()
                    wait([self.followed], timeout=KILL_WAIT_S)
                self.attempt.remove()
        except (OSError, LauncherUnavailable) as error:  # the engine went away
            logger.warning(
                "operator %s of job %s is left to the reaper: %s", self.spec.operator, self.spec.job_id, error
            )
        finally:
            self.log.close()


def _awaitable(future: Future[Any]) -> asyncio.Future[Any]:
    """The future of a thread, to await; a failure that nobody awaits any more is not reported as forgotten."""
    awaitable = asyncio.wrap_future(future)
    awaitable.add_done_callback(lambda done: done.cancelled() or done.exception())
    return awaitable


def _holds_a_file(output: RequiredOutput) -> bool:
    return output.path.is_file() or any(not entry.is_dir() for entry in output.path.rglob("*"))
