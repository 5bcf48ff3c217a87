"""What only the process launcher has to show: kernels without Landlock, and supervisors that are killed, too."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import uuid
from pathlib import Path

import psutil
import pytest
from waiting import eventually

from clara_flow.errors import OperatorError, OperatorLost, StorageError
from clara_flow.infra.launchers import supervise, supervisors
from clara_flow.infra.launchers.base import Stop
from clara_flow.infra.launchers.owner import Owner
from clara_flow.infra.launchers.process import MARK, ProcessLauncher
from clara_flow.infra.launchers.spec import LaunchSpec, Mount
from clara_flow.infra.launchers.supervisors import start_server

WAIT_FOREVER = "import signal; print('up', flush=True); signal.pause()"
DEAD = Owner(Owner.current().place, pid=2**22 + 1, started=1)  # above the kernel's largest process id


def make_spec(tmp_path: Path, code: str, **changes: object) -> LaunchSpec:
    source = tmp_path / "input"
    source.mkdir(exist_ok=True)
    (source / "scan.dcm").write_bytes(b"as it was")
    values: dict[str, object] = {
        "operator": "reader",
        "job_id": str(uuid.uuid4()),
        "image": "none:1",
        "command": (sys.executable, "-u", "-c", code),
        "mounts": (Mount(source=source, target="/input"),),
        "log_path": tmp_path / "reader.log",
    }
    return LaunchSpec(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "code", ["open({0!r}, 'w').write('X')", "import os; os.remove({0!r})", "open({0!r} + '2', 'w')"]
)
async def test_without_landlock_a_changed_input_is_found(tmp_path: Path, code: str) -> None:
    launcher = ProcessLauncher(tmp_path / "state", landlock_abi=0)
    spec = make_spec(tmp_path, code.format(str(tmp_path / "input" / "scan.dcm")))
    with pytest.raises(OperatorError, match="changed its read-only input") as caught:
        await launcher.run(spec, stop=Stop(), on_line=lambda line: None)
    assert str(tmp_path / "input") in str(caught.value)


async def test_without_landlock_a_good_operator_passes(tmp_path: Path) -> None:
    launcher = ProcessLauncher(tmp_path / "state", landlock_abi=0)
    report = await launcher.run(make_spec(tmp_path, "print(1)"), stop=Stop(), on_line=lambda line: None)
    assert report.exit_code == 0


@pytest.mark.skipif(
    supervise.landlock_abi() < supervise.LANDLOCK_SCOPE_ABI, reason="the kernel's Landlock cannot confine signals"
)
async def test_an_operator_cannot_signal_the_platform(tmp_path: Path) -> None:
    lines: list[str] = []
    code = f"import os\ntry: os.kill({os.getpid()}, 0)\nexcept PermissionError: print('refused')"
    spec = make_spec(tmp_path, code)
    await ProcessLauncher(tmp_path / "state").run(spec, stop=Stop(), on_line=lines.append)
    assert lines == ["refused"]


async def test_killed_supervisor_leaves_no_grandchild(tmp_path: Path) -> None:
    """As when the kernel's out-of-memory killer takes the supervisor: its operator dies with it, the rest is found."""
    launcher = ProcessLauncher(tmp_path / "state")
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WAIT_FOREVER!r}], start_new_session=True)"
    family: list[psutil.Process] = []

    def kill_supervisor(line: str) -> None:
        (record,) = launcher.state_dir.glob("*.json")
        family.extend(sorted(marked(record.stem), key=lambda process: process.create_time()))
        family[0].kill()

    with pytest.raises(OperatorLost, match="its supervisor was killed"):
        await launcher.run(make_spec(tmp_path, code), stop=Stop(), on_line=kill_supervisor)
    assert len(family) == 3
    eventually(lambda: not any(process.is_running() for process in family))
    assert list(launcher.state_dir.iterdir()) == []


async def test_a_killed_fork_server_is_replaced_and_takes_nothing_with_it(tmp_path: Path) -> None:
    launcher = ProcessLauncher(tmp_path / "state")
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    lines: list[str] = []
    servers: list[psutil.Process] = []
    start_server()
    warm = fork_server().pid

    def kill_server(line: str) -> None:
        lines.append(line)
        if line == "up":
            servers.append(fork_server())
            servers[0].kill()
            fifo.write_text("on")

    code = f"print('up', flush=True); print(open({str(fifo)!r}).read())"
    await launcher.run(make_spec(tmp_path, code), stop=Stop(), on_line=kill_server)
    assert lines == ["up", "on"]
    assert await launcher.run(make_spec(tmp_path, "print(1)"), stop=Stop(), on_line=lines.append)
    assert lines == ["up", "on", "1"]
    assert servers[0].pid == warm != fork_server().pid


async def test_a_fork_server_killed_with_an_order_in_its_hands_is_replaced(tmp_path: Path) -> None:
    launcher = ProcessLauncher(tmp_path / "state")
    lines: list[str] = []
    start_server()
    server = fork_server()
    server.suspend()
    running = asyncio.create_task(launcher.run(make_spec(tmp_path, "print(1)"), stop=Stop(), on_line=lines.append))
    await asyncio.to_thread(eventually, has_an_unread_order)
    server.kill()
    await running
    assert lines == ["1"]


async def test_operators_start_beside_each_other(tmp_path: Path) -> None:
    """More at once than a socket takes orders, with an environment that no socket takes in one piece."""
    launcher = ProcessLauncher(tmp_path / "state")
    environment = {f"V{number}": "x" * 100_000 for number in range(5)}
    specs = [
        make_spec(tmp_path, f"print({number})", environment=environment, log_path=tmp_path / f"{number}.log")
        for number in range(12)
    ]
    lines: list[str] = []
    await asyncio.gather(*(launcher.run(spec, stop=Stop(), on_line=lines.append) for spec in specs))
    assert sorted(map(int, lines)) == list(range(12))
    assert list(launcher.state_dir.iterdir()) == []


def test_the_fork_server_ends_with_its_owner_and_not_with_the_owners_children(tmp_path: Path) -> None:
    """A forked child of the owner has the server's socket too; it must neither use nor keep it."""
    code = f"""
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_process_launcher import Stop, make_spec, fork_server
from clara_flow.infra.launchers.process import ProcessLauncher
def run():
    launcher = ProcessLauncher(Path({str(tmp_path / "state")!r}))
    asyncio.run(launcher.run(make_spec(Path({str(tmp_path)!r}), "print(1)"), stop=Stop(), on_line=lambda line: None))
    return fork_server().pid
first = run()
child = os.fork()
if child == 0:
    print(os.getpid(), run(), flush=True)
    signal.pause()
print(os.getpid(), first, flush=True)
signal.pause()
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert owner.stdout is not None
    told = dict(tuple(map(int, owner.stdout.readline().split())) for _ in range(2))
    child = next(pid for pid in told if pid != owner.pid)
    assert told[child] != told[owner.pid]
    owner.kill()
    owner.wait()
    eventually(lambda: not psutil.pid_exists(told[owner.pid]))
    assert psutil.pid_exists(told[child])
    os.kill(child, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(told[child]))
    owner.stdout.close()


async def test_reaper_finds_orphans_by_their_mark(tmp_path: Path) -> None:
    """Platform and supervisor were both killed: what still runs is known by its environment."""
    orphan, stranger = (start_marked(mark) for mark in ("feed", "beef"))
    try:
        (tmp_path / "feed.json").write_text(json.dumps({"job_id": "j", "owner": str(DEAD)}))
        assert await ProcessLauncher(tmp_path).reap(lambda job_id: True) == ["j"]
        assert orphan.wait(10) == -signal.SIGKILL
        assert stranger.poll() is None
        assert list(tmp_path.iterdir()) == []
    finally:
        for process in (orphan, stranger):
            process.kill()
            process.wait()


async def test_reaper_never_kills_by_number_alone(tmp_path: Path) -> None:
    """A record whose processes are long gone: nothing but the record goes."""
    launcher = ProcessLauncher(tmp_path)
    (tmp_path / "feed.json").write_text(json.dumps({"job_id": "j", "owner": str(DEAD)}))
    (tmp_path / "feed").mkdir()
    assert await launcher.reap(lambda job_id: True) == ["j"]
    assert list(tmp_path.iterdir()) == []


async def test_reaper_removes_a_record_that_a_power_loss_emptied(tmp_path: Path) -> None:
    (tmp_path / "feed.json").write_text("")
    (tmp_path / "feed").mkdir()
    assert await ProcessLauncher(tmp_path).reap(lambda job_id: True) == []
    assert list(tmp_path.iterdir()) == []


async def test_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be made"):
        await ProcessLauncher(tmp_path / "file" / "state").check()


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def fork_server() -> psutil.Process:
    """The one of this process."""
    (server,) = [child for child in psutil.Process().children() if "supervise.serve()" in " ".join(child.cmdline())]
    return server


def has_an_unread_order() -> bool:
    """Whether the fork server has not read all that it was sent (SIOCOUTQ of unix(7))."""
    server = supervisors._server
    assert server is not None
    return any(fcntl.ioctl(server.orders, termios.TIOCOUTQ, bytes(4)))


def start_marked(mark: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WAIT_FOREVER], env={MARK: mark}, stdout=subprocess.DEVNULL)
