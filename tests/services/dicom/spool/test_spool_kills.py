"""Killed at any moment, a writer leaves whole what it acknowledged, and nothing that a sweep cannot clear away."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from services.dicom.spool.spooled import everything, files, stored

from clara_flow.services.dicom.journal_entries import Opened
from clara_flow.services.dicom.spool import Spool

SCRIPT = Path(__file__).with_name("receiving.py")
TESTS = SCRIPT.parents[3]
KILLS = 10  # of each kind


def acknowledged_before_death(folder: Path, fsync: str, dice: random.Random) -> dict[str, str]:
    """Run a receiver, kill it after it acknowledged some; what it had acknowledged by then: UID -> digest."""
    with subprocess.Popen(
        [sys.executable, SCRIPT, folder, fsync],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
    ) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(dice.randrange(1, 60))]
        pause = threading.Event()
        pause.wait(dice.random() / 50)  # so that it dies anywhere between two acknowledgements
        child.kill()
        lines += child.stdout.readlines()
    assert lines[0], "the receiver ended by itself"
    return dict(line.decode().split() for line in lines if line.endswith(b"\n"))


@pytest.mark.parametrize("fsync", ["fsync", "without"])
def test_what_was_acknowledged_is_there_byte_for_byte(tmp_path: Path, fsync: str) -> None:
    spool = Spool(tmp_path / "spool")
    reader = spool.reader()
    dice = random.Random(20 + len(fsync))  # noqa: S311
    acknowledged: dict[str, str] = {}
    unfinished = 0
    for _ in range(KILLS):
        acknowledged |= acknowledged_before_death(spool.root, fsync, dice)
        assert all(map(reader.is_over, reader.names()))
        unfinished += spool.sweep().files
        found = {entry.sop_instance: entry for entry in stored(spool.root)}
        kept = files(spool.root)
        digests = {name: hashlib.sha256(kept[entry.path]).hexdigest() for name, entry in found.items()}
        assert digests.items() >= acknowledged.items()
        assert all(entry.size == len(kept[entry.path]) for entry in found.values())
        assert len(kept) == len(found)  # nothing else is left
    opened = {entry.association for entry in everything(spool.root) if isinstance(entry, Opened)}
    assert {entry.association for entry in everything(spool.root)} == opened
    assert len(acknowledged) > 5 * KILLS
    assert unfinished > 0  # some were killed in the middle of an instance
    for name in reader.names():
        reader.remove(name)
    assert len(files(spool.root)) == len(found)
