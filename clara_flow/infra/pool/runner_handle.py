"""The worker's ends: of one runner, and of the zygote that forks them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

State = Literal["starting", "idle", "busy", "leaving"]

LEAVE_LIMIT_S = 20.0  # for a runner that was asked to end, or whose job was abandoned
START_LIMIT_S = 120.0  # for the zygote's imports, and for a runner's handler to open
STATUS_WAIT_S = 1.0  # for the zygote to tell how a runner ended, or to be gone itself
NEVER = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOrder:
    """A job as the set was given it. `line` is what the runner is sent."""

    id: UUID
    line: bytes
    limit_s: float


@dataclass(slots=True, kw_only=True, eq=False)
class RunnerHandle:
    """One runner. Not thread-safe.

    zygote      pid of the process that forked it.
    pid, pidfd  0 and -1 until it has told them; pidfd is -1 again when the process is gone.
    since       when it came into this state; `deadline` (monotonic) is how long it may stay.
    reason      why it ends, as soon as that is known.
    """

    connection: socket.socket
    zygote: int
    pid: int = 0
    pidfd: int = -1
    state: State = "starting"
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    deadline: float = NEVER
    job: JobOrder | None = None
    jobs_done: int = 0
    was_ready: bool = False
    reason: str = ""
    _received: bytes = b""

    def become(self, state: State, limit_s: float = NEVER) -> None:
        """Enter a state, for at most `limit_s`."""
        self.state, self.since, self.deadline = state, datetime.now(UTC), time.monotonic() + limit_s

    def messages(self) -> tuple[list[dict[str, Any]], bool]:
        """What it said since the last call, and whether it will say no more."""
        is_over = False
        while True:
            try:
                block, descriptors, _, _ = socket.recv_fds(self.connection, 65536, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                break
            except ConnectionError:
                is_over = True
                break
            if descriptors:
                (self.pidfd,) = descriptors
            if not block:
                is_over = True
                break
            self._received += block
        *lines, self._received = self._received.split(b"\n")
        return [json.loads(line) for line in lines], is_over

    def give(self, job: JobOrder) -> bool:
        """Have it run a job; False when it takes nothing any more."""
        if not self._send(job.line):
            return False
        self.job = job
        self.become("busy", job.limit_s)
        return True

    def stop_job(self, reason: str) -> None:
        """Ask for the end of its job."""
        if self.job is not None:
            self._send(line(stop=str(self.job.id), reason=reason))

    def leave(self, reason: str) -> None:
        """Ask an idle runner to end."""
        self.reason = self.reason or reason
        self.become("leaving", LEAVE_LIMIT_S)
        self._send(line(leave=True))

    def abandon(self, reason: str) -> None:
        """Have it abandon its job and end, as if the worker had died."""
        self.reason = self.reason or reason
        self.become("leaving", LEAVE_LIMIT_S)
        with contextlib.suppress(OSError):  # it is ending already
            self.connection.shutdown(socket.SHUT_WR)

    def kill(self, reason: str) -> None:
        """SIGKILL to its process group; the operators of its job end by their lifelines."""
        self.reason = self.reason or reason
        self.become("leaving")
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, 0)  # its number is still its own
                os.killpg(self.pid, signal.SIGKILL)
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, message: bytes) -> bool:
        """False when it is dead, or so stuck that its socket is full."""
        try:
            return self.connection.send(message) == len(message)
        except OSError:
            return False


class ZygoteHandle:
    """One zygote. Not thread-safe.

    deadline    when (monotonic) it must be ready to fork.

    Raises OSError when it cannot be started.
    """

    def __init__(self, program: str, environment: Mapping[str, str], log_path: Path) -> None:
        self.control, theirs = socket.socketpair()
        try:
            with theirs, log_path.open("ab") as output:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", program],
                    stdin=theirs.fileno(),
                    stdout=output,
                    stderr=output,
                    env=environment,
                    start_new_session=True,
                )
        except OSError:
            self.control.close()
            raise
        self.control.setblocking(False)
        self.deadline = time.monotonic() + START_LIMIT_S
        self.is_up = False
        self._received = b""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def fork(self) -> RunnerHandle | None:
        """A new runner, which starts; None when the zygote has died or has too much to do, or no descriptor is left."""
        try:
            connection, theirs = socket.socketpair()
        except OSError:
            return None
        with theirs:
            try:
                socket.send_fds(self.control, [b"f"], [theirs.fileno()])
            except OSError:
                connection.close()
                return None
        connection.setblocking(False)
        runner = RunnerHandle(connection=connection, zygote=self.pid)
        runner.become("starting", START_LIMIT_S)
        return runner

    def endings(self) -> tuple[dict[int, int], bool]:
        """Exit statuses (negative: signals) of runners that ended since the last call, and whether it died itself."""
        try:
            block = self.control.recv(65536)
        except ConnectionError:
            block = b""
        *lines, self._received = (self._received + block).split(b"\n")
        ended = {}
        for words in (entry.split() for entry in lines):
            if words == [b"up"]:
                self.is_up, self.deadline = True, NEVER
            else:
                pid, status = map(int, words)
                ended[pid] = status
        return ended, not block

    def kill(self) -> None:
        """Its imports hang."""
        self.deadline = NEVER
        self.process.kill()

    def end(self) -> int:
        """Have it end, as it does when nobody needs it; its exit status."""
        self.control.close()
        try:
            return self.process.wait(STATUS_WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def line(**message: Any) -> bytes:
    """A message as it goes over the socket."""
    return json.dumps(message).encode() + b"\n"
