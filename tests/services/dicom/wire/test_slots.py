"""Limits that processes share, and that a process which dies gives back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from waiting import eventually

from clara_flow.services.dicom.wire.slots import Slots

HOLDER = """
import sys, time
from pathlib import Path
from clara_flow.services.dicom.wire.slots import Slots
slots = Slots(Path(sys.argv[1]))
held = [slots.take(5) for _ in range(int(sys.argv[2]))]
print(sum(slot is not None for slot in held), flush=True)
sys.stdin.read()
"""


def test_one_process(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots")
    first, second = slots.take(2), slots.take(2)
    assert first is not None
    assert second is not None
    assert slots.take(2) is None
    third = slots.take(3)  # a limit may be raised
    assert third is not None
    assert slots.held == 3
    first.release()
    first.release()
    assert slots.held == 2
    again = slots.take(2)
    assert again is not None
    first.release()  # it is another's by now
    assert slots.take(2) is None
    slots.close()
    second.release()


def test_several_objects_are_several_holders(tmp_path: Path) -> None:
    one, other = Slots(tmp_path / "slots"), Slots(tmp_path / "slots")
    assert one.take(1) is not None
    assert other.take(1) is None
    one.close()
    assert other.take(1) is not None
    other.close()


def test_a_killed_process_gives_back_what_it_held(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    slots = Slots(path)
    assert slots.take(5) is not None
    command = [sys.executable, "-c", HOLDER, str(path), "5"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "4"
        assert slots.take(5) is None
        holder.kill()
    eventually(lambda: slots.take(5) is not None)
    slots.close()
