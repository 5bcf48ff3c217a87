"""`import clara`: published operators run unchanged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import clara_flow.operators.sdk

SHIM = Path(clara_flow.operators.sdk.__file__).parent / "clara_shim"

OPERATOR = """
import logging
import os

import clara
from clara import Driver, Error, Payload
from clara.logging import perf_logger

logger = logging.getLogger(__name__)


def execute(driver, payload):
    assert isinstance(payload, Payload) and clara.logging.perf_logger is perf_logger
    perf_logger.stage_started("Setup", "reading the study")
    for entry in payload.input_entries:
        print("input", entry.name or "-", os.listdir(entry.path))
    perf_logger.stage_ended("Setup", "study read")
    with open(os.path.join(payload.output_entries[0].path, "done.txt"), "w") as file:
        file.write(str(driver.job_id))
    return OUTCOME


if __name__ == "__main__":
    driver = Driver(execute_handler=execute)
    driver.start()
    driver.wait_for_completion()
"""


def run(folder: Path, outcome: str) -> subprocess.CompletedProcess[str]:
    (folder / "main.py").write_text(OPERATOR.replace("OUTCOME", outcome))
    (folder / "in").mkdir()
    (folder / "in" / "slice.dcm").touch()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(SHIM),
        "NVIDIA_CLARA_INPUT": str(folder / "in"),
        "NVIDIA_CLARA_OUTPUT": str(folder / "out"),
        "NVIDIA_CLARA_NOSYNCLOCK": "TRUE",
        "CLARA_JOB_ID": "6f1c2b1e-7a53-4f0e-9a5e-0a4b6a0a9f11",
    }
    return subprocess.run(
        [sys.executable, "main.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_published_operator_runs_on_the_shim(tmp_path: Path) -> None:
    done = run(tmp_path, "True")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "input - ['slice.dcm']" in done.stdout
    assert "reading the study perf=started name=Setup" in done.stdout
    assert "study read perf=ended name=Setup seconds=" in done.stdout
    assert (tmp_path / "out" / "done.txt").read_text() == "6f1c2b1e-7a53-4f0e-9a5e-0a4b6a0a9f11"


def test_a_published_operator_that_fails_ends_with_1(tmp_path: Path) -> None:
    assert run(tmp_path, "False").returncode == 1
