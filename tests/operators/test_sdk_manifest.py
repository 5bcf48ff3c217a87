"""How the driver finds its job: the I/O manifest, and plain folders without one."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clara_flow.operators.sdk.manifest import StageJob, load_job
from clara_flow.operators.sdk.payload import DriverError

JOB_ID = "6f1c2b1e-7a53-4f0e-9a5e-0a4b6a0a9f11"


def whole_manifest(folder: Path) -> dict[str, Any]:
    """A manifest as the platform writes it, its folders there."""
    (folder / "in").mkdir(exist_ok=True)
    return {
        "job_id": JOB_ID,
        "job_name": "liver 17",
        "stage": "liver",
        "deadline": "2030-01-01T01:10:00+01:00",
        "inputs": [
            {"name": "volume", "from": "reader", "path": str(folder / "in"), "type": "stream", "element_type": "dicom"}
        ],
        "outputs": [{"name": "mask", "path": str(folder / "out"), "type": "stream"}],
        "report_dir": str(folder / "report"),
        "models": {"net": str(folder / "net")},
        "sync": {"wait": ["reader"], "signal": "liver"},
    }


def load(folder: Path, document: object, **environment: str) -> StageJob:
    path = folder / "manifest.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return load_job({"CLARA_IO_MANIFEST": str(path), **environment})


def test_a_manifest_gives_the_whole_stage(tmp_path: Path) -> None:
    job = load(tmp_path, whole_manifest(tmp_path), CLARA_REPORT_DIR="/elsewhere")
    assert job.job_id == uuid.UUID(JOB_ID)
    assert (job.job_name, job.stage_name) == ("liver 17", "liver")
    assert job.deadline == datetime(2030, 1, 1, 0, 10, tzinfo=UTC)
    assert job.deadline is not None
    assert job.deadline.tzinfo == UTC
    entry = job.inputs["volume"]
    assert (entry.name, entry.path, entry.source, entry.element_type) == (
        "volume",
        str(tmp_path / "in"),
        "reader",
        "dicom",
    )
    assert Path(job.outputs["mask"].path).is_dir()
    assert job.report_dir == tmp_path / "report"
    assert job.models == {"net": tmp_path / "net"}


def test_what_may_be_absent_has_a_default(tmp_path: Path) -> None:
    minimal = {"job_id": JOB_ID, "stage": "x", "inputs": [], "outputs": [], "deadline": None, "models": None}
    job = load(tmp_path, minimal, CLARA_REPORT_DIR=str(tmp_path))
    assert (job.job_name, job.deadline, dict(job.models), job.report_dir) == ("", None, {}, tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"job_id": None}, "lacks 'job_id'"),
        ({"stage": None}, "lacks 'stage'"),
        ({"outputs": None}, "lacks 'outputs'"),
        ({"job_id": "17"}, "'job_id' must be a UUID, found '17'"),
        ({"job_name": 17}, "'job_name' must be text, found int"),
        ({"inputs": {}}, "'inputs' must be a list, found dict"),
        ({"inputs": ["/input"]}, r"inputs\[0\] must be a JSON object"),
        ({"inputs": [{"name": "volume"}]}, r"inputs\[0\] lacks 'path'"),
        ({"inputs": [{"path": "/clara-flow-no-such-folder"}]}, "there is no folder /clara-flow-no-such-folder"),
        ({"outputs": [{"name": "m", "path": "/proc/m"}]}, "output 'm': folder '/proc/m' cannot be used"),
        ({"outputs": [{"name": "m", "path": "/a\0b"}]}, "cannot be used: embedded null byte"),
        ({"outputs": [{"name": "m", "path": "/", "type": "array"}]}, "type 'array'; this driver hands over folders"),
        ({"models": {"net": 1}}, "'models' must map"),
        ({"deadline": "tomorrow"}, "'deadline' must be an ISO 8601 time, found 'tomorrow'"),
        ({"deadline": "0001-01-01T00:00:00+07:00"}, "'deadline' must be an ISO 8601 time"),
        ({"deadline": "2030-01-01T00:10:00"}, "must say its time zone"),
    ],
)
def test_a_broken_manifest_is_told_by_file_key_and_need(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(DriverError, match=told):
        load(tmp_path, whole_manifest(tmp_path) | change)


@pytest.mark.parametrize(
    ("text", "told"), [("{", "manifest.json is not JSON"), ("[]", "must be a JSON object, found list")]
)
def test_a_manifest_that_is_no_object_is_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(DriverError, match=told):
        load(tmp_path, text)


def test_a_missing_manifest_says_how_to_run_without(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="No such file or directory; unset the variable to run stand-alone"):
        load_job({"CLARA_IO_MANIFEST": str(tmp_path / "none.json")})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(["job_id", "stage", "deadline", "inputs", "models", "report_dir"]), value=json_values)
def test_any_value_gives_a_stage_or_a_driver_error(tmp_path: Path, key: str, value: object) -> None:
    try:
        job = load(tmp_path, whole_manifest(tmp_path) | {key: value})
    except DriverError:
        job = load(tmp_path, whole_manifest(tmp_path))
    assert job.job_name == "liver 17"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.datetimes(
        min_value=datetime(1, 1, 2),  # noqa: DTZ001 - hypothesis adds the zone
        max_value=datetime(9999, 12, 30),  # noqa: DTZ001
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7)), timezone(timedelta(hours=13))]),
    )
)
def test_every_deadline_comes_back_in_utc(tmp_path: Path, moment: datetime) -> None:
    deadline = load(tmp_path, whole_manifest(tmp_path) | {"deadline": moment.isoformat()}).deadline
    assert deadline == moment
    assert deadline is not None
    assert deadline.utcoffset() == timedelta(0)


def test_without_a_manifest_the_folders_of_the_environment_are_used(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    job = load_job(
        {
            "NVIDIA_CLARA_INPUT": str(tmp_path / "in"),
            "NVIDIA_CLARA_OUTPUT": str(tmp_path / "new" / "out"),
            "NVIDIA_CLARA_NOSYNCLOCK": "TRUE",
        }
    )
    assert job.inputs[0].path == job.inputs[""].path == str(tmp_path / "in")
    assert Path(job.outputs[0].path).is_dir()
    assert (job.job_name, job.deadline, job.report_dir, dict(job.models)) == ("stand-alone", None, None, {})


def test_without_a_manifest_the_platforms_names_are_kept(tmp_path: Path) -> None:
    job = load_job(
        {"CLARA_JOB_ID": JOB_ID, "CLARA_JOB_NAME": "j", "CLARA_STAGE_NAME": "s", "CLARA_REPORT_DIR": str(tmp_path)}
    )
    assert (str(job.job_id), job.job_name, job.stage_name, job.report_dir) == (JOB_ID, "j", "s", tmp_path)


def test_without_a_manifest_each_run_is_a_job_of_its_own() -> None:
    assert load_job({}).job_id != load_job({}).job_id


def test_a_named_input_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="there is no folder"):
        load_job({"NVIDIA_CLARA_INPUT": str(tmp_path / "none")})
