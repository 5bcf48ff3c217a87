"""The supervisor in a process of its own, which outlives the command that started it.

The settings reach it through its stdin, because they may hold passwords; an error that keeps it from starting comes
back through its stdout. Everything else that it says goes to `<data_dir>/logs/supervisor.log`.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from contextlib import suppress

from clara_flow.errors import ClaraFlowError, PlatformError
from clara_flow.services.endings import on_end
from clara_flow.settings import Settings

BUSY = 75  # EX_TEMPFAIL of sysexits.h: another supervisor has the data folder


class DetachedSupervisor:
    """At most one child that supervises `settings.data_dir`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.log_path = settings.data_dir / "logs" / "supervisor.log"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the last child; None when none was started."""
        return self._child.pid if self._child is not None else None

    def start(self) -> None:
        """Start it unless it runs. It begins when it has its settings: a command that dies before leaves nothing.

        Raises the ClaraFlowError that ended the child started before.
        """
        if self._child is not None:
            if self._child.poll() is None:
                return
            if self._child.returncode != BUSY:
                raise self._failure(self._child)
            self._close(self._child)
        with self.log_path.open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "clara_flow.services.detached"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self.settings.data_dir,
                start_new_session=True,
            )
        assert self._child.stdin is not None  # noqa: S101  asked for above
        with suppress(BrokenPipeError), self._child.stdin as pipe:
            pipe.write(pickle.dumps(self.settings))

    def stop(self) -> None:
        """End the child, if there is one, with everything that it started."""
        if self._child is not None:
            self._child.terminate()
            self._child.wait()
            self._close(self._child)

    def leave(self) -> None:
        """Let it run on; should this process live longer, it buries its child."""
        if self._child is not None:
            self._close(self._child)
            threading.Thread(target=self._child.wait, name="supervisor-reaper", daemon=True).start()

    def _failure(self, child: subprocess.Popen[bytes]) -> ClaraFlowError:
        assert child.stdout is not None  # noqa: S101  asked for in start
        report = child.stdout.read()
        self._close(child)
        if report:
            error: ClaraFlowError = pickle.loads(report)  # noqa: S301  our own child wrote it
            return error
        if child.returncode in (0, -signal.SIGTERM):
            return PlatformError("the platform was stopped while it started, by `clara-flow down` or a signal")
        return PlatformError(f"the supervisor ended with status {child.returncode}; its log: {self.log_path}")

    def _close(self, child: subprocess.Popen[bytes]) -> None:
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def main() -> int:
    """The child: supervises until SIGTERM."""
    from clara_flow.services.supervisor import Supervisor

    report_fd = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no report
    content = sys.stdin.buffer.read()
    try:
        supervisor = Supervisor(pickle.loads(content))  # noqa: S301  our own parent wrote it
    except (EOFError, pickle.UnpicklingError):  # it died before it had written everything
        return 0

    on_end(supervisor.stop.set)
    try:
        return 0 if supervisor.run() else BUSY
    except ClaraFlowError as error:
        sys.stderr.write(f"{error}\n")
        with suppress(BrokenPipeError), os.fdopen(report_fd, "wb") as report:
            pickle.dump(error, report)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
