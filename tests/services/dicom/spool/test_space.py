"""How much of the disk stays free: the larger of what the watermark and the reserve say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from clara_flow.errors import StorageError
from clara_flow.services.dicom.space import SpaceCheck

GIB = 2**30


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Set what the disk says: free and total, GiB."""

    def says(free: int, total: int) -> None:
        answer = SimpleNamespace(f_bavail=free * GIB // 4096, f_blocks=total * GIB // 4096, f_frsize=4096)
        monkeypatch.setattr(os, "statvfs", lambda path: answer)

    return says


@pytest.mark.parametrize(
    ("free", "total", "is_short"),
    [
        (100, 100, False),
        (16, 100, False),
        (15, 100, True),  # free has to be more than reserved
        (6, 20, False),
        (5, 20, True),  # 15 per cent are 3 GiB: the reserve is larger
        (0, 20, True),
        (0, 0, True),
    ],
)
def test_short(disk: Callable[[int, int], None], free: int, total: int, is_short: bool) -> None:
    disk(free, total)
    assert SpaceCheck(Path("/spool"), watermark_percent=85, reserve_mib=5 * 1024).is_short() is is_short


def test_a_disk_that_grows_is_seen(disk: Callable[[int, int], None]) -> None:
    check = SpaceCheck(Path("/spool"), watermark_percent=85, reserve_mib=0)
    disk(20, 100)
    assert (check.is_short(), check.reserved_bytes) == (False, 15 * GIB)
    disk(20, 200)
    assert (check.is_short(), check.reserved_bytes) == (True, 30 * GIB)


def test_all_of_the_disk_may_be_used(disk: Callable[[int, int], None]) -> None:
    disk(1, 100)
    assert not SpaceCheck(Path("/spool"), watermark_percent=100, reserve_mib=0).is_short()
    disk(0, 100)
    assert SpaceCheck(Path("/spool"), watermark_percent=100, reserve_mib=0).is_short()


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    there = SpaceCheck(tmp_path, 85, 0)
    assert SpaceCheck(tmp_path / "a" / "b", 85, 0).reserved_bytes == there.reserved_bytes


def test_a_disk_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "statvfs", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        SpaceCheck(tmp_path, 85, 0).is_short()
