"""A service that is a program of ours: a child of the supervisor in a session of its own, known by where it works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from clara_flow.errors import ServiceError
from clara_flow.records.durable import naming_storage_problems
from clara_flow.services.service import Service
from clara_flow.settings import Settings

if TYPE_CHECKING:
    import psutil

STOP_GRACE_S = 10.0
POLL_S = 0.02
SHOWN_LOG_LINES = 5


class OwnProcess(Service):
    """Runs `python -m <program>` inside `folder`.

    helpers     programs that it starts itself, inside the same folder, and that end with it.

    The folder tells our processes from strangers, also when their supervisor was killed before it could note a process
    id: nobody else runs that program there.
    """

    program: ClassVar[str]
    helpers: ClassVar[tuple[str, ...]] = ()
    log_path: Path

    def __init__(self, settings: Settings, *, folder: Path, log_name: str) -> None:
        self.settings = settings
        self.folder = folder
        self.log_path = settings.data_dir / "logs" / log_name
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Its whole environment."""

    def arguments(self) -> list[str]:
        """What follows the program."""
        return []

    @abstractmethod
    def silence(self) -> str:
        """Why the running process does not answer; "" when it does."""

    @property
    def pid(self) -> int | None:
        """Process id of ours."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def processes(self, *, with_helpers: bool = False) -> list[psutil.Process]:
        """The processes of this service, whoever started them."""
        import psutil

        programs = {self.program, *(self.helpers if with_helpers else ())}
        own = str(self.folder.resolve())
        return [
            process
            for process in psutil.process_iter(["cwd", "cmdline", "status"])
            if process.info["cwd"] == own
            and programs.intersection(process.info["cmdline"] or ())
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ]

    def prepare(self) -> None:
        """End what a killed supervisor left."""
        self.end()

    def start(self) -> None:
        """Start it; it answers some seconds later."""
        with naming_storage_problems(self.settings.data_dir):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.log_path.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", self.program, *self.arguments()],
                    env=self.environment(),
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.pid is not None

    def problem(self) -> str:
        """Why it does not answer: it ended, with its last words, or it is silent."""
        if self.pid is not None:
            return self.silence()
        with self.log_path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(self._log_start if self._log_start <= size else 0)  # it may have been begun anew
            lines = log.read().decode(errors="replace").splitlines()
        return "it ended: " + (" | ".join(line.strip() for line in lines[-SHOWN_LOG_LINES:]) or "it said nothing")

    def end(self) -> bool:
        """End its processes, this supervisor's and those of earlier ones: politely, then by force."""
        found = False
        for number in (signal.SIGTERM, signal.SIGKILL):
            remaining = self.processes(with_helpers=number == signal.SIGKILL)
            found = found or bool(remaining)
            for process in remaining:
                _signal(process.pid, number)
            deadline = time.monotonic() + STOP_GRACE_S
            while time.monotonic() < deadline and (self.pid is not None or self.processes(with_helpers=True)):
                time.sleep(POLL_S)
        if remaining := self.processes(with_helpers=True):
            raise ServiceError(
                self.title,
                f"it does not stop (process {remaining[0].pid})",
                remedy="End that process by hand.",
                log_path=str(self.log_path),
            )
        return found


def _signal(pid: int, number: signal.Signals) -> None:
    """To its whole process group; to a helper alone, since that belongs to a program that may be gone."""
    with suppress(ProcessLookupError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
