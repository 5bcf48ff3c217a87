"""A full disk refuses instances whole, and takes them again when there is room."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from services.dicom.spool.spooled import WHO, everything, facts, files, stored
from small_disk import MIB, fill, small_disk
from waiting import eventually

from clara_flow.errors import StorageError
from clara_flow.services.dicom.journal_entries import Closed
from clara_flow.services.dicom.space import SpaceCheck
from clara_flow.services.dicom.spool import Spool

INSTANCE = os.urandom(300_000)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """On a disk of 8 MiB."""
    with small_disk(tmp_path / "small") as folder:
        yield Spool(folder)


def test_every_instance_is_taken_whole_or_refused_whole(spool: Spool) -> None:
    writer = spool.writer(True)
    acknowledged: set[str] = set()
    refused: list[StorageError] = []

    def receive(number: int) -> None:
        association = writer.open_association(**WHO)
        for instance in range(15):
            name = f"1.{number}.{instance}"
            try:
                with writer.begin(association) as incoming:
                    for at in range(0, len(INSTANCE), 65536):
                        incoming.write(memoryview(INSTANCE)[at : at + 65536])
                    incoming.commit(facts(name))
            except StorageError as error:
                refused.append(error)
            else:
                acknowledged.add(name)
        writer.close_association(association, "released")

    threads = [threading.Thread(target=receive, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert 15 <= len(acknowledged) <= 8 * MIB // len(INSTANCE)
    assert len(refused) == 60 - len(acknowledged)
    assert all("is full" in str(error) and error.free_bytes < 8 * MIB for error in refused)
    assert {entry.sop_instance for entry in stored(spool.root)} == acknowledged
    assert sorted(files(spool.root)) == sorted(entry.path for entry in stored(spool.root))
    assert set(files(spool.root).values()) == {INSTANCE}
    writer.close()


def test_no_room_for_a_line_is_no_room_for_the_instance(spool: Spool) -> None:
    writer = spool.writer(True)
    association = writer.open_association(**WHO)
    [journal] = (spool.root / "journals").iterdir()
    while journal.stat().st_size % 4096 < 3000:  # the next line needs another page
        with writer.begin(association) as incoming:
            incoming.commit(facts())
    before = journal.read_bytes()
    ballast = fill(spool.root)

    def receive() -> None:
        for number in range(100):
            writer.begin(association).commit(facts(f"1.{number}"))

    with pytest.raises(StorageError, match="is full"):
        receive()
    lines = journal.read_bytes()
    assert lines.startswith(before)
    assert lines.endswith(b"}\n")
    assert len(stored(spool.root)) == len(files(spool.root))
    ballast.unlink()
    with writer.begin(association) as incoming:
        incoming.commit(facts("1.2.4"))
    assert stored(spool.root)[-1].sop_instance == "1.2.4"
    writer.close()


def test_an_association_can_end_on_a_full_disk(spool: Spool) -> None:
    writer = spool.writer(True)
    associations = [writer.open_association(**WHO) for _ in range(40)]
    ballast = fill(spool.root)
    for association in associations:
        writer.close_association(association, "released")
    ballast.unlink()
    eventually(lambda: sum(isinstance(entry, Closed) for entry in everything(spool.root)) == 40)
    writer.close()


def test_space_is_looked_at_anew_each_time(spool: Spool) -> None:
    check = SpaceCheck(spool.root, watermark_percent=50, reserve_mib=1)
    assert not check.is_short()
    ballast = fill(spool.root, leave=4 * MIB)
    assert check.is_short()  # as much as has to stay free is too little
    ballast.unlink()
    assert not check.is_short()
    assert check.free_bytes == 8 * MIB
    assert check.reserved_bytes == 4 * MIB
