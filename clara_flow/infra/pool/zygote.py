"""The process that runners are forked from: it has imported everything, runs no thread and never works itself.

A runner program is a module that imports what jobs need and then calls `main`:

    if __name__ == "__main__":
        zygote.main(JobHandler)

Its stdin is a socket to the worker's RunnerSet. The zygote writes `up`; then each byte that comes brings the socket of
a new runner (SCM_RIGHTS), and each child that ends is told as a line `PID STATUS` (negative: the signal). When the
socket ends the worker is gone: the zygote waits for its runners, which end by themselves, kills those that do not, and
ends. Runners outlive their zygote.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from clara_flow.infra.pool import runner_process
from clara_flow.infra.pool.runner_process import Handler

ABANDON_S = 10.0
KILL_AFTER_S = 3.0  # beyond the time in which a runner must end by itself


def main(make_handler: Callable[[], Handler], *, abandon_s: float = ABANDON_S) -> NoReturn:
    """Be the zygote of runners with such a handler, called in each of them after the fork.

    abandon_s   how long a runner whose worker is gone may take to abandon its job.

    Raises RuntimeError when the program has started a thread: a fork would copy its locks, but not it.
    """
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208
        raise RuntimeError("a runner program must not start threads while it is imported")
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # else the first collection in each runner would copy all that is shared
    _Zygote(control, make_handler, abandon_s).serve()
    os._exit(0)


class _Zygote:
    def __init__(self, control: socket.socket, make_handler: Callable[[], Handler], abandon_s: float) -> None:
        self.control = control
        self.make_handler = make_handler
        self.abandon_s = abandon_s
        self.children: set[int] = set()
        self.wake, self.wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self.wake_writer)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def serve(self) -> None:
        """Fork and reap until the worker is gone and every runner with it."""
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        poller.register(self.wake, select.POLLIN)
        self._tell("up")
        while True:
            ready = {descriptor for descriptor, _ in poller.poll()}
            if self.wake in ready:
                self._reap()
            if self.control.fileno() in ready and not self._fork():
                break
        poller.unregister(self.control)
        deadline = time.monotonic() + self.abandon_s + KILL_AFTER_S
        while self.children:
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                for pid in self.children:
                    os.killpg(pid, signal.SIGKILL)
                poller.poll()
            self._reap()

    def _fork(self) -> bool:
        """A new runner; False when the worker is gone."""
        try:
            order, descriptors, _, _ = socket.recv_fds(self.control, 1, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return False
        if not order:
            return False
        connection = socket.socket(fileno=descriptors[0])
        with connection:
            try:
                pid = os.fork()
            except OSError as error:  # too many processes, no memory: the set tries again
                sys.stderr.write(f"no runner could be forked: {error.strerror}\n")
                return True
            if pid == 0:
                self._become_runner(connection)
            self.children.add(pid)
        return True

    def _become_runner(self, connection: socket.socket) -> NoReturn:
        status = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.control.close()
            os.close(self.wake)
            os.close(self.wake_writer)
            status = runner_process.live(connection, self.make_handler(), abandon_s=self.abandon_s)
        except BaseException:  # noqa: BLE001  whatever it was, this process must not go on as a second zygote
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(status)

    def _reap(self) -> None:
        os.read(self.wake, 4096)
        while self.children and (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
            pid = ended.si_pid
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # what it has left; its number is not free before it is waited for
            _, status = os.waitpid(pid, 0)
            self.children.discard(pid)
            self._tell(f"{pid} {os.waitstatus_to_exitcode(status)}")

    def _tell(self, line: str) -> None:
        try:
            self.control.sendall(f"{line}\n".encode())
        except ConnectionError:  # the worker is gone, as the next read will find
            return
