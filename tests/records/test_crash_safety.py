"""Nothing half is ever taken for whole, wherever a process ends: killed, interrupted, or out of disk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clara_flow.errors import StorageError
from clara_flow.records.payload_store import PayloadStore

SCRIPT = Path(__file__).with_name("crash_points.py")


@pytest.mark.parametrize(("how", "at_least"), [("kill", 150), ("interrupt", 30), ("full", 30)])
def test_at_every_file_operation(how: str, at_least: int, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, how, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= at_least
    assert not any((tmp_path / "store").glob("*/.*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 20 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small disk, and not everywhere")
    yield folder
    subprocess.run(["/bin/umount", str(folder)], check=True)


def test_an_input_too_large_for_the_disk_is_refused_before_the_first_byte(small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    with (tmp_path / "study" / "large").open("wb") as file:
        file.truncate(30 * 2**20)
    store = PayloadStore(small_disk / "payloads")
    progress: list[int] = []
    with pytest.raises(StorageError, match=r"is full: 46\.0 MiB are needed and 20\.0 MiB are free") as caught:
        store.stage(tmp_path / "study", lambda done, total: progress.append(done))
    assert (caught.value.needed_bytes, progress) == (46 * 2**20, [])
    assert caught.value.free_bytes <= 20 * 2**20
    assert list(store.root.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way(small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "a").write_bytes(bytes(2 * 2**20))
    (tmp_path / "study" / "b").write_bytes(bytes(2 * 2**20))
    store = PayloadStore(small_disk / "payloads")

    def fill(done: int, total: int) -> None:
        if not (small_disk / "other").exists():
            with (small_disk / "other").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, 18 * 2**20)

    with pytest.raises(StorageError, match=r"is full: 4\.0 MiB are needed"):
        store.stage(tmp_path / "study", fill)
    assert list(store.root.iterdir()) == []


def test_outputs_on_a_full_disk_stay_unsealed(small_disk: Path) -> None:
    store = PayloadStore(small_disk / "payloads")
    folder = store.create()
    partial = folder.open_outputs("seg")
    with (partial / "mask").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize)
    with pytest.raises(StorageError, match="is full"):
        folder.seal_outputs("seg", "work")
    assert folder.sealed("seg") is None
    folder.discard_partial("seg")
    (folder.open_outputs("seg", attempt=2) / "mask").write_bytes(b"small")
    folder.seal_outputs("seg", "work", attempt=2)
    assert folder.verify("seg") == []
