"""Processes of ours end when they are asked to, however often, and whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import eventually

from clara_flow.services import own_process
from clara_flow.services.dicom_service import LISTENER_PROGRAM, DicomService
from clara_flow.settings import load_settings

# A shower of signals, most of them while the main thread is inside the event or the handler.
PROGRAM = """
import threading
from clara_flow.services.endings import on_end
stop, count = threading.Event(), 0
on_end(stop.set)
print("ready", flush=True)
while not stop.wait(0.0001):
    pass
while (line := input()) != "end":
    stop.set()
print("ended", flush=True)
"""


def test_a_shower_of_signals_ends_it_once() -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        for _ in range(2000):
            os.kill(process.pid, signal.SIGTERM)
            os.kill(process.pid, signal.SIGINT)
            process.stdin.write(b"\n")
        process.stdin.write(b"end\n")
        assert process.communicate(timeout=30)[0] == b"ended\n"
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


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
