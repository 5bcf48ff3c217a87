"""`clara-flow run` as a user meets it: bad input gets a message and a meaning, and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pydicom
import pytest
import yaml
from waiting import eventually

from clara_flow.operators.imaging import sample_study
from clara_flow.operators.imaging.volume_files import read_volume
from clara_flow.records import jobs
from clara_flow.records.database import connect
from clara_flow.records.state_machine import JobState, JobStatus
from clara_flow.services.platform import PlatformHandle

CLARA_FLOW = Path(sys.executable).with_name("clara-flow")
READ_ONLY = {
    "api-version": "0.4.0",
    "name": "read-only",
    "operators": [
        {
            "name": "reader",
            "container": {"image": "clara/dicom-reader"},
            "input": [{"path": "/input"}],
            "output": [{"path": "/output"}],
        }
    ],
}


@dataclass(frozen=True)
class Desk:
    """A user's folder, the study in it, a definition, and the platform that the command finds."""

    folder: Path
    study: Path
    definition: Path
    platform: PlatformHandle

    @property
    def environment(self) -> dict[str, str]:
        settings = self.platform.settings
        mine = {"CLARA_FLOW_DATA_DIR": str(settings.data_dir), "CLARA_FLOW_PREFECT_PORT": str(settings.prefect_port)}
        return {**os.environ, **mine, "CLARA_FLOW_STOP_GRACE_S": "2", "COLUMNS": "200"}

    def command(self, *extra: str, definition: str | Path | None = None, study: Path | None = None) -> list[str]:
        pipeline = str(definition or self.definition)
        output = str(self.folder / "results")
        return [str(CLARA_FLOW), "run", pipeline, "--input", str(study or self.study), "--output", output, *extra]

    def run(self, *extra: str, definition: str | Path | None = None, study: Path | None = None) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        done = subprocess.run(
            self.command(*extra, definition=definition, study=study),
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def leftovers(self) -> dict[str, object]:
        """What a run that did not complete must not leave: results, half payloads, processes."""
        payloads = self.platform.settings.data_dir / "payloads"
        marker = str(payloads)
        processes = []
        for process in psutil.process_iter(["pid", "environ"]):
            environment = process.info["environ"] or {}
            if environment.get("CLARA_IO_MANIFEST", "").startswith(marker):
                processes.append(process.pid)
        return {
            "results": [path.name for path in self.folder.glob("results/**/*")],
            "half payloads": [path.name for path in payloads.rglob("*.partial")] if payloads.exists() else [],
            "processes": processes,
        }


NOTHING = {"results": [], "half payloads": [], "processes": []}


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve axial slices of a blob."""
    folder = tmp_path_factory.mktemp("study")
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (16, 14, 12)), indexing="ij"))
    blob = (np.clip(1 - (grid**2).sum(0), 0, None) * 200).astype(np.uint8)
    nib.Nifti1Image(blob, np.diag([2.0, 2, 2, 1])).to_filename(folder / "head.nii.gz")
    sample_study.make_study(read_volume(folder / "head.nii.gz"), folder / "study", name="blob", orientation="axial")
    return folder / "study"


@pytest.fixture
def desk(platform: PlatformHandle, small_study: Path, tmp_path: Path) -> Desk:
    study = tmp_path / "study"
    shutil.copytree(small_study, study)
    definition = tmp_path / "read-only.yaml"
    definition.write_text(yaml.safe_dump(READ_ONLY))
    return Desk(tmp_path, study, definition, platform)


def test_a_study_goes_in_and_a_volume_comes_out(desk: Desk) -> None:
    status, out, err = desk.run("--json")
    assert status == 0, err
    outcome = json.loads(out)
    assert (outcome["state"], outcome["status"]) == ("STOPPED", "HEALTHY")
    files = {Path(path).suffix for path in outcome["files"]}
    assert {".mhd", ".raw", ".json"} <= files
    assert all(Path(path).is_relative_to(desk.folder / "results") for path in outcome["files"])
    payload = desk.platform.settings.data_dir / "payloads" / outcome["payload_id"].replace("-", "")
    assert not payload.exists(), "a completed job's payload goes, unless it is kept"
    again, out, err = desk.run("--json", "--keep")
    assert again == 0, err
    payload = desk.platform.settings.data_dir / "payloads" / json.loads(out)["payload_id"].replace("-", "")
    assert (payload / "operators" / "reader").is_dir()
    assert "/runs/flow-run/" in outcome["prefect_ui"]


def test_no_log_line_and_no_message_holds_patient_data(desk: Desk) -> None:
    status, out, err = desk.run("--keep", "--json")
    assert status == 0, err
    payload = desk.platform.settings.data_dir / "payloads" / json.loads(out)["payload_id"].replace("-", "")
    logs = "".join(path.read_text() for path in (payload / "logs").iterdir())
    first = pydicom.dcmread(next(desk.study.iterdir()))
    for planted in (str(first.PatientName), first.PatientID, first.StudyInstanceUID, first.SeriesInstanceUID):
        assert planted not in logs + err


def test_an_empty_folder(desk: Desk) -> None:
    empty = desk.folder / "empty"
    empty.mkdir()
    status, _, err = desk.run(study=empty)
    assert (status, err) == (3, f"clara-flow: the input folder {empty} holds no files\n")
    assert desk.leftovers() == NOTHING


def test_a_folder_without_dicom(desk: Desk) -> None:
    folder = desk.folder / "letters"
    folder.mkdir()
    (folder / "letter.txt").write_text("Dear colleague, " * 20)
    status, _, err = desk.run(study=folder)
    assert status == 1
    assert "operator 'reader' exited with 1" in err
    assert re.search(r"no DICOM|not DICOM|without DICOM", err), err
    assert "Traceback" not in err
    assert desk.leftovers() == NOTHING


def test_a_truncated_file(desk: Desk) -> None:
    victim = sorted(desk.study.iterdir())[5]
    victim.write_bytes(victim.read_bytes()[:900])
    status, _, err = desk.run()
    assert status == 1
    assert re.search(r"truncated|missing|incomplete", err), err
    assert "Traceback" not in err
    assert desk.leftovers() == NOTHING


def test_two_patients_in_one_folder(desk: Desk) -> None:
    for path in sorted(desk.study.iterdir())[:6]:
        dataset = pydicom.dcmread(path)
        dataset.PatientID, dataset.PatientName = "OTHER-4711", "Other^Person"
        dataset.save_as(path)
    status, _, err = desk.run()
    assert status == 1
    assert "patients" in err
    assert "OTHER-4711" not in err
    assert "Person" not in err
    assert desk.leftovers() == NOTHING


def test_a_series_with_a_missing_slice(desk: Desk) -> None:
    sorted(desk.study.iterdir())[6].unlink()
    status, _, err = desk.run()
    assert status == 1
    assert "missing" in err
    assert "Traceback" not in err
    assert desk.leftovers() == NOTHING


def test_a_yaml_bomb(desk: Desk) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]" for n in range(9)]
    desk.definition.write_text("\n".join(lines))
    status, _, err = desk.run()
    assert status == 3
    assert "[P01]" in err
    assert desk.leftovers() == NOTHING


def test_a_cycle(desk: Desk) -> None:
    operators = [
        {**READ_ONLY["operators"][0], "name": name, "input": [{"path": "/in", "from": other}]}  # type: ignore[dict-item]
        for name, other in (("a", "b"), ("b", "a"))
    ]
    desk.definition.write_text(yaml.safe_dump(READ_ONLY | {"operators": operators}))
    status, _, err = desk.run()
    assert status == 3
    assert re.search(r"read-only\.yaml:\d+:\d+: .*(a -> b -> a|b -> a -> b).*\[P07\]", err), err
    assert desk.leftovers() == NOTHING


def test_an_image_that_is_not_bundled_says_which_runtime_could(desk: Desk) -> None:
    operator = {**READ_ONLY["operators"][0], "container": {"image": "nowhere/nothing"}}  # type: ignore[dict-item]
    desk.definition.write_text(yaml.safe_dump(READ_ONLY | {"operators": [operator]}))
    status, _, err = desk.run()
    assert status == 4
    assert "'nowhere/nothing:latest' is not a bundled operator" in err
    assert "--runtime docker" in err
    assert desk.leftovers() == NOTHING


@pytest.mark.docker
def test_an_image_that_does_not_exist(desk: Desk, docker_engine: str) -> None:
    operator = {**READ_ONLY["operators"][0], "container": {"image": "nowhere/nothing"}}  # type: ignore[dict-item]
    desk.definition.write_text(yaml.safe_dump(READ_ONLY | {"operators": [operator]}))
    desk.environment["CLARA_FLOW_DOCKER_BASE_URL"] = docker_engine
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLARA_FLOW_DOCKER_BASE_URL", docker_engine)
        patch.setenv("CLARA_FLOW_IMAGE_PULL_POLICY", "never")
        status, _, err = desk.run("--runtime", "docker")
    assert status == 1
    assert "nowhere/nothing" in err
    assert "Traceback" not in err
    assert desk.leftovers() == NOTHING


def test_docker_without_an_engine_is_told_before_anything_is_made(desk: Desk) -> None:
    before = {path.name for path in (desk.platform.settings.data_dir / "payloads").glob("*")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLARA_FLOW_DOCKER_BASE_URL", f"unix://{desk.folder}/nobody.sock")
        status, _, err = desk.run("--runtime", "docker")
    assert status == 4
    assert "Docker" in err
    assert "Traceback" not in err
    assert desk.leftovers() == NOTHING
    assert {path.name for path in (desk.platform.settings.data_dir / "payloads").glob("*")} == before


@contextlib.contextmanager
def tiny_disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False).returncode != 0:
        pytest.skip("only root may mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_output_disk_keeps_the_results_and_says_where(desk: Desk) -> None:
    with tiny_disk(desk.folder / "results") as results:
        (results / "ballast").write_bytes(b"\0" * 61440)
        status, _, err = desk.run()
        assert status == 4
        assert "No space left on device" in err
        kept = re.search(r"They are kept in (\S+)", err)
        assert kept, err
        assert list(Path(kept.group(1)).rglob("*.mhd"))
        assert [path.name for path in results.iterdir()] == ["ballast"]


def test_results_must_not_overlap_the_input(desk: Desk) -> None:
    status, _, err = desk.run("--output", str(desk.study / "out"))
    assert status == 3
    assert "overlap" in err
    assert not (desk.study / "out").exists()


@pytest.mark.parametrize("moment_s", [0.02, 0.15, 0.4, 0.8, 1.2, 1.6, 2.0, 2.3, 2.6, 2.9, 3.2, 3.5])
def test_ctrl_c_at_any_moment_leaves_nothing(desk: Desk, moment_s: float) -> None:
    before = {path.name for path in (desk.platform.settings.data_dir / "payloads").glob("*")}
    process = subprocess.Popen(
        desk.command(), env=desk.environment, cwd=desk.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=moment_s)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:  # it was quicker
        assert (desk.folder / "results" / "reader").is_dir()
        return
    if moment_s > 0.2:  # before that the interpreter itself is just starting, and says what it wants
        assert process.returncode in (130, -signal.SIGINT), err
        assert "Traceback" not in err, err
    assert desk.leftovers() == NOTHING
    assert not (desk.folder / "results").exists()
    left = {path.name for path in (desk.platform.settings.data_dir / "payloads").glob("*")} - before
    engine = connect(desk.platform.database_url)
    try:  # where a runner still worked in it, housekeeping removes it, which goes by the jobs
        assert left <= {str(job.payload_id).replace("-", "") for job in jobs.list_jobs(engine)}
    finally:
        engine.dispose()


def test_a_run_that_is_killed_leaves_its_job_to_the_pool(desk: Desk) -> None:
    process = subprocess.Popen(
        desk.command(), env=desk.environment, cwd=desk.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "read-only (" in line or "reader: " in line:
            break
    process.kill()
    process.communicate()
    engine = connect(desk.platform.database_url)
    try:
        killed = next(job for job in jobs.list_jobs(engine) if job.name == "read-only")
        eventually(lambda: jobs.get_job(engine, killed.id).state is JobState.STOPPED, within_s=30)
        assert jobs.get_job(engine, killed.id).status is JobStatus.HEALTHY, "nobody watched, and it ran all the same"
    finally:
        engine.dispose()
    eventually(lambda: desk.leftovers()["processes"] == [], within_s=20)
