"""Cores, memory and shared memory that this process may use: the machine's, within its cgroups' limits.

A limit may stand at any cgroup between the process's own and the root, in the one hierarchy of cgroup v2 or in the
controllers' own ones of v1 (cgroups(7)), and a container may see only a part of the tree.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

MIB = 2**20
PROC = Path("/proc")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  where FastIO volumes are made


def usable_cpus(proc: Path = PROC) -> int:
    """Whole cores: those of the scheduler's affinity, within the CPU quota; at least 1."""
    quotas = [quota for folder in _folders("cpu", proc) if (quota := _cpu_quota(folder)) is not None]
    return max(1, int(min([len(os.sched_getaffinity(0)), *quotas])))


def usable_memory_mib(proc: Path = PROC) -> int:
    """The machine's memory, or the least limit of this process's cgroups."""
    limits = [limit for folder in _folders("memory", proc) if (limit := _memory_limit(folder)) is not None]
    return min([psutil.virtual_memory().total, *limits]) // MIB


def shared_memory_mib(folder: Path = SHARED_MEMORY) -> tuple[int, int]:
    """Size and free room of /dev/shm; (0, 0) where there is none."""
    try:
        facts = os.statvfs(folder)
    except OSError:
        return 0, 0
    return facts.f_blocks * facts.f_frsize // MIB, facts.f_bavail * facts.f_frsize // MIB


def _folders(controller: str, proc: Path) -> Iterator[Path]:
    """The folders of this process's cgroup and of those above it, in every hierarchy with that controller."""
    own = _own_cgroups(proc)
    for line in _lines(proc / "self" / "mountinfo"):  # proc_pid_mountinfo(5)
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        root, mount = fields.split(" ")[3:5]
        if kind == "cgroup2":
            path = own.get("")
        elif kind == "cgroup" and controller in options.split(","):
            path = own.get(controller)
        else:
            continue
        if path is None:
            continue
        folder, top = Path(mount) / _below(path, root), Path(mount)
        yield folder
        yield from (above for above in folder.parents if above.is_relative_to(top))


def _own_cgroups(proc: Path) -> dict[str, str]:
    """Path of this process's cgroup by controller; "" is cgroup v2's. cgroups(7), /proc/PID/cgroup."""
    paths: dict[str, str] = {}
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    return paths


def _below(path: str, root: str) -> Path:
    """Where a cgroup lies below a mount that shows the tree from `root` on; the mount itself when it is elsewhere."""
    try:
        return Path(path).relative_to(root)
    except ValueError:  # mounted from outside, as in a container without a cgroup namespace of its own
        return Path()


def _cpu_quota(folder: Path) -> float | None:
    """Cores that the cgroup may use on average; None: no limit."""
    words = [*_words(folder / "cpu.max")]  # v2: "QUOTA PERIOD" in microseconds, or "max PERIOD"
    if not words:
        words = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]  # v1: -1 is no limit
    try:
        quota, period = map(int, words)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _memory_limit(folder: Path) -> int | None:
    """Bytes; None: no limit."""
    for name in ("memory.max", "memory.limit_in_bytes"):  # v2: may be "max"; v1: no limit is a huge number
        for word in _words(folder / name):
            return int(word) if word.isdigit() else None
    return None


def _words(file: Path) -> list[str]:
    return [word for line in _lines(file) for word in line.split()]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
