"""The benchmarks run, small, in every test run, so that they cannot rot. What they measure is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


NAMES = ["compile_speed", "dicom_speed", "hospital_day", "ledger_decision", "operator_overhead", "pool_speed"]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_reports(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", name, "--smoke", "--results", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / f"{name}.json").read_text())
    assert report["benchmark"] == name
    assert "aim" in report["figures"] or "not_measured" in report["figures"].get("docker", {})
