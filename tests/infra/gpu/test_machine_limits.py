"""Cores and memory within the limits of cgroups, laid out as the kernel lays them out (cgroups(7))."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from clara_flow.infra.gpu import machine

MIB = 2**20
CORES = len(os.sched_getaffinity(0))
MEMORY_MIB = psutil.virtual_memory().total // MIB


class Machine:
    """A folder that looks like /proc, and the cgroup trees that it tells of."""

    def __init__(self, root: Path) -> None:
        self.proc, self.root = root / "proc", root
        (self.proc / "self").mkdir(parents=True)

    def tells(self, *, own: list[str], mounts: list[tuple[str, str, str]]) -> None:
        """own: lines of /proc/self/cgroup; mounts: (folder here, part of the tree that it shows, type and options)."""
        lines = [
            f"{30 + number} 25 0:{26 + number} {shown} {self.root / folder} rw,nosuid - {kind}"
            for number, (folder, shown, kind) in enumerate(mounts)
        ]
        (self.proc / "self" / "mountinfo").write_text("\n".join(["25 1 8:1 / / rw - ext4 /dev/sda1 rw", *lines]) + "\n")
        (self.proc / "self" / "cgroup").write_text("\n".join(own) + "\n")

    def limits(self, folder: str, **values: object) -> None:
        """Files of one cgroup; `__` stands for a dot."""
        place = self.root / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            (place / name.replace("__", ".")).write_text(f"{value}\n")

    def memory_mib(self) -> int:
        return machine.usable_memory_mib(self.proc)

    def cpus(self) -> int:
        return machine.usable_cpus(self.proc)


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine of 8 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    return Machine(tmp_path)


def test_without_limits_it_is_the_whole_machine(computer: Machine) -> None:
    assert (computer.cpus(), computer.memory_mib()) == (8, MEMORY_MIB)  # not even /proc tells


def test_of_this_very_machine() -> None:
    assert 1 <= machine.usable_cpus() <= CORES
    assert 0 < machine.usable_memory_mib() <= MEMORY_MIB


def test_version_2_takes_the_least_on_the_way_up(computer: Machine) -> None:
    computer.tells(own=["0::/clinic/pool/worker"], mounts=[("cg", "/", "cgroup2 cgroup rw")])
    computer.limits("cg/clinic/pool/worker", memory__max="max", cpu__max="max 100000")
    computer.limits("cg/clinic/pool", memory__max=512 * MIB, cpu__max="350000 100000")
    computer.limits("cg/clinic", memory__max=700 * MIB, cpu__max="600000 100000")
    assert (computer.cpus(), computer.memory_mib()) == (3, 512)
    computer.limits("cg/clinic/pool/worker", memory__max=100 * MIB, cpu__max="50000 100000")
    assert (computer.cpus(), computer.memory_mib()) == (1, 100)  # half a core is no core, and one must do


def test_version_1_has_a_tree_for_each_controller(computer: Machine) -> None:
    computer.tells(
        own=["4:memory:/pool/worker", "1:cpu,cpuacct:/pool", "0::/"],
        mounts=[
            ("memory", "/", "cgroup cgroup rw,memory"),
            ("cpu", "/", "cgroup cgroup rw,cpu,cpuacct"),
            ("unified", "/", "cgroup2 cgroup rw"),
        ],
    )
    computer.limits("memory/pool/worker", memory__limit_in_bytes=2**63 - 4096)
    computer.limits("memory/pool", memory__limit_in_bytes=300 * MIB)
    computer.limits("cpu/pool", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100_000)
    assert (computer.cpus(), computer.memory_mib()) == (8, 300)
    computer.limits("cpu/pool", cpu__cfs_quota_us=200_000)
    assert computer.cpus() == 2


@pytest.mark.parametrize("own", ["/docker/c0ffee", "/docker/c0ffee/child", "/", "/../elsewhere"])
def test_a_container_sees_a_part_of_the_tree(computer: Machine, own: str) -> None:
    computer.tells(own=[f"9:memory:{own}"], mounts=[("memory", "/docker/c0ffee", "cgroup cgroup ro,memory")])
    computer.limits("memory", memory__limit_in_bytes=256 * MIB)
    assert computer.memory_mib() == 256


def test_shared_memory(tmp_path: Path) -> None:
    size_mib, free_mib = machine.shared_memory_mib()
    assert 0 <= free_mib <= size_mib
    assert machine.shared_memory_mib(tmp_path / "none") == (0, 0)
