"""Starting supervisors (supervise.py) quickly: one small fork server for each process that launches operators.

A fresh interpreter for each operator would take longer than many operators do. The server is started with the first
operator, holds nothing but the standard library, and ends with this process, however that ends.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara_flow.infra.launchers import supervise

HELLO_WAIT_S = 30.0  # a machine on which a fork takes longer can launch nothing
END_WAIT_S = 5.0
TRIES = 3  # a server may be killed with an order in its hands, and so may the next one
# Imported, not run as a script: a script would be compiled anew at each start.
SERVE = "; ".join(
    (
        "import sys",
        f"sys.path.append({str(Path(supervise.__file__).parent)!r})",
        "import supervise",
        "supervise.serve()",
    )
)


@dataclass(frozen=True, slots=True)
class Supervisor:
    """One supervisor, alive or not.

    report      gets one line when its operator has ended (supervise.py), and ends when it has.
    """

    pid: int
    pidfd: int
    report: socket.socket

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended within this time."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def kill(self) -> None:
        """SIGKILL: its operator dies with it, what that has started goes astray."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Forget it. Call once."""
        self.report.close()
        os.close(self.pidfd)


class _Server:
    """The fork server of this process."""

    def __init__(self) -> None:
        self.orders, theirs = socket.socketpair()
        self.orders.settimeout(HELLO_WAIT_S)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", SERVE],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={supervise.MARK: supervise.NO_MARK},
                cwd="/",
                start_new_session=True,
            )

    def end(self) -> None:
        self.orders.close()
        try:
            self.process.wait(END_WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


_lock = threading.Lock()
_server: _Server | None = None


def start_supervisor(order: dict[str, Any], *, lifeline: int, output: int) -> Supervisor:
    """Start a supervisor with its operator.

    order       see supervise.py; its environment has the mark, 32 characters.
    lifeline    read end of a pipe, the other end of which this process keeps.
    output      gets what the operator writes to stdout and stderr.

    Raises OSError when no process can be started.
    """
    with os.fdopen(os.memfd_create("order"), "wb+", buffering=0) as text:
        text.write(json.dumps(order).encode())
        for _ in range(TRIES):
            report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                is_sent = _send([text.fileno(), lifeline, theirs.fileno(), output])
            try:
                if is_sent and (supervisor := _hello(report)):
                    return supervisor
            except OSError:  # the end of the lifeline ends what may have been started
                report.close()
                raise
            report.close()
    raise OSError("no process can be forked")


def _hello(report: socket.socket) -> Supervisor | None:
    """The supervisor's first words; None when it could not be forked."""
    report.settimeout(HELLO_WAIT_S)
    pid, descriptors, _, _ = socket.recv_fds(report, 32, 1, socket.MSG_CMSG_CLOEXEC)
    report.settimeout(None)
    if not pid:
        return None
    if not descriptors:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return Supervisor(int(pid), descriptors[0], report)


def start_server() -> None:
    """Have the fork server ready before the first operator. Raises OSError when it cannot be started."""
    with _lock:
        _running_server()


def _running_server() -> _Server:
    global _server  # one for the process, whoever launches
    if _server is None:
        _server = _Server()
    return _server


def _send(descriptors: list[int]) -> bool:
    """Give the server an order, a new one where the last has died; False when that has died as well."""
    with _lock:
        for _ in range(2):
            try:
                socket.send_fds(_running_server().orders, [b"o"], descriptors)
            except ConnectionError:
                _end_server()
            else:
                return True
        return False


def _end_server() -> None:
    global _server
    if _server is not None:
        _server.end()
        _server = None


def _forget_server() -> None:
    """In a forked child: the server is its parent's, and must not live on for the child's sake."""
    global _lock, _server
    _lock = threading.Lock()
    if _server is not None:
        _server.orders.close()
        _server = None


atexit.register(_end_server)
os.register_at_fork(after_in_child=_forget_server)
