"""The process launcher: an operator as a local process, kept in as far as an unprivileged Linux process can be."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

import psutil

from clara_flow.errors import LauncherUnavailable, StorageError
from clara_flow.infra.launchers import supervise
from clara_flow.infra.launchers.base import Attempt, Ending, Launcher
from clara_flow.infra.launchers.log import OperatorLog
from clara_flow.infra.launchers.owner import Owner
from clara_flow.infra.launchers.spec import LaunchSpec, Mount
from clara_flow.infra.launchers.supervise import MARK
from clara_flow.infra.launchers.supervisors import Supervisor, start_supervisor
from clara_flow.settings import Runtime

WATCH_EVERY_S = 0.05
READ_BYTES = 256 * 2**10
REMOVE_WAIT_S = 10.0
GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # Linux, Windows' Linux subsystem


class ProcessLauncher(Launcher):
    """Runs operators as processes of this machine, below a supervisor each (`supervise.py`).

    Enforced: the operator and all its descendants end with it, on timeout, on cancel, and when the platform is killed;
    memory above `request.memory_mib` (anonymous and shared memory of all its processes together, looked at every
    50 ms, so a short burst can pass); no core dumps, no new privileges; the environment is the spec's and what
    a runtime needs, nothing of ours; home and temporary folder are private and removed.
    Enforced where the kernel has Landlock (5.19 or newer, switched on): it can create, change and remove files only
    below its read-write mounts, its private folder, /dev/shm and devices, even as root; from 6.12 on it can signal only
    itself. Before 6.2, and without Landlock, a changed input is found after the run and fails the attempt.
    Not enforced: CPU (`request.cpu`), network, reading other files of this account, using other GPUs than those that
    CUDA_VISIBLE_DEVICES names, modes and time stamps of its inputs. Use the docker runtime where that matters.

    state_dir       folder of ours for what running operators need; the reaper looks there.
    landlock_abi    version of Landlock to use; unset: the kernel's.
    """

    runtime: ClassVar[Runtime] = "process"

    def __init__(self, state_dir: Path, *, landlock_abi: int | None = None) -> None:
        self.state_dir = state_dir
        self.landlock_abi = supervise.landlock_abi() if landlock_abi is None else landlock_abi

    def path_inside(self, mount: Mount) -> str:
        """Paths cannot be re-mapped for a process: the path on this machine."""
        return str(mount.source)

    async def check(self) -> None:
        """Raises LauncherUnavailable off Linux, StorageError when the state folder cannot be made."""
        if not sys.platform.startswith("linux"):
            raise LauncherUnavailable("the process runtime needs Linux. Use --runtime docker.", runtime="process")
        self._make_state_dir()

    async def reap(self, job_is_alive: Callable[[str], bool]) -> list[str]:
        """See Launcher.reap. Processes are known by a random mark in their environment, never by their number alone."""
        reaped = []
        for record in sorted(self.state_dir.glob("*.json")):
            try:
                entry = json.loads(record.read_text())
                owner, job_id = Owner.parse(entry["owner"]), entry["job_id"]
            except FileNotFoundError:
                continue  # its launcher has just removed it
            except ValueError:  # the machine lost power before the record was on disk
                _remove_state(record)
                continue
            if owner.is_gone(job_id=job_id, job_is_alive=job_is_alive):
                _kill_marked(record.stem)
                _remove_state(record)
                reaped.append(job_id)
        return reaped

    def _attempt(self, spec: LaunchSpec) -> Attempt:
        return ProcessAttempt(spec, self)

    def _make_state_dir(self) -> None:
        try:
            self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(f"the folder {self.state_dir} cannot be made: {error.strerror}") from None


class ProcessAttempt(Attempt):
    """One operator process with its supervisor."""

    def __init__(self, spec: LaunchSpec, launcher: ProcessLauncher) -> None:
        super().__init__(spec)
        self.launcher = launcher
        self.mark = uuid.uuid4().hex
        self.record = launcher.state_dir / f"{self.mark}.json"
        self.supervisor: Supervisor | None = None
        self.lifeline = self.output = -1
        self.inputs_before: dict[Path, frozenset[tuple[str, int, int, int]]] = {}

    @property
    def identity(self) -> str:
        """`host:pid` of the supervisor."""
        return f"{socket.gethostname()}:{self.supervisor.pid}" if self.supervisor else ""

    def launch(self) -> None:
        """Start the supervisor, which starts the operator."""
        if self.spec.gpu_devices and not any(Path(device).exists() for device in GPU_DEVICES):
            raise LauncherUnavailable(
                f"operator {self.spec.operator!r} was given a GPU, but this machine has no NVIDIA driver. "
                "Install the driver, or set `requests.gpu` to 0.",
                runtime="process",
                operator=self.spec.operator,
            )
        private = self.record.with_suffix("")
        self.launcher._make_state_dir()
        unnamed = self.record.with_suffix(".new")
        unnamed.write_text(json.dumps({"job_id": self.spec.job_id, "owner": str(Owner.current())}))
        unnamed.rename(self.record)  # a reaper never reads half of it
        home, temporary = private / "home", private / "tmp"
        home.mkdir(parents=True)
        temporary.mkdir()
        if self.launcher.landlock_abi < supervise.LANDLOCK_TRUNCATE_ABI:
            self.inputs_before = self._inputs()
        writable = [str(mount.source) for mount in self.spec.mounts if not mount.read_only]
        order = {
            "command": self.spec.command,
            "environment": self._environment(home, temporary),
            "cwd": str(home),
            "writable": [*writable, str(private)],
            "landlock_abi": self.launcher.landlock_abi,
        }
        lifeline, self.lifeline = os.pipe()
        self.output, output = os.pipe()
        try:
            self.supervisor = start_supervisor(order, lifeline=lifeline, output=output)
        except OSError as error:
            raise LauncherUnavailable(
                f"operator {self.spec.operator!r} could not be started: {error.strerror or error}",
                operator=self.spec.operator,
            ) from None
        finally:
            os.close(lifeline)
            os.close(output)

    def follow(self, log: OperatorLog) -> Ending:
        """Read the log and watch the memory until the supervisor has reported."""
        if self.supervisor is None:
            raise RuntimeError("follow comes after launch")
        reports, report = self.supervisor.report.fileno(), b""
        limit_bytes = self.spec.request.memory_mib * 2**20
        peak_bytes, out_of_memory, next_look = 0, False, time.monotonic() + WATCH_EVERY_S
        poller = select.poll()
        poller.register(self.output, select.POLLIN)
        poller.register(reports, select.POLLIN)
        open_pipes = {self.output, reports}
        while open_pipes:
            for descriptor, _ in poller.poll(WATCH_EVERY_S * 1000):
                block = os.read(descriptor, READ_BYTES)
                if not block:
                    poller.unregister(descriptor)
                    open_pipes.discard(descriptor)
                    if descriptor == reports and not report:  # the supervisor was killed: its orphans hold the log
                        _kill_marked(self.mark)
                elif descriptor == self.output:
                    log.feed(block)
                else:
                    report += block
            if not out_of_memory and (now := time.monotonic()) >= next_look:
                peak_bytes = max(peak_bytes, used_bytes := _memory_bytes(supervise.descendants(self.supervisor.pid)))
                if used_bytes > limit_bytes:
                    out_of_memory = True
                    self.kill()
                # A look at gigabytes in many processes takes long: never more than a tenth of the time.
                next_look = now + max(WATCH_EVERY_S, 10 * (time.monotonic() - now))
        return self._ending(report.decode(), out_of_memory, peak_bytes)

    def ask_to_stop(self) -> None:
        """SIGTERM to the operator's process group."""
        self._order(b"t")

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        self._order(b"k")

    def remove(self) -> None:
        """Close the pipes; remove the private folder."""
        self.kill()
        if self.supervisor is not None:
            if not self.supervisor.wait(REMOVE_WAIT_S):  # one of its processes hangs in the kernel
                self.supervisor.kill()
            self.supervisor.close()
            self.supervisor = None
        for descriptor in (self.lifeline, self.output):
            if descriptor >= 0:
                os.close(descriptor)
        self.lifeline = self.output = -1
        _remove_state(self.record)

    def _order(self, order: bytes) -> None:
        if self.lifeline >= 0:
            with contextlib.suppress(BrokenPipeError):  # it has ended
                os.write(self.lifeline, order)

    def _environment(self, home: Path, temporary: Path) -> dict[str, str]:
        devices = ",".join(self.spec.gpu_devices)
        return {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
            "LANG": "C.UTF-8",
            "HOME": str(home),
            "TMPDIR": str(temporary),
            **self.spec.environment,
            "CUDA_VISIBLE_DEVICES": devices,
            "NVIDIA_VISIBLE_DEVICES": devices,
            MARK: self.mark,
        }

    def _inputs(self) -> dict[Path, frozenset[tuple[str, int, int, int]]]:
        """Name, inode, size and change time of every file of every read-only mount."""
        return {mount.source: _fingerprint(mount.source) for mount in self.spec.mounts if mount.read_only}

    def _ending(self, report: str, out_of_memory: bool, peak_bytes: int) -> Ending:
        if not report:
            return Ending(out_of_memory=out_of_memory, lost="" if out_of_memory else "its supervisor was killed")
        exit_code, largest_kib, cpu_s = report.split()
        misdeed = ""
        if self.inputs_before:
            now = self._inputs()
            changed = [str(source) for source, before in self.inputs_before.items() if now[source] != before]
            misdeed = f"changed its read-only input {changed[0]}" if changed else ""
        return Ending(
            exit_code=int(exit_code),
            out_of_memory=out_of_memory,
            misdeed=misdeed,
            peak_memory_bytes=max(peak_bytes, int(largest_kib) * 2**10),
            cpu_s=float(cpu_s),
        )


def _fingerprint(path: Path) -> frozenset[tuple[str, int, int, int]]:
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    states = [(str(file), file.lstat()) for file in files]
    return frozenset((name, state.st_ino, state.st_size, state.st_ctime_ns) for name, state in states)


def _memory_bytes(pids: Iterable[int]) -> int:
    """Memory that cannot be taken back from these processes: anonymous and shared, not mapped files.

    Pages that processes share after a fork count once (proportionally), which /proc sums only for a price: a single
    process is asked the cheap way.
    """
    pids = list(pids)
    name, keys = (
        ("status", ("RssAnon:", "RssShmem:")) if len(pids) < 2 else ("smaps_rollup", ("Pss_Anon:", "Pss_Shmem:"))
    )
    total_kib = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/{name}").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total_kib += sum(int(line.split()[1]) for line in lines if line.startswith(keys))
    return total_kib * 2**10


def _kill_marked(mark: str) -> None:
    """Kill every process that carries the mark in its environment. psutil compares start times before it kills."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                process.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def _remove_state(record: Path) -> None:
    """The folder first: a record without a folder can still be reaped, a folder without its record cannot."""
    shutil.rmtree(record.with_suffix(""), ignore_errors=True)
    record.unlink(missing_ok=True)
