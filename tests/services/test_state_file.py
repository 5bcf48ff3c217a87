"""The platform's state as others see it, and the lock that says whether a supervisor lives."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import eventually

from clara_flow.errors import ServiceError, StorageError
from clara_flow.records.owner import process_start
from clara_flow.services.state_file import PlatformState, ServiceStatus, StateFile

HOLD_THE_LOCK = """
import sys
from pathlib import Path
from clara_flow.services.state_file import StateFile
with StateFile(Path(sys.argv[1])).supervising() as mine:
    print(mine, flush=True)
    input()
"""


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    made = StateFile(tmp_path / "data")
    made.prepare()
    return made


def hold_the_lock(file: StateFile) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(file.data_dir)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    return holder


statuses = st.builds(
    ServiceStatus,
    name=st.text(),
    address=st.text(),
    state=st.sampled_from(["starting", "running", "unhealthy", "stopped", "unknown"]),
    external=st.booleans(),
    pid=st.none() | st.integers(),
    message=st.text(),
)


@given(state=st.builds(PlatformState, pid=st.integers(), started=st.text(), services=st.tuples(statuses, statuses)))
def test_what_is_written_is_read(state: PlatformState, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = StateFile(tmp_path_factory.getbasetemp() / "written")
    file.prepare()
    file.write(state)
    assert file.read() == state
    assert [path.name for path in file.folder.iterdir()] == ["state.json"]


def test_only_the_owner_may_read(file: StateFile) -> None:
    file.write(PlatformState())
    for path in (file.data_dir, file.folder, file.path):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", ["", "{", "\0" * 100])
def test_a_torn_file_is_no_state(file: StateFile, content: str) -> None:
    file.path.write_text(content)
    assert file.read() == PlatformState()


def test_a_newer_file_is_refused_before_it_is_touched(file: StateFile) -> None:
    file.path.write_text('{"version": 2, "new": 1}')
    for step in (file.read, file.prepare):
        with pytest.raises(ServiceError, match="is of version 2, this clara-flow knows version 1"):
            step()
    assert file.path.read_text() == '{"version": 2, "new": 1}'


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_users_folder_is_called_that(file: StateFile) -> None:
    file.write(PlatformState())
    with file.supervising():
        pass
    script = """
import os, sys
from pathlib import Path
from clara_flow.errors import StorageError
from clara_flow.services.state_file import StateFile
os.setuid(65534)
for step in (StateFile(Path(sys.argv[1])).read, StateFile(Path(sys.argv[1])).is_supervised):
    try:
        step()
    except StorageError as error:
        print(error)
"""
    for folder in (file.data_dir, *file.data_dir.parents):
        folder.chmod(folder.stat().st_mode | 0o005)
    file.folder.chmod(0o755)
    file.lock_path.chmod(0o600)
    done = subprocess.run(
        [sys.executable, "-c", script, str(file.data_dir)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("belongs to another user") == 2


def test_up_means_every_service_runs() -> None:
    running = ServiceStatus(name="a", address="", state="running")
    assert not PlatformState().is_up
    state = PlatformState(services=(running, ServiceStatus(name="b", address="", state="starting")))
    assert not state.is_up
    assert state.with_service(ServiceStatus(name="b", address="", state="running")).is_up


def test_a_process_is_named_by_its_id_and_its_start() -> None:
    assert PlatformState(pid=os.getpid(), started=process_start(os.getpid())).names_a_process
    assert not PlatformState(pid=os.getpid(), started="another-boot:1").names_a_process
    assert not PlatformState().names_a_process


def test_the_lock_tells_of_a_supervisor_until_it_dies(file: StateFile) -> None:
    assert not file.is_supervised()
    holder = hold_the_lock(file)
    assert file.is_supervised()
    with file.supervising(patience_s=0) as mine:
        assert not mine
    holder.kill()
    holder.communicate()
    assert not file.is_supervised()
    with file.supervising(patience_s=0) as mine:
        assert mine


def test_a_supervisor_that_said_its_name_is_not_waited_for(file: StateFile) -> None:
    holder = hold_the_lock(file)
    try:
        file.write(PlatformState(pid=holder.pid, started=process_start(holder.pid)))
        with file.supervising() as mine:
            assert not mine
    finally:
        holder.communicate("\n")


def test_whoever_only_clears_away_is_waited_for(file: StateFile) -> None:
    holder = hold_the_lock(file)
    got = threading.Event()

    def wait() -> None:
        with file.supervising() as mine:
            assert mine
            got.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not got.is_set()
    holder.communicate("\n")
    eventually(got.is_set)
    waiting.join()


def test_a_glance_at_the_lock_never_keeps_a_supervisor_from_it(file: StateFile) -> None:
    enough = threading.Event()

    def glance() -> None:
        while not enough.is_set():
            file.is_supervised()

    glances = [threading.Thread(target=glance) for _ in range(3)]
    for thread in glances:
        thread.start()
    taken = []
    for _ in range(20):
        with file.supervising(patience_s=10) as mine:
            taken.append(mine)
    enough.set()
    for thread in glances:
        thread.join()
    assert taken == [True] * 20


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Not a directory"):
        StateFile(tmp_path / "file" / "data").prepare()
    assert not StateFile(tmp_path / "file" / "data").is_supervised()
    assert StateFile(tmp_path / "file" / "data").read() == PlatformState()
