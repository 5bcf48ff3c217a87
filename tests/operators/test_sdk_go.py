"""An operator that is started early: it prepares, waits without polling, and works when it is told to."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import eventually

from clara_flow.operators.sdk import DriverError
from clara_flow.operators.sdk.go import wait_for_go

OPERATOR = """
import os
from pathlib import Path
from clara_flow.operators.sdk import Driver

def prepare(driver):
    print("preparing", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)

def execute(driver, payload):
    read = (Path(payload.input_entries[0].path) / "volume").read_text()
    print("executing", read, os.environ["CUDA_VISIBLE_DEVICES"], os.environ["NVIDIA_VISIBLE_DEVICES"], flush=True)

def cleanup(driver):
    print("cleaning", flush=True)

with Driver(execute, prepare, cleanup):
    pass
"""


class Early:
    """A platform's end of an operator that was started early."""

    def __init__(self, folder: Path) -> None:
        self.input, self.go = folder / "in", folder / "go"
        os.mkfifo(self.go)
        self.writer = os.open(self.go, os.O_RDWR)
        manifest = folder / "io.json"
        manifest.write_text(
            json.dumps(
                {
                    "job_id": str(uuid.uuid4()),
                    "stage": "liver",
                    "inputs": [{"name": "volume", "from": "reader", "path": str(self.input)}],
                    "outputs": [],
                    "go": str(self.go),
                }
            )
        )
        environment = {**os.environ, "CLARA_IO_MANIFEST": str(manifest), "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-c", OPERATOR], env=environment, stdout=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []

    def read_until(self, word: str) -> None:
        """Read its log up to a line with that word."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())
            if word in line:
                return
        raise AssertionError(f"no {word!r} in {self.lines}")

    def say(self, text: str) -> None:
        os.write(self.writer, text.encode())

    def end(self) -> int:
        """Read the rest of the log; returns the exit code."""
        assert self.process.stdout is not None
        self.lines += self.process.stdout.read().splitlines()
        return self.process.wait(10)


@pytest.fixture
def early(tmp_path: Path) -> Iterator[Early]:
    started = Early(tmp_path)
    yield started
    started.process.kill()
    started.process.communicate()
    with contextlib.suppress(OSError):  # a test has closed it
        os.close(started.writer)


def test_it_prepares_waits_and_sees_its_own_gpus(early: Early) -> None:
    early.read_until("waits for its inputs")
    assert "preparing" in early.lines  # and no GPU with it
    before = Path(f"/proc/{early.process.pid}/stat").read_text().split()[13:15]
    assert not any("executing" in line for line in early.lines)
    early.input.mkdir()
    (early.input / "volume").write_text("voxels")
    eventually(lambda: Path(f"/proc/{early.process.pid}/stat").read_text().split()[2] == "S")
    assert Path(f"/proc/{early.process.pid}/stat").read_text().split()[13:15] == before  # not a tick of CPU
    early.say('{"gpus": ["GPU-1", ')
    early.say('"GPU-2"]}\n')
    assert early.end() == 0
    assert "executing voxels GPU-1,GPU-2 GPU-1,GPU-2" in early.lines


def test_the_go_may_come_before_it_is_waited_for(early: Early) -> None:
    early.input.mkdir()
    (early.input / "volume").write_text("voxels")
    early.say('{"gpus": []}\n')
    assert early.end() == 0
    assert "executing voxels" in [line.strip() for line in early.lines]


def test_it_ends_with_the_platform(early: Early) -> None:
    early.read_until("waits for its inputs")
    os.close(early.writer)
    assert early.end() == 2
    assert any("the platform ended before it gave the go" in line for line in early.lines)
    assert early.lines[-1] == "cleaning"


def test_it_ends_when_it_is_asked_to(early: Early) -> None:
    early.read_until("waits for its inputs")
    early.process.send_signal(signal.SIGTERM)
    assert early.end() == 143
    assert early.lines[-1] == "cleaning"


def test_an_input_that_did_not_come_is_named(early: Early) -> None:
    early.say('{"gpus": []}\n')
    assert early.end() == 2
    assert any(f"input 'reader.volume': there is no folder {early.input}" in line for line in early.lines)


@pytest.mark.parametrize("text", ["go\n", "[]\n", "{}\n", '{"gpus": 1}\n', '{"gpus": [1]}\n'])
def test_what_is_no_go_is_an_error(text: str, tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    writer = os.open(go, os.O_RDWR)
    os.write(writer, text.encode())
    with pytest.raises(DriverError, match="cannot be understood"):
        wait_for_go(go)
    os.close(writer)


def test_a_platform_that_never_was_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="cannot be read: No such file"):
        wait_for_go(tmp_path / "go")
    os.mkfifo(tmp_path / "go")
    with pytest.raises(DriverError, match="platform ended"):
        wait_for_go(tmp_path / "go")
