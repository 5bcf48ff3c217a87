"""The warm runners of one worker: a set of ready processes that jobs are handed to (zygote.py, runner_process.py)."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from clara_flow.infra.pool.runner_handle import (
    LEAVE_LIMIT_S,
    NEVER,
    START_LIMIT_S,
    STATUS_WAIT_S,
    JobOrder,
    RunnerHandle,
    State,
    ZygoteHandle,
    line,
)
from clara_flow.infra.pool.runner_process import rss_mib

LOOK_EVERY_S = 1.0  # at the memory of busy runners
RUNAWAY = 4  # times the memory limit: not only replaced after its job, but killed
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0  # before the next start after one that failed; doubled each time
ORDER_BYTES = 64 * 2**10  # goes into every socket's buffer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerEnd:
    """A runner ended, and its process is gone.

    job_id      the job that it was running: nobody runs it any more, and its record is as it was.
    pid         0 for one that could not be forked.
    """

    job_id: UUID | None
    pid: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerStatus:
    """One living runner. `since`: when it came into this state, UTC; `rss_mib`: resident, with what it shares."""

    pid: int
    state: State
    job_id: UUID | None
    jobs_done: int
    rss_mib: int
    since: datetime


class RunnerSet:
    """Keeps `size` runners ready, never more than `most` in all, and gives each one job at a time. Thread-safe.

    program             module that the zygote runs: see zygote.py.
    jobs_per_runner     after so many jobs a runner is replaced by a new one.
    memory_limit_mib    a runner that is larger after a job is replaced; one 4 times as large during a job is killed.
    environment         of the zygote and its runners, complete.
    log_path            file that what they print is appended to.
    on_end              called with each runner that ended, in the set's own thread.

    A runner that crashes, hangs (a job that takes longer than its limit) or eats the memory takes only its job with it.
    A zygote that dies is replaced; its runners go on. When the process that has the set dies, however it dies, runners
    abandon their jobs and end, and the zygote ends.
    """

    def __init__(
        self,
        program: str,
        *,
        size: int,
        most: int,
        jobs_per_runner: int,
        memory_limit_mib: int,
        environment: Mapping[str, str],
        log_path: Path,
        on_end: Callable[[RunnerEnd], None],
    ) -> None:
        self.program = program
        self.size = size
        self.most = most
        self.jobs_per_runner = jobs_per_runner
        self.memory_limit_mib = memory_limit_mib
        self.environment = dict(environment)
        self.log_path = log_path
        self._on_end = on_end
        self._lock = threading.Lock()
        self._queue: deque[JobOrder] = deque()
        self._runners: list[RunnerHandle] = []
        self._zygote: ZygoteHandle | None = None
        self._ends: list[RunnerEnd] = []
        self._pause_s = FIRST_PAUSE_S
        self._next_start = self._next_look = 0.0
        self._stop_at = NEVER  # when running jobs are abandoned
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ, lambda: os.read(self._wake, 4096))
        self._thread = threading.Thread(target=self._work, name="runner-set", daemon=True)

    def start(self) -> None:
        """Start the zygote and the first runners. Returns at once."""
        self._thread.start()

    def stop(self, grace_s: float) -> list[UUID]:
        """End everything: what runs may end within `grace_s`, then it is abandoned. Returns when no process is left.

        Returns the ids of the jobs that no runner had begun.
        """
        with self._lock:
            self._stop_at = time.monotonic() + grace_s
            waiting = [order.id for order in self._queue]
            self._queue.clear()
            for runner in self._runners:
                if runner.state in ("starting", "idle"):
                    runner.leave("the worker stops")
        self._ring()
        if self.is_alive():
            self._thread.join()
        return waiting

    def is_alive(self) -> bool:
        """Whether it does its work: not before `start`, not after `stop`, and not if it broke."""
        return self._thread.is_alive()

    def run(self, job_id: UUID, *, facts: dict[str, Any], limit_s: float) -> None:
        """Hand a job to a warm runner, as soon as there is one. A job that the set has already is not taken twice.

        facts       what its handler gets, as JSON at most 64 KiB.
        limit_s     after so much time in a runner that is killed: what the handler's own clock allows, and more.

        Raises ValueError for larger facts, RuntimeError after `stop`.
        """
        message = line(run=str(job_id), facts=facts)
        if len(message) > ORDER_BYTES:
            raise ValueError(f"the facts of job {job_id} are {len(message)} bytes; {ORDER_BYTES} are the limit")
        with self._lock:
            if self._stops:
                raise RuntimeError("the runner set was stopped")
            known = [*self._queue, *(runner.job for runner in self._runners if runner.job is not None)]
            if all(order.id != job_id for order in known):
                self._queue.append(JobOrder(id=job_id, line=message, limit_s=limit_s))
                self._hand_out()
        self._ring()

    def stop_job(self, job_id: UUID, reason: str) -> bool:
        """Ask for the end of a job; one that waits for a runner is dropped. False when the set does not have it."""
        with self._lock:
            for runner in self._runners:
                if runner.job is not None and runner.job.id == job_id:
                    runner.stop_job(reason)
                    return True
            for order in self._queue:
                if order.id == job_id:
                    self._queue.remove(order)
                    return True
        return False

    def runners(self) -> list[RunnerStatus]:
        """All living runners."""
        with self._lock:
            return [
                RunnerStatus(
                    pid=runner.pid,
                    state=runner.state,
                    job_id=runner.job.id if runner.job else None,
                    jobs_done=runner.jobs_done,
                    rss_mib=rss_mib(runner.pid),
                    since=runner.since,
                )
                for runner in self._runners
                if runner.pid
            ]

    @property
    def zygote_pid(self) -> int | None:
        """Process id of the zygote; None while there is none."""
        zygote = self._zygote
        return zygote.pid if zygote else None

    @property
    def _stops(self) -> bool:
        return self._stop_at != NEVER

    # What follows runs in the set's thread under the lock (`_hand_out` in any thread).

    def _work(self) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                self._watch(now)
                self._hand_out()
                self._fill(now)
                ends, self._ends = self._ends, []
                is_over = self._stops and not self._runners
                timeout_s = self._seconds_to_next(now)
            for end in ends:
                log.info("runner %s ended: %s", end.pid, end.reason)
                try:
                    self._on_end(end)
                except Exception:  # the set serves other jobs too
                    log.exception("the end of runner %s could not be handled", end.pid)
            if is_over:
                break
            for key, _ in self._selector.select(timeout_s):
                with self._lock:
                    if key.fd in self._selector.get_map():  # it was not closed by one before it
                        key.data()
        with self._lock:
            self._end_zygote()
            self._selector.close()
            for descriptor in (self._wake, self._waker):
                os.close(descriptor)
            self._waker = -1

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # it is full, and so rings already; or the set has stopped
            os.write(self._waker, b"!")

    def _seconds_to_next(self, now: float) -> float | None:
        times = [runner.deadline for runner in self._runners]
        times += [moment for moment in (self._stop_at, self._next_start) if moment > now]
        if self._zygote is not None:
            times.append(self._zygote.deadline)
        if any(runner.state == "busy" for runner in self._runners):
            times.append(self._next_look)
        soonest = min(times, default=NEVER)
        return None if soonest == NEVER else max(0.0, soonest - now)

    def _watch(self, now: float) -> None:
        """End what is late or too large."""
        if self._zygote is not None and now >= self._zygote.deadline:
            log.error("%s is not ready to fork runners after %g s: %s", self.program, START_LIMIT_S, self.log_path)
            self._zygote.kill()
        looks = now >= self._next_look
        if looks:
            self._next_look = now + LOOK_EVERY_S
        for runner in list(self._runners):
            if runner.state == "busy" and now >= self._stop_at:
                runner.abandon("the worker stops")
            elif now >= runner.deadline:
                self._end_late(runner)
            elif looks and runner.state == "busy" and (size := rss_mib(runner.pid)) > RUNAWAY * self.memory_limit_mib:
                runner.kill(f"its memory grew to {size} MiB (limit: {self.memory_limit_mib} MiB)")

    def _end_late(self, runner: RunnerHandle) -> None:
        if runner.pid and runner.pidfd < 0:  # it is gone, and nobody can say how
            self._bury(runner, "it ended")
        elif runner.state == "busy" and runner.job is not None:
            runner.kill(f"its job took longer than {runner.job.limit_s:g} s")
        elif runner.state == "starting":
            runner.kill(f"it was not ready after {START_LIMIT_S:g} s")
        else:
            runner.kill("it did not end when asked to")

    def _hand_out(self) -> None:
        """Waiting jobs to idle runners; first the one that worked last, whose memory is warm."""
        for runner in sorted(self._runners, key=lambda runner: runner.since, reverse=True):
            if not self._queue:
                return
            if runner.state == "idle":
                if runner.give(self._queue[0]):
                    self._queue.popleft()
                else:
                    runner.kill("it takes no job")

    def _fill(self, now: float) -> None:
        if now < self._next_start or self._stops:
            return
        if self._zygote is None:
            self._start_zygote()
        elif self._zygote.is_up:
            spare = sum(runner.state in ("starting", "idle") for runner in self._runners)
            missing = len(self._queue) + self.size - spare
            for _ in range(min(missing, self.most - len(self._runners))):
                runner = self._zygote.fork()
                if runner is None:
                    self._pause()
                    break
                self._runners.append(runner)
                self._selector.register(runner.connection, selectors.EVENT_READ, partial(self._hear, runner))

    def _pause(self) -> None:
        self._next_start = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _start_zygote(self) -> None:
        try:
            self._zygote = ZygoteHandle(self.program, self.environment, self.log_path)
        except OSError as error:
            log.error("%s cannot be started: %s", self.program, error)
            self._pause()
        else:
            self._selector.register(
                self._zygote.control, selectors.EVENT_READ, partial(self._hear_zygote, self._zygote)
            )

    def _hear_zygote(self, zygote: ZygoteHandle) -> None:
        ended, has_died = zygote.endings()
        for runner in [runner for runner in self._runners if runner.pid in ended]:
            self._bury(runner, _ending(ended[runner.pid]))
        if has_died:
            log.warning("the zygote of the runners ended with status %s: %s", self._end_zygote(), self.log_path)
            self._pause()

    def _end_zygote(self) -> int | None:
        zygote, self._zygote = self._zygote, None
        if zygote is None:
            return None
        self._selector.unregister(zygote.control)
        return zygote.end()

    def _hear(self, runner: RunnerHandle) -> None:
        if not self._take_messages(runner):
            return
        self._selector.unregister(runner.connection)
        if not runner.pid:
            self._bury(runner, "it could not be forked")
        elif runner.state != "leaving":  # one that ends was given its time already
            runner.become("leaving", LEAVE_LIMIT_S)

    def _take_messages(self, runner: RunnerHandle) -> bool:
        """Whether it will say no more."""
        messages, is_over = runner.messages()
        for message in messages:
            if "pid" in message:
                runner.pid = message["pid"]
                if runner.pidfd >= 0:
                    self._selector.register(runner.pidfd, selectors.EVENT_READ, partial(self._gone, runner))
                else:  # this process has no descriptor left for it
                    runner.kill("the worker has too many files open")
            elif "ready" in message:
                runner.was_ready = True
                self._pause_s = FIRST_PAUSE_S
                if runner.state == "starting":
                    runner.become("idle")
            elif "failed" in message:
                runner.reason = runner.reason or f"its handler failed: {message['error']}"
                runner.become("leaving", LEAVE_LIMIT_S)
            elif "done" in message:
                self._done(runner, message["rss_mib"])
        return is_over

    def _done(self, runner: RunnerHandle, size_mib: int) -> None:
        runner.job = None
        runner.jobs_done += 1
        if runner.state != "busy":  # it was killed in the last moment, or is gone already
            return
        if self._stops:
            runner.leave("the worker stops")
        elif runner.jobs_done >= self.jobs_per_runner:
            runner.leave(f"replaced after {runner.jobs_done} jobs")
        elif size_mib > self.memory_limit_mib:
            runner.leave(f"replaced with {size_mib} MiB (limit: {self.memory_limit_mib} MiB)")
        else:
            runner.become("idle")

    def _gone(self, runner: RunnerHandle) -> None:
        """Its process is gone; how is its zygote's to say, unless that is gone too."""
        self._close_pidfd(runner)
        knows = self._zygote is not None and self._zygote.pid == runner.zygote
        runner.become("leaving", STATUS_WAIT_S if knows else 0)

    def _bury(self, runner: RunnerHandle, how: str) -> None:
        """Its process is gone, and what it said last counts."""
        self._take_messages(runner)
        self._runners.remove(runner)
        if runner.connection in self._selector.get_map():
            self._selector.unregister(runner.connection)
        runner.connection.close()
        self._close_pidfd(runner)
        if not runner.was_ready:
            self._pause()
        job_id = runner.job.id if runner.job else None
        self._ends.append(RunnerEnd(job_id=job_id, pid=runner.pid, reason=runner.reason or how))

    def _close_pidfd(self, runner: RunnerHandle) -> None:
        if runner.pidfd >= 0:
            self._selector.unregister(runner.pidfd)
            os.close(runner.pidfd)
            runner.pidfd = -1


def _ending(status: int) -> str:
    return f"it was killed by signal {-status}" if status < 0 else f"it ended with exit status {status}"
