"""Processes of ours end when they are asked to, however often, and whoever started them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import eventually

from clara_flow.services import own_process
from clara_flow.services.dicom_service import LISTENER_PROGRAM, DicomService
from clara_flow.settings import load_settings

# Two signals in a row, while the main thread has the event's lock.
PROGRAM = """
import os, signal, threading
from clara_flow.services.endings import on_end
stop = threading.Event()
on_end(stop.set)
with stop._cond:
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    print("told", flush=True)
print("ended" if stop.wait(20) else "waited in vain")
"""


def test_signals_that_come_at_the_worst_moment_end_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["told", "ended"]


def test_a_helper_whose_program_is_gone_is_ended_by_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_process, "STOP_GRACE_S", 0.5)
    service = DicomService(load_settings(data_dir=tmp_path))
    service.folder.mkdir(parents=True)
    helper = subprocess.Popen(
        [sys.executable, "-S", "-c", "input()", LISTENER_PROGRAM], cwd=service.folder, stdin=subprocess.PIPE
    )
    try:
        eventually(lambda: service.processes(with_helpers=True))
        assert service.end()
        assert helper.wait(5) == -signal.SIGKILL
    finally:
        helper.kill()
        helper.communicate()
