"""The one conformance suite: every launcher keeps every promise of `Launcher.run`. A subclass makes the launcher."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import docker
import psutil
import pytest
from waiting import eventually

from clara_flow.errors import (
    LauncherUnavailable,
    OperatorCancelled,
    OperatorFailed,
    OperatorLost,
    OperatorOutOfMemory,
    OperatorTimedOut,
    OutputMissing,
    StorageError,
)
from clara_flow.infra.launchers.base import Launcher, Stop
from clara_flow.infra.launchers.docker import JOB_LABEL, DockerLauncher
from clara_flow.infra.launchers.log import FORWARDED_LINES, LINE_BYTES
from clara_flow.infra.launchers.process import MARK, ProcessLauncher
from clara_flow.infra.launchers.spec import ExitReport, LaunchSpec, Mount, RequiredOutput, ResourceRequest

WAIT_FOREVER = "import signal; print('up', flush=True); signal.pause()"
HAS_GPU = Path("/dev/nvidiactl").exists()
LIMIT_S = 60.0

MakeSpec = Callable[..., LaunchSpec]


class LauncherContract:
    """All cases. Operators are Python code; `INPUT` and `OUTPUT` in their environment are their folders."""

    python: ClassVar[str] = "python3"
    image: str = "none:1"
    added_variables: ClassVar[set[str]]  # what the runtime adds to the spec's environment

    @pytest.fixture
    def launcher(self) -> Launcher:
        raise NotImplementedError

    def left_over(self, job_id: str) -> list[object]:
        """What there still is of a job."""
        raise NotImplementedError

    def make_it_vanish(self, job_id: str) -> None:
        """Take the operator away from under its launcher."""
        raise NotImplementedError

    def launcher_source(self, launcher: Launcher) -> str:
        """Python text that makes the same launcher in another interpreter."""
        raise NotImplementedError

    @pytest.fixture
    def make_spec(self, tmp_path: Path, launcher: Launcher) -> Iterator[MakeSpec]:
        """Makes specs of one job; afterwards nothing of that job may be left."""
        job_id = str(uuid.uuid4())
        source, target = tmp_path / "input", tmp_path / "output"
        source.mkdir()
        target.mkdir()
        (source / "scan.dcm").write_bytes(b"as it was")
        mounts = (Mount(source=source, target="/input"), Mount(source=target, target="/output", read_only=False))

        def make(code: str = "", **changes: object) -> LaunchSpec:
            values: dict[str, object] = {
                "operator": "reader",
                "job_id": job_id,
                "image": self.image,
                "command": (self.python, "-u", "-c", textwrap.dedent(code)),
                "environment": {
                    "INPUT": launcher.path_inside(mounts[0]),
                    "OUTPUT": launcher.path_inside(mounts[1]),
                    "CLARA_JOB_ID": job_id,
                },
                "mounts": mounts,
                "timeout_s": LIMIT_S,
                "grace_s": 5.0,
                "log_path": tmp_path / "logs" / "reader.log",
                "request": ResourceRequest(memory_mib=256),
            }
            return LaunchSpec(**{**values, **changes})  # type: ignore[arg-type]

        yield make
        assert self.left_over(job_id) == []

    async def run(self, launcher: Launcher, spec: LaunchSpec) -> tuple[ExitReport, list[str]]:
        lines: list[str] = []
        report = await launcher.run(spec, stop=Stop(), on_line=lines.append)
        return report, lines

    async def test_success_reports_times_and_identity(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        report, lines = await self.run(launcher, make_spec("print('one'); print('two')"))
        assert lines == ["one", "two"]
        assert report.exit_code == 0
        assert report.log_bytes == len("one\ntwo\n")
        assert report.identity
        assert report.started.utcoffset() is not None
        assert report.run_time_s >= 0

    async def test_both_streams_are_in_the_log_file(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        spec = make_spec("import sys; print('out'); print('err', file=sys.stderr)")
        _, lines = await self.run(launcher, spec)
        assert sorted(lines) == ["err", "out"]
        assert sorted(spec.log_path.read_text().split()) == ["err", "out"]

    async def test_lines_come_while_the_operator_runs(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        fifo = next(mount.source for mount in make_spec().mounts if not mount.read_only) / "go"
        os.mkfifo(fifo)
        code = "import os; print('ready'); print(open(os.environ['OUTPUT'] + '/go').read())"

        def answer(line: str) -> None:
            lines.append(line)
            if line == "ready":
                fifo.write_text("went")

        lines: list[str] = []
        await launcher.run(make_spec(code), stop=Stop(), on_line=answer)
        assert lines == ["ready", "went"]

    async def test_what_it_reads_and_writes(self, launcher: Launcher, make_spec: MakeSpec, tmp_path: Path) -> None:
        code = """
            import os, pathlib
            data = pathlib.Path(os.environ['INPUT'], 'scan.dcm').read_bytes()
            pathlib.Path(os.environ['OUTPUT'], 'result').write_bytes(data.upper())
        """
        outputs = (RequiredOutput(name="result", path=tmp_path / "output"),)
        await self.run(launcher, make_spec(code, outputs=outputs))
        assert (tmp_path / "output" / "result").read_bytes() == b"AS IT WAS"

    async def test_missing_output(self, launcher: Launcher, make_spec: MakeSpec, tmp_path: Path) -> None:
        code = "import os; os.mkdir(os.environ['OUTPUT'] + '/empty-folder'); print('done')"
        outputs = (RequiredOutput(name="mask", path=tmp_path / "output"),)
        with pytest.raises(OutputMissing, match="wrote nothing to its output 'mask'") as caught:
            await self.run(launcher, make_spec(code, outputs=outputs))
        assert caught.value.last_lines == ("done",)

    async def test_exit_status_and_last_lines(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        spec = make_spec("import sys\nfor n in range(30): print(n)\nsys.exit(3)")
        with pytest.raises(OperatorFailed, match="exited with 3") as caught:
            await self.run(launcher, spec)
        assert caught.value.exit_code == 3
        assert caught.value.last_lines == tuple(str(n) for n in range(10, 30))
        assert str(spec.log_path) in str(caught.value)

    async def test_killed_by_a_signal(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        shell = ("sh", "-c", "kill -KILL $$")
        with pytest.raises(OperatorFailed) as caught:
            await self.run(launcher, make_spec(command=shell))
        assert caught.value.exit_code == 137

    async def test_unknown_command(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        with pytest.raises(OperatorFailed) as caught:
            await self.run(launcher, make_spec(command=("no-such-program", "x")))
        assert caught.value.exit_code == 127
        assert "no-such-program" in " ".join(caught.value.last_lines)

    async def test_out_of_memory(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        code = "import signal; x = bytearray(512 * 2**20); print('too far'); signal.pause()"
        with pytest.raises(OperatorOutOfMemory, match="limit 128 MiB") as caught:
            await self.run(launcher, make_spec(code, request=ResourceRequest(memory_mib=128)))
        assert caught.value.limit_mib == 128

    async def test_memory_and_cpu_are_reported(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        code = """
            import time
            x = bytearray(100 * 2**20)
            end = time.process_time() + 0.7
            while time.process_time() < end: pass
        """
        report, _ = await self.run(launcher, make_spec(code))
        assert report.peak_memory_bytes is not None
        assert 100 * 2**20 < report.peak_memory_bytes < 200 * 2**20
        assert report.cpu_s is not None
        assert 0.3 < report.cpu_s < 3

    async def test_huge_output_is_not_memory(self, launcher: Launcher, make_spec: MakeSpec, tmp_path: Path) -> None:
        code = """
            import os
            with open(os.environ['OUTPUT'] + '/volume', 'wb') as file:
                for _ in range(300): file.write(bytes(2**20))
        """
        await self.run(launcher, make_spec(code, request=ResourceRequest(memory_mib=64)))
        assert (tmp_path / "output" / "volume").stat().st_size == 300 * 2**20

    async def test_timeout_asks_first(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        code = """
            import signal, sys
            signal.signal(signal.SIGTERM, lambda *_: (print('bye'), sys.exit(0)))
            signal.pause()
        """
        with pytest.raises(OperatorTimedOut, match=r"limit of 1 s") as caught:
            await self.run(launcher, make_spec(code, timeout_s=1.0, grace_s=LIMIT_S))
        assert caught.value.last_lines == ("bye",)

    async def test_timeout_kills_who_does_not_listen(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        code = """
            import signal
            signal.signal(signal.SIGTERM, lambda *_: print('no'))
            while True: signal.pause()
        """
        with pytest.raises(OperatorTimedOut) as caught:
            await self.run(launcher, make_spec(code, timeout_s=1.0, grace_s=0.3))
        assert caught.value.last_lines == ("no",)

    @pytest.mark.parametrize("expires", [True, False])
    async def test_a_cancelled_operator_gets_another_grace(
        self, launcher: Launcher, make_spec: MakeSpec, expires: bool
    ) -> None:
        """Deaf, with no grace at all for the one and a long one for the other: a wrong one would take too long."""
        code = """
            import signal
            signal.signal(signal.SIGTERM, lambda *_: print('no'))
            print('up', flush=True)
            while True: signal.pause()
        """
        due, other = ("grace_s", "cancel_grace_s") if expires else ("cancel_grace_s", "grace_s")
        stop = Stop()
        running = launcher.run(
            make_spec(code, timeout_s=None, **{due: 0.2, other: 2 * LIMIT_S}),
            stop=stop,
            on_line=lambda line: stop.expire(7) if expires else stop.set(),
        )
        with pytest.raises(OperatorTimedOut if expires else OperatorCancelled) as caught:
            await asyncio.wait_for(running, LIMIT_S)
        if expires:
            assert caught.value.timeout_s == 7

    async def test_stop_event_cancels(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        stop = Stop()
        with pytest.raises(OperatorCancelled, match="was cancelled"):
            await launcher.run(make_spec(WAIT_FOREVER), stop=stop, on_line=lambda line: stop.set())

    async def test_stop_before_launch(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        stop = Stop()
        stop.set()
        with pytest.raises(OperatorCancelled):
            await launcher.run(make_spec("print('never')"), stop=stop, on_line=pytest.fail)

    @pytest.mark.parametrize("turns", [0, 1, 3, 10])
    async def test_stop_during_launch(self, launcher: Launcher, make_spec: MakeSpec, turns: int) -> None:
        stop = Stop()
        running = asyncio.create_task(launcher.run(make_spec(WAIT_FOREVER), stop=stop, on_line=lambda line: None))
        for _ in range(turns):
            await asyncio.wait([running], timeout=0.005)
        stop.set()
        with pytest.raises(OperatorCancelled):
            await running

    async def test_task_cancellation_removes_everything(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        up = asyncio.Event()
        running = asyncio.create_task(launcher.run(make_spec(WAIT_FOREVER), stop=Stop(), on_line=lambda line: up.set()))
        await asyncio.wait_for(up.wait(), LIMIT_S)
        running.cancel()
        await asyncio.wait([running], timeout=0.001)
        running.cancel()  # an impatient second one changes nothing
        with pytest.raises(asyncio.CancelledError):
            await running

    async def test_task_cancellation_during_launch(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        running = asyncio.create_task(launcher.run(make_spec(WAIT_FOREVER), stop=Stop(), on_line=print))
        await asyncio.wait([running], timeout=0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    async def test_what_it_leaves_running_is_ended(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        code = f"""
            import subprocess, sys
            child = subprocess.Popen([sys.executable, '-c', {WAIT_FOREVER!r}], start_new_session=True)
            print('started')
        """
        _, lines = await self.run(launcher, make_spec(code))
        assert "started" in lines  # and make_spec's fixture finds nothing left

    async def test_vanished_operator_is_lost(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        spec = make_spec(WAIT_FOREVER)
        with pytest.raises(OperatorLost, match="was lost"):
            await launcher.run(spec, stop=Stop(), on_line=lambda line: self.make_it_vanish(spec.job_id))

    async def test_several_at_once(self, launcher: Launcher, make_spec: MakeSpec, tmp_path: Path) -> None:
        specs = [make_spec(f"print({n})", log_path=tmp_path / f"{n}.log") for n in range(5)]
        results = await asyncio.gather(*(self.run(launcher, spec) for spec in specs))
        assert [lines for _, lines in results] == [[str(n)] for n in range(5)]

    async def test_inputs_cannot_be_changed(self, launcher: Launcher, make_spec: MakeSpec, tmp_path: Path) -> None:
        code = """
            import os
            file = os.environ['INPUT'] + '/scan.dcm'
            attempts = {
                'write': lambda: open(file, 'w'),
                'append': lambda: open(file, 'a'),
                'truncate': lambda: os.truncate(file, 0),
                'remove': lambda: os.remove(file),
                'rename': lambda: os.rename(file, os.environ['INPUT'] + '/other'),
                'take': lambda: os.rename(file, os.environ['OUTPUT'] + '/taken'),
                'link': lambda: os.link(file, os.environ['OUTPUT'] + '/linked'),
                'create': lambda: open(os.environ['INPUT'] + '/new', 'w'),
                'folder': lambda: os.mkdir(os.environ['INPUT'] + '/folder'),
            }
            for name, attempt in attempts.items():
                try: attempt()
                except OSError: continue
                print(name)
        """
        _, succeeded = await self.run(launcher, make_spec(code))
        assert succeeded == []
        assert [path.name for path in (tmp_path / "input").iterdir()] == ["scan.dcm"]
        assert (tmp_path / "input" / "scan.dcm").read_bytes() == b"as it was"

    async def test_nothing_else_can_be_written(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        code = """
            import os, tempfile
            tempfile.TemporaryFile().write(b'x')  # a place for temporary files there is
            for path in ('/usr/lib/x', '/etc/x', '/x', '/var/x'):
                try: open(path, 'w')
                except OSError: continue
                print(path)
        """
        _, succeeded = await self.run(launcher, make_spec(code))
        assert succeeded == []

    async def test_environment_is_exact(
        self, launcher: Launcher, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SECRET_OF_THE_HOST", "token")
        spec = make_spec("import json, os; print(json.dumps(dict(os.environ)))")
        _, lines = await self.run(launcher, spec)
        seen = json.loads(lines[0])
        assert {name: seen.get(name) for name in spec.environment} == spec.environment
        assert seen.keys() - spec.environment.keys() - {"LC_CTYPE"} == self.added_variables

    async def test_no_gpu_is_visible_without_a_lease(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        spec = make_spec("import os; print(repr(os.environ['NVIDIA_VISIBLE_DEVICES']))")
        spec = make_spec(
            "import os; print(repr(os.environ['NVIDIA_VISIBLE_DEVICES']))",
            environment={**spec.environment, "NVIDIA_VISIBLE_DEVICES": "all", "CUDA_VISIBLE_DEVICES": "0"},
        )
        _, lines = await self.run(launcher, spec)
        assert lines == ["''"]

    @pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
    async def test_gpu_where_there_is_none(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        with pytest.raises(LauncherUnavailable, match=r"was given a GPU, but .* set `requests.gpu` to 0"):
            await self.run(launcher, make_spec("print(1)", gpu_devices=("GPU-0",)))

    async def test_strange_bytes(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        code = r"import sys; sys.stdout.buffer.write(b'a\xff\x00b\n\x1b[31mred\x1b[0m\r\n\xc3\xa4 no end')"
        spec = make_spec(code)
        _, lines = await self.run(launcher, spec)
        assert lines == ["a\N{REPLACEMENT CHARACTER}b", "red", "ä no end"]
        assert b"a\xff\x00b" in spec.log_path.read_bytes()

    async def test_flood(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        await self.flood(launcher, make_spec, size_mb=200)

    @pytest.mark.soak
    async def test_flood_of_a_gigabyte(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        await self.flood(launcher, make_spec, size_mb=1000)

    async def flood(self, launcher: Launcher, make_spec: MakeSpec, *, size_mb: int) -> None:
        limit_bytes, head, tail = 4 * 2**20, "first line", "last line"
        code = f"""
            import sys
            print({head!r})
            block = b'a line of a log that says nothing at all\\n' * 25000
            for _ in range({size_mb}): sys.stdout.buffer.write(block)
            sys.stdout.flush()
            print({tail!r})
        """
        spec = make_spec(code, log_limit_bytes=limit_bytes)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (proc(5))
        before_kib = peak_kib()
        report, lines = await self.run(launcher, spec)
        assert peak_kib() - before_kib < 48 * 1024
        assert report.log_bytes > size_mb * 1_000_000
        assert lines[0] == head
        assert "the rest is in" in lines[-1]
        assert len(lines) <= FORWARDED_LINES + 1
        kept = spec.log_path.read_text()
        assert len(kept) < limit_bytes + 100
        assert kept.startswith(head)
        assert kept.endswith(f"{tail}\n")
        assert "bytes were cut here" in kept

    async def test_one_endless_line(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        spec = make_spec("import sys\nfor _ in range(50): sys.stdout.write('x' * 10**6)")
        report, lines = await self.run(launcher, spec)
        assert report.log_bytes == 50 * 10**6
        assert max(map(len, lines)) <= LINE_BYTES
        assert "the rest is in" in lines[-1]

    async def test_log_on_a_full_disk_does_not_end_the_operator(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        _, lines = await self.run(launcher, make_spec("print('fine')", log_path=Path("/dev/full")))
        note = next(line for line in lines if line != "fine")
        assert "cannot be written (No space left on device)" in note
        assert sorted(lines) == sorted([note, "fine"])

    async def test_log_that_cannot_be_made(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        with pytest.raises(StorageError, match="cannot be written"):
            await self.run(launcher, make_spec("print('never')", log_path=Path("/proc/1/x/y.log")))

    async def test_check(self, launcher: Launcher) -> None:
        await launcher.check()
        assert isinstance(launcher, Launcher)

    def start_platform(self, launcher: Launcher, spec: LaunchSpec) -> subprocess.Popen[str]:
        """Another interpreter that launches the spec, up when the operator is."""
        program = f"""
            import asyncio
            from pathlib import PosixPath
            from clara_flow.infra.launchers.base import Stop
            from clara_flow.infra.launchers.docker import DockerLauncher
            from clara_flow.infra.launchers.process import ProcessLauncher
            from clara_flow.infra.launchers.spec import *

            launcher, spec = {self.launcher_source(launcher)}, {spec!r}
            try:
                asyncio.run(launcher.run(spec, stop=Stop(), on_line=lambda line: print(line, flush=True)))
            except KeyboardInterrupt:
                print('interrupted')
        """
        platform = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
        assert platform.stdout is not None
        assert platform.stdout.readline() == "up\n"
        return platform

    async def test_reaper_finds_what_a_killed_platform_left(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        spec = make_spec(WAIT_FOREVER)
        with self.start_platform(launcher, spec) as platform:
            assert await launcher.reap(lambda job_id: False) == []  # the platform lives
            platform.kill()
        assert self.left_over(spec.job_id) != []
        assert spec.job_id in await launcher.reap(lambda job_id: True)
        eventually(lambda: self.left_over(spec.job_id) == [])
        assert await launcher.reap(lambda job_id: False) == []

    def test_two_interrupts_leave_nothing(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        spec = make_spec(WAIT_FOREVER)
        with self.start_platform(launcher, spec) as platform:
            platform.send_signal(signal.SIGINT)
            platform.send_signal(signal.SIGINT)
            assert platform.wait(LIMIT_S) == 0
            assert platform.stdout is not None
            assert platform.stdout.read() == "interrupted\n"
        assert self.left_over(spec.job_id) == []

    async def test_reaper_leaves_the_living_alone(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        stop, up = Stop(), asyncio.Event()
        running = asyncio.create_task(launcher.run(make_spec(WAIT_FOREVER), stop=stop, on_line=lambda line: up.set()))
        await asyncio.wait_for(up.wait(), LIMIT_S)
        assert await launcher.reap(lambda job_id: False) == []
        assert not running.done()
        stop.set()
        with pytest.raises(OperatorCancelled):
            await running


class TestProcess(LauncherContract):
    python = sys.executable
    added_variables: ClassVar[set[str]] = {
        *("PATH", "LANG", "HOME", "TMPDIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", MARK)
    }

    @pytest.fixture
    def launcher(self, tmp_path: Path) -> Launcher:
        self.state_dir = tmp_path / "state"
        return ProcessLauncher(self.state_dir)

    def left_over(self, job_id: str) -> list[object]:
        found: list[object] = list(self.state_dir.glob("*"))
        return [*found, *processes_of(job_id)]

    def make_it_vanish(self, job_id: str) -> None:
        operator = min(processes_of(job_id), key=lambda process: process.create_time())
        supervisor = operator.parent()
        assert supervisor is not None
        supervisor.kill()

    def launcher_source(self, launcher: Launcher) -> str:
        return f"ProcessLauncher({self.state_dir!r})"


@pytest.mark.docker
class TestDocker(LauncherContract):
    added_variables: ClassVar[set[str]] = {"PATH", "HOSTNAME", "HOME", "NVIDIA_VISIBLE_DEVICES"}

    @pytest.fixture
    def launcher(self, docker_engine: str, base_image: str) -> Iterator[Launcher]:
        self.image = base_image
        launcher = DockerLauncher(docker_engine)
        self.api = docker.APIClient(base_url=docker_engine)
        with contextlib.closing(self.api), contextlib.closing(launcher.api):
            yield launcher

    def left_over(self, job_id: str) -> list[object]:
        return list(self.api.containers(all=True, filters={"label": f"{JOB_LABEL}={job_id}"}))

    def make_it_vanish(self, job_id: str) -> None:
        (container,) = self.api.containers(filters={"label": f"{JOB_LABEL}={job_id}"})
        self.api.remove_container(container["Id"], force=True)

    def launcher_source(self, launcher: Launcher) -> str:
        assert isinstance(launcher, DockerLauncher)
        return f"DockerLauncher({launcher.base_url!r})"


def processes_of(job_id: str) -> list[psutil.Process]:
    """Processes whose environment names that job, zombies left out."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("CLARA_JOB_ID") == job_id:
                found.append(process)
    return found


def peak_kib() -> int:
    """Largest resident size of this process since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
