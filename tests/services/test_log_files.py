"""Logs are begun anew under those who write to them, and not a line is lost."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import eventually

from clara_flow.services.log_files import KEPT, rotate, rotate_all

LIMIT = 64 * 2**10
WRITER = """
import os, sys
for number in range(int(sys.argv[2])):
    os.write(1, f"{sys.argv[1]} {number} {'x' * (number % 190)}\\n".encode())
"""


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk, where heads of files can be taken out, and one on a tmpfs, where they become holes."""
    if request.param == "disk":
        yield tmp_path
        return
    memory = Path("/dev/shm") / f"clara-flow-test-{uuid.uuid4().hex}"
    memory.mkdir()
    yield memory
    for path in memory.iterdir():
        path.unlink()
    memory.rmdir()


def pieces(path: Path) -> list[bytes]:
    """What was ever written, the oldest file first, without holes."""
    older = [path.with_name(f"{path.name}.{number}") for number in range(KEPT, 0, -1)]
    return [file.read_bytes().lstrip(b"\0") for file in (*older, path) if file.exists()]


def test_a_small_file_stays_as_it_is(folder: Path) -> None:
    path = folder / "service.log"
    path.write_bytes(b"x" * LIMIT)
    assert not rotate(path, LIMIT)
    assert [entry.name for entry in folder.iterdir()] == ["service.log"]


def test_a_large_one_is_begun_anew_and_older_ones_move_on(folder: Path) -> None:
    path = folder / "service.log"
    for age in range(6):
        with path.open("ab") as file:
            file.write(f"{age}\n".encode() * LIMIT)
        assert rotate_all(folder, LIMIT) == [path]
        assert path.stat().st_blocks * 512 <= 2 * 4096
    names = sorted(entry.name for entry in folder.iterdir())
    assert names == ["service.log", *(f"service.log.{number}" for number in range(1, KEPT + 1))]
    kept = [piece.splitlines()[1] for piece in pieces(path)]
    assert kept == [b"1", b"2", b"3", b"4", b"5"]  # each begins with the end of the one before


def test_each_line_of_many_writers_is_there(folder: Path) -> None:
    path, writers, lines = folder / "service.log", 3, 1500
    with path.open("ab") as log:
        running = [
            subprocess.Popen([sys.executable, "-S", "-c", WRITER, str(name), str(lines)], stdout=log)
            for name in range(writers)
        ]
    kept: list[bytes] = []

    def are_done() -> bool:
        if rotate(path, LIMIT):
            kept.append(path.with_name("service.log.1").read_bytes())
        return all(writer.poll() == 0 for writer in running)

    eventually(are_done, within_s=30, every_s=0.001)
    kept.append(path.read_bytes())
    assert len(kept) > 2
    found: list[bytes] = []
    for piece in kept:
        whole = piece.lstrip(b"\0").splitlines(keepends=True)
        found += [line for line in whole if line.endswith(b"\n")]
    expected = {
        f"{name} {number} {'x' * (number % 190)}\n".encode() for name in range(writers) for number in range(lines)
    }
    assert expected <= set(found)
    fragments = [line for line in found if line not in expected]  # ends of lines that stand whole before
    assert len(fragments) < len(kept)
    whole_lines = [line for line in found if line in expected]
    assert len(whole_lines) == len(expected)


def test_a_crash_between_copy_and_cut_loses_nothing(folder: Path) -> None:
    path = folder / "service.log"
    path.write_bytes(b"line\n" * LIMIT)
    path.with_name("service.log.new").write_bytes(b"half of a copy")
    assert rotate(path, LIMIT)
    assert not path.with_name("service.log.new").exists()
    assert b"".join(pieces(path)).count(b"line\n") >= LIMIT


def test_a_file_without_a_line_end_is_cut_all_the_same(folder: Path) -> None:
    path = folder / "service.log"
    path.write_bytes(b"x" * (4 * LIMIT + 1))
    assert rotate(path, LIMIT)
    assert sum(map(len, pieces(path))) == 4 * LIMIT + 1
