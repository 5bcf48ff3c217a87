"""FastIO volumes: their size holds, they leave nothing, nobody takes a living one away."""

from __future__ import annotations

import collections
import mmap
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import APIClient
from docker.types import Mount

from clara_flow.errors import StorageError
from clara_flow.infra.fastio.volumes import FastIOVolumes, default_root
from clara_flow.infra.launchers.owner import Owner

MIB = 2**20
KILLS = Path(__file__).with_name("volume_kills.py")
NEEDS_MOUNT = "needs an account that may mount"
GONE = Owner(Owner.current().place, 2**22 + 1, 1)  # above the largest process id there can be
ELSEWHERE = Owner("another machine", 1, 1)


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder in shared memory, as volumes have it; nothing may be left there."""
    folder = Path(f"/dev/shm/clara-flow-test-{uuid.uuid4().hex}")
    yield folder
    assert not folder.exists() or list(folder.iterdir()) == []
    assert str(folder) not in Path("/proc/self/mounts").read_text()
    if folder.exists():
        folder.rmdir()


@pytest.fixture(params=["mount", "folder"])
def store(request: pytest.FixtureRequest, root: Path) -> FastIOVolumes:
    """Volumes of both kinds, where this account can make both."""
    store = FastIOVolumes(root, may_mount=request.param == "mount")
    if request.param == "mount":
        needs_mount(store)
    return store


def needs_mount(store: FastIOVolumes) -> None:
    probe = store.create("probe", 1)
    probe.remove()
    if not probe.hard:
        pytest.skip(NEEDS_MOUNT)


def test_a_volume_is_private_empty_and_known_by_its_job(store: FastIOVolumes) -> None:
    job = uuid.uuid4()
    volume = store.create(job, 8)
    assert volume.hard == store.may_mount
    assert str(job) in volume.path.name
    assert volume.path.stat().st_mode & 0o777 == 0o700
    assert list(volume.path.iterdir()) == []
    assert volume.used_bytes() <= 4096
    assert store.open(job) == volume
    volume.remove()
    with pytest.raises(StorageError, match=f"job {job} has no FastIO volume"):
        store.open(job)


def test_use_is_counted_in_pages_once(store: FastIOVolumes) -> None:
    volume = store.create("job", 8)
    with (volume.path / "block").open("wb") as file:
        os.truncate(file.fileno(), MIB)  # nothing is in it yet
        before = volume.used_bytes()
        file.write(b"x" * 5000)
    os.link(volume.path / "block", volume.path / "same")
    assert volume.used_bytes() - before == 8192
    assert store.used_bytes() == volume.used_bytes()
    assert store.total_mib() == 8
    volume.remove()
    assert (volume.used_bytes(), store.used_bytes(), store.total_mib()) == (0, 0, 0)


def test_removing_is_safe_twice_and_takes_what_operators_left(store: FastIOVolumes) -> None:
    volume = store.create("job", 8)
    (volume.path / "closed").mkdir()
    (volume.path / "closed" / "file").write_bytes(b"x")
    (volume.path / "closed").chmod(0o000)
    (volume.path / "link").symlink_to("/etc/passwd")
    (volume.path / "folder-link").symlink_to("/etc")
    volume.remove()
    volume.remove()
    assert Path("/etc/passwd").exists()
    assert not volume.path.exists()


def test_a_hard_volume_ends_where_its_size_ends(root: Path) -> None:
    store = FastIOVolumes(root)
    needs_mount(store)
    volume = store.create("job", 2)
    assert not volume.is_full()
    with pytest.raises(OSError, match="No space left"):
        (volume.path / "block").write_bytes(b"x" * 3 * MIB)
    assert volume.used_bytes() <= 2 * MIB
    assert volume.is_full()
    assert not volume.is_overfull()
    volume.remove()


def test_a_hard_volume_has_no_devices_programs_or_endless_names(root: Path) -> None:
    store = FastIOVolumes(root)
    needs_mount(store)
    volume = store.create("job", 1)
    program = volume.path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    with pytest.raises(PermissionError):
        subprocess.run([program], check=True)
    with pytest.raises(OSError, match="No space left"):  # each file costs kernel memory, also an empty one
        collections.deque(map(Path.touch, (volume.path / str(number) for number in range(10_000))))
    volume.remove()


def test_a_soft_volume_tells_that_it_is_overfull(root: Path) -> None:
    volume = FastIOVolumes(root, may_mount=False).create("job", 1)
    (volume.path / "folder").mkdir()
    (volume.path / "folder" / "block").write_bytes(b"x" * MIB)
    assert (volume.is_full(), volume.is_overfull()) == (True, False)
    (volume.path / "more").write_bytes(b"x")
    assert volume.is_overfull()
    volume.remove()
    assert not volume.is_overfull()


def test_mapped_memory_outlives_the_volume_only_as_long_as_it_is_mapped(store: FastIOVolumes) -> None:
    volume = store.create("job", 8)
    (volume.path / "block").write_bytes(b"x" * MIB)
    with (volume.path / "block").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as block:
        volume.remove()
        assert block[-1:] == b"x"
    assert not volume.path.exists()


def test_no_room_is_told_in_sizes_and_leaves_nothing(store: FastIOVolumes) -> None:
    neighbour = store.create("neighbour", 100)
    with pytest.raises(StorageError, match="100000000 MiB") as raised:
        store.create("job", 10**8)
    assert "other jobs' volumes may take 100 MiB" in str(raised.value)
    room_mib = raised.value.room_mib
    assert 0 < room_mib < 10**8
    with pytest.raises(StorageError, match="no room"):  # what neighbours may still take is theirs
        store.create("job", room_mib + 100)
    assert store.total_mib() == 100
    neighbour.remove()


def test_many_at_once_never_get_more_than_there_is(root: Path) -> None:
    store = FastIOVolumes(root, may_mount=False)
    state = os.statvfs("/dev/shm")
    half_mib = state.f_bavail * state.f_frsize // MIB // 2 - 1
    made, refused = [], []
    start = threading.Barrier(6)

    def create(number: int) -> None:
        start.wait()
        try:
            made.append(store.create(f"job-{number}", half_mib))
        except StorageError as error:
            refused.append(error)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) <= 2
    assert len(made) + len(refused) == 6
    for volume in made:
        volume.remove()


def test_the_reaper_takes_what_dead_owners_left_and_nothing_else(store: FastIOVolumes) -> None:
    own = store.create("own", 1)
    store.create("orphan", 1, GONE)
    far = store.create("far", 1, ELSEWHERE)
    assert store.reap(lambda job_id: True) == ["orphan"]
    assert store.reap(lambda job_id: True) == []
    assert store.open("own") == own
    assert store.reap(lambda job_id: job_id == "own") == ["far"]
    assert not far.path.exists()
    own.remove()


def test_two_volumes_of_one_job_are_told_apart(store: FastIOVolumes) -> None:
    """The first runner died with its volume; the job goes on with a new one."""
    store.create("job", 1, GONE)
    second = store.create("job", 1)
    assert store.reap(lambda job_id: True) == ["job"]
    assert store.open("job") == second
    second.remove()


def test_a_volume_without_its_record_is_its_jobs(store: FastIOVolumes) -> None:
    volume = store.create("job", 1)
    (store.root / f"{volume.path.name}.json").unlink()
    assert store.reap(lambda job_id: True) == []
    assert store.reap(lambda job_id: False) == ["job"]


def test_nobody_elses_folder_is_used(root: Path) -> None:
    root.mkdir(mode=0o777)
    root.chmod(0o777)
    with pytest.raises(StorageError, match="not a folder of this account's alone"):
        FastIOVolumes(root).create("job", 1)
    root.rmdir()
    root.symlink_to("/etc")
    with pytest.raises(StorageError, match="not a folder of this account's alone"):
        FastIOVolumes(root).create("job", 1)
    root.unlink()
    assert str(os.geteuid()) in default_root().name


def test_where_there_is_no_shared_memory_it_is_told(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    with pytest.raises(StorageError, match="cannot be used: Not a directory"):
        FastIOVolumes(blocker / "root").create("job", 1)
    assert FastIOVolumes(tmp_path / "nothing").reap(lambda job_id: False) == []


@pytest.mark.parametrize("kind", ["mount", "folder"])
def test_whenever_the_maker_is_killed_the_reaper_removes_all(kind: str, root: Path) -> None:
    ended = subprocess.run([sys.executable, KILLS, root, kind], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 40


@pytest.mark.docker
def test_containers_see_the_same_memory(docker_engine: str, base_image: str, store: FastIOVolumes) -> None:
    volume = store.create("job", 4)
    (volume.path / "from-host").write_text("host")
    api = APIClient(docker_engine)
    mounts = [Mount("/clara/fastio", str(volume.path), type="bind")]
    script = "cat /clara/fastio/from-host > /clara/fastio/from-container; stat -f -c %T /clara/fastio"
    made = api.create_container(
        base_image, ["sh", "-c", script], host_config=api.create_host_config(mounts=mounts, network_mode="none")
    )
    try:
        api.start(made["Id"])
        assert api.wait(made["Id"])["StatusCode"] == 0
        assert api.logs(made["Id"]).strip() == b"tmpfs"
        assert (volume.path / "from-container").read_text() == "host"
    finally:
        volume.remove()
        api.remove_container(made["Id"], force=True)
        api.close()
