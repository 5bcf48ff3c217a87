"""Who runs a job: one process on one host, known by a fencing token that nobody else has."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass, field
from pathlib import Path


def boot_id() -> str:
    """Of this start of the machine: no two have the same. Raises OSError."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def process_start(pid: int) -> str:
    """When a process of this host started, as `boot id:clock ticks`; "" when there is no such process.

    Unlike a wall-clock time it does not move when the clock is set, and no other process ever has the same
    (pid, start).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = boot_id()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything; then field 3, the state
    return "" if fields[0] in {"Z", "X"} else f"{boot}:{fields[19]}"  # field 22, proc_pid_stat(5)


@dataclass(frozen=True, slots=True)
class Owner:
    """The runner of a job. `token` fences: a write with another token than the job's is refused."""

    host: str
    pid: int
    process_start: str
    token: uuid.UUID = field(default_factory=uuid.uuid4)

    @classmethod
    def of_this_process(cls) -> Owner:
        """A new owner: this process, with a token of its own."""
        return cls(socket.gethostname(), os.getpid(), process_start(os.getpid()))

    def is_alive(self) -> bool:
        """Whether its process still runs. Of another host nothing is known: its jobs are left to that host."""
        if self.host != socket.gethostname():
            return True
        return process_start(self.pid) == self.process_start
