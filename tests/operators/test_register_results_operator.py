"""Register Results: one record of every file, the same when asked again, and clear refusals."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_flow.operators.register_results.record import RegistrationError, checked_agent, checked_parameters

JOB_ID = "6f1c2b1e-7a53-4f0e-9a5e-0a4b6a0a9f11"


class Stage:
    """A register stage with its folders; `run` calls the operator as the platform does."""

    def __init__(self, folder: Path) -> None:
        self.report = folder / "report"
        self.manifest = folder / "manifest.json"
        self.inputs: list[dict[str, str]] = []
        self._folder = folder

    def add_input(self, source: str, name: str, **files: bytes) -> Path:
        """An input; file names are given with `__` for `/` and `_` for `.`."""
        path = self._folder / f"input{len(self.inputs)}"
        path.mkdir()
        for key, content in files.items():
            file = path / key.replace("__", "/").replace("_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        self.inputs.append({"from": source, "name": name, "path": str(path)})
        return path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        document = {
            "job_id": JOB_ID,
            "stage": "register",
            "inputs": self.inputs,
            "outputs": [],
            "report_dir": str(self.report),
        }
        self.manifest.write_text(json.dumps(document))
        return subprocess.run(
            [sys.executable, "-m", "clara_flow.operators.register_results", *arguments],
            env={"PATH": os.environ["PATH"], "CLARA_IO_MANIFEST": str(self.manifest)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.report / "delivery.json").read_text())


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_every_file_of_every_input_is_registered(stage: Stage) -> None:
    stage.add_input("seg-writer", "dicom", b_dcm=b"two", a_dcm=b"one")
    stage.add_input("montage", "", deep__picture_png=b"three")
    stage.add_input("", "", study_dcm=b"four")
    done = stage.run("--agent", "ClaraSCU", "--data", '["MYPACS"]')
    assert done.returncode == 0, done.stdout + done.stderr
    record = stage.record
    created = record.pop("created")
    assert created.endswith("Z")
    assert record == {
        "version": 1,
        "agent": "ClaraSCU",
        "parameters": '["MYPACS"]',
        "job_id": JOB_ID,
        "operator": "register",
        "uris": [
            "/operators/seg-writer/dicom/a.dcm",
            "/operators/seg-writer/dicom/b.dcm",
            "/operators/montage/deep/picture.png",
            "/input/study.dcm",
        ],
        "files": [
            {"input": entry, "name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for entry, name, content in [
                ("seg-writer.dicom", "a.dcm", b"one"),
                ("seg-writer.dicom", "b.dcm", b"two"),
                ("montage", "deep/picture.png", b"three"),
                ("", "study.dcm", b"four"),
            ]
        ],
    }


def test_a_uri_is_spelled_as_the_folder_of_the_upstream(stage: Stage) -> None:
    stage.add_input("seg-writer", "DICOM", a_dcm=b"one")
    stage.inputs[0]["output"] = "dicom"
    stage.run("--agent", "ClaraSCU")
    assert stage.record["uris"] == ["/operators/seg-writer/dicom/a.dcm"]


def test_the_same_results_give_the_same_record(stage: Stage) -> None:
    folder = stage.add_input("seg-writer", "dicom", a_dcm=b"one")
    stage.run("--agent", "ClaraSCU")
    record = stage.report / "delivery.json"
    first = record.read_text()
    backdated = first.replace(stage.record["created"], "2020-01-01T00:00:00Z")
    record.write_text(backdated)
    assert "registered already" in stage.run("--agent", "ClaraSCU").stdout
    assert record.read_text() == backdated
    (folder / "a.dcm").write_bytes(b"changed")
    assert stage.run("--agent", "ClaraSCU").returncode == 0
    assert record.read_text() not in (first, backdated)
    assert [path.name for path in stage.report.iterdir()] == ["delivery.json"]


def test_a_damaged_record_is_replaced(stage: Stage) -> None:
    stage.add_input("seg-writer", "dicom", a_dcm=b"one")
    stage.report.mkdir()
    (stage.report / "delivery.json").write_text("{")
    assert stage.run("--agent", "ClaraSCU").returncode == 0
    assert stage.record["agent"] == "ClaraSCU"


def test_escaped_quotes_are_accepted(stage: Stage) -> None:
    stage.add_input("seg-writer", "dicom", a_dcm=b"one")
    assert stage.run("--agent", "ClaraSCU", "--data", '[\\"MYPACS\\"]').returncode == 0
    assert stage.record["parameters"] == '["MYPACS"]'


def test_without_data_the_parameters_are_empty(stage: Stage) -> None:
    stage.add_input("volume", "", a_mhd=b"one")
    assert stage.run("--agent", "renderserver").returncode == 0
    assert stage.record["parameters"] == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--agent"),
        (["--agent", "9lives"], "agent '9lives': a name has letters, digits and hyphens"),
        (["--agent", "ClaraSCU", "--data", "[MYPACS]"], "is not JSON (Expecting value"),
        (["--agent", "ClaraSCU", "--data", "NaN"], "NaN is not JSON"),
    ],
)
def test_wrong_arguments_end_with_2(stage: Stage, arguments: list[str], told: str) -> None:
    stage.add_input("seg-writer", "dicom", a_dcm=b"one")
    done = stage.run(*arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert not stage.report.exists()


def test_an_empty_input_is_refused(stage: Stage) -> None:
    stage.add_input("seg-writer", "dicom", a_dcm=b"one")
    (stage.add_input("montage", "") / "folder").mkdir()
    done = stage.run("--agent", "ClaraSCU")
    assert done.returncode == 1
    assert "input 'montage' holds no file" in done.stdout
    assert "Traceback" not in done.stdout
    assert not stage.report.exists()


def test_no_inputs_are_refused(stage: Stage) -> None:
    done = stage.run("--agent", "ClaraSCU")
    assert done.returncode == 1
    assert "no inputs" in done.stdout


@pytest.mark.parametrize("name", ["link.dcm", "new\nline.dcm"])
def test_what_cannot_be_delivered_is_refused(stage: Stage, name: str) -> None:
    folder = stage.add_input("seg-writer", "dicom", a_dcm=b"one")
    if name == "link.dcm":
        (folder / name).symlink_to("/etc/hostname")
    else:
        (folder / name).touch()
    done = stage.run("--agent", "ClaraSCU")
    assert done.returncode == 1
    assert repr(name) in done.stdout
    assert not stage.report.exists()


def test_stand_alone_says_where_the_record_would_go(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").touch()
    done = subprocess.run(
        [sys.executable, "-m", "clara_flow.operators.register_results", "--agent", "ClaraSCU"],
        env={"PATH": os.environ["PATH"], "NVIDIA_CLARA_INPUT": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "set CLARA_REPORT_DIR" in done.stdout


@pytest.mark.parametrize("name", ["ClaraSCU", "a", "DICOMweb", "my-pacs-2", "A1"])
def test_agent_names_are_kept_as_given(name: str) -> None:
    assert checked_agent(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "1a", "a b", "a_b", "ä", "a\n", "a.b"])
def test_other_agent_names_are_refused(name: str) -> None:
    with pytest.raises(RegistrationError, match="begins with a letter"):
        checked_agent(name)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(json_values)
def test_parameters_stay_as_given(value: object) -> None:
    text = json.dumps(value)
    assert checked_parameters(text) == text


@given(st.lists(st.text(st.characters(exclude_characters='\\"', exclude_categories=("C",)))))
def test_escaped_parameters_mean_the_same(names: list[str]) -> None:
    escaped = json.dumps(names, ensure_ascii=False).replace('"', '\\"')
    assert json.loads(checked_parameters(escaped)) == names
