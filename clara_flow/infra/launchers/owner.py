"""Who launched an operator: written beside all that a launcher makes, so that a reaper knows what is left over."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Owner:
    """A process of some machine, told apart from every other one by when it started.

    place       boot id of the machine and pid namespace: where `pid` means anything.
    started     start time in clock ticks since boot (/proc/PID/stat, field 22).
    """

    place: str
    pid: int
    started: int

    @classmethod
    def current(cls) -> Owner:
        """This process."""
        return cls(_place(), os.getpid(), _start_ticks(os.getpid()) or 0)

    @classmethod
    def parse(cls, text: str) -> Owner:
        """The inverse of str(). Raises ValueError for anything else."""
        place, pid, started = text.rsplit(":", 2)
        return cls(place, int(pid), int(started))

    def __str__(self) -> str:
        return f"{self.place}:{self.pid}:{self.started}"

    def is_gone(self, *, job_id: str, job_is_alive: Callable[[str], bool]) -> bool:
        """True when what this owner launched is left over.

        A process of this machine is looked up. One of another machine (or of before a reboot) cannot be: then the
        job's own state decides.
        """
        if self.place == _place():
            return _start_ticks(self.pid) != self.started
        return not job_is_alive(job_id)


def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = Path("/proc/self/ns/pid").readlink().name.strip("pid:[]")
    return f"{boot}.{namespace}"


def _start_ticks(pid: int) -> int | None:
    """Start time of a process, None when there is none or only its zombie is left."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = text.rpartition(")")[2].split()  # the name before may hold blanks and brackets
    return None if state in "ZX" else int(fields[18])
