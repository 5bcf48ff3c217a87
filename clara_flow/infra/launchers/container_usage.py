"""What a running container uses, read from the kernel's control groups."""

from __future__ import annotations

import contextlib
from pathlib import Path

import docker


class Usage:
    """Memory and CPU of a container, read from its control group while it lives: the engine keeps no peak.

    A container that ends before the first look, or that lives on another machine, has no figures.
    """

    def __init__(self, api: docker.APIClient, container: str) -> None:
        self.peak_memory_bytes: int | None = None
        self.cpu_s: float | None = None
        self._api = api
        self._container = container
        self._groups: dict[str, Path] | None = None

    def look(self) -> None:
        """Take the present figures."""
        if self._groups is None:
            pid = self._api.inspect_container(self._container)["State"]["Pid"]
            self._groups = control_groups(pid)
        with contextlib.suppress(OSError, KeyError):  # it has just ended
            if "memory" not in self._groups:  # version 2
                memory = key_values(self._groups[""] / "memory.stat")
                used_bytes = memory["anon"] + memory["shmem"]
                cpu_s = key_values(self._groups[""] / "cpu.stat")["usage_usec"] / 1e6
            else:
                memory = key_values(self._groups["memory"] / "memory.stat")
                used_bytes = memory["total_rss"] + memory["total_shmem"]
                cpu_s = int((self._groups["cpuacct"] / "cpuacct.usage").read_text()) / 1e9
            self.peak_memory_bytes = max(self.peak_memory_bytes or 0, used_bytes)
            self.cpu_s = cpu_s


def control_groups(pid: int) -> dict[str, Path]:
    """Control group folders of a process by controller; version 2 has one under ""; {} when the process is gone."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines() if pid else []
    except OSError:
        return {}
    groups = {}
    for names, path in (line.split(":", 2)[1:] for line in lines):
        for controller in names.split(","):
            groups[controller] = root / names / path.lstrip("/")
    return groups


def key_values(path: Path) -> dict[str, int]:
    """A file of lines `key number`."""
    return {key: int(value) for key, value in (line.split() for line in path.read_text().splitlines())}
