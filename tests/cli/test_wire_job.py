"""What the demo sends a study with."""

from __future__ import annotations

from pathlib import Path

import pytest

from clara_flow.cli.wire_job import dcmtk


def program(folder: Path, name: str) -> None:
    """Something that can be run."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def test_pynetdicoms_storescu_is_not_taken_for_dcmtks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment, system = tmp_path / "venv", tmp_path / "bin"
    monkeypatch.setenv("PATH", f"{environment}:{system}")
    program(environment, "storescu")
    assert dcmtk("storescu") == ""
    program(system, "dcmdump")
    assert dcmtk("storescu") == ""
    program(system, "storescu")
    assert dcmtk("storescu") == str(system / "storescu")
