"""What an operator is told, and what decides whether its work was done before."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_flow.errors import LauncherUnavailable
from clara_flow.infra.launchers.spec import Mount
from clara_flow.plan import (
    PlanContainer,
    PlanInput,
    PlanModel,
    PlanOperator,
    PlanOutput,
    PlanRequests,
    PlanService,
    PlanType,
)
from clara_flow.tasks.early_io import EarlyFolders, say_go, take_back_go
from clara_flow.tasks.operator_io import (
    JobIdentity,
    OperatorFolders,
    operator_digest,
    prepare_io,
    refuse_what_cannot_run,
)

JOB = JobIdentity(job_id="j1", job_name="liver 17", payload_id="p1", pipeline_id="l1", deadline="2030-01-01T00:00:00Z")
STREAM = PlanType(type="stream", element_type="dicom")
OPERATOR = PlanOperator(
    name="seg",
    container=PlanContainer(image="clara/seg"),
    inputs=(
        PlanInput(name="mask", path="/input", upstream="net", output="segmentation", type=STREAM),
        PlanInput(name="study", path="/dcm", type=STREAM),
    ),
    outputs=(PlanOutput(name="dicom", path="/output", type=STREAM), PlanOutput(name="logs", path="/logs", type=STREAM)),
    variables={"TITLE": "job ${{JOB_ID}} of ${{OPERATOR_NAME}}", "CLARA_JOB_ID": "forged"},
    models=(PlanModel(name="net_v1"),),
    requests=PlanRequests(cpu=3),
)


@pytest.fixture
def folders(tmp_path: Path) -> OperatorFolders:
    return OperatorFolders(
        payload=tmp_path / "input",
        upstreams={"net": tmp_path / "operators" / "net"},
        output=tmp_path / "partial",
        report=tmp_path / "report",
        manifest=tmp_path / "io.json",
        models={"net_v1": tmp_path / "models" / "net_v1"},
    )


def test_mounts_are_claras_layout_and_inputs_are_read_only(folders: OperatorFolders, tmp_path: Path) -> None:
    io = prepare_io(OPERATOR, folders, JOB, lambda mount: mount.target)
    assert {(m.source.relative_to(tmp_path).as_posix(), m.target, m.read_only) for m in io.mounts} == {
        ("operators/net/segmentation", "/input", True),
        ("input", "/dcm", True),
        ("partial/dicom", "/output", False),
        ("partial/logs", "/logs", False),
        ("report", "/clara/report", False),
        ("io.json", "/clara/io.json", True),
        ("models/net_v1", "/clara/models/net_v1", True),
    }
    assert [(output.name, output.path) for output in io.outputs] == [
        ("dicom", tmp_path / "partial/dicom"),
        ("logs", tmp_path / "partial/logs"),
    ]


def test_the_manifest_names_paths_as_the_runtime_sees_them(folders: OperatorFolders) -> None:
    def inside(mount: Mount) -> str:
        return f"seen:{mount.source}"

    prepare_io(OPERATOR, folders, JOB, inside)
    manifest = json.loads(folders.manifest.read_text())
    assert manifest["stage"] == "seg"
    assert manifest["inputs"][0] == {
        "name": "mask",
        "from": "net",
        "output": "segmentation",
        "path": f"seen:{folders.upstreams['net'] / 'segmentation'}",
        "type": "stream",
        "element_type": "dicom",
    }
    assert manifest["inputs"][1]["from"] == ""
    assert manifest["models"] == {"net_v1": f"seen:{folders.models['net_v1']}"}
    assert manifest["deadline"] == JOB.deadline


def test_ids_cannot_be_overridden_and_builtins_are_filled_in(folders: OperatorFolders) -> None:
    environment = prepare_io(OPERATOR, folders, JOB, lambda mount: mount.target).environment
    assert environment["TITLE"] == "job j1 of seg"
    assert environment["CLARA_JOB_ID"] == "j1"
    assert environment["CLARA_CPU"] == "3"
    assert environment["CLARA_IO_MANIFEST"] == "/clara/io.json"


def test_shares_of_a_gpu_and_of_the_jobs_memory_are_told(folders: OperatorFolders, tmp_path: Path) -> None:
    assert "CLARA_GPU_MEMORY_MIB" not in prepare_io(OPERATOR, folders, JOB, lambda mount: mount.target).environment
    sharing = OPERATOR.model_copy(update={"requests": PlanRequests(gpu_memory_mib=6144)})
    assert prepare_io(sharing, folders, JOB, str).environment["CLARA_GPU_MEMORY_MIB"] == "6144"
    assert "CLARA_FASTIO" not in prepare_io(OPERATOR, folders, JOB, lambda mount: mount.target).environment
    io = prepare_io(OPERATOR, replace(folders, fastio=tmp_path / "fastio"), JOB, lambda mount: mount.target)
    assert io.environment["CLARA_FASTIO"] == "/clara/fastio"
    assert io.mounts[-1] == Mount(source=tmp_path / "fastio", target="/clara/fastio", read_only=False)


def test_an_early_process_finds_its_inputs_where_they_will_be(folders: OperatorFolders, tmp_path: Path) -> None:
    early = EarlyFolders(go=tmp_path / "go")
    io = prepare_io(OPERATOR, replace(folders, early=early), JOB, lambda mount: str(mount.source))
    manifest = json.loads(folders.manifest.read_text())
    assert manifest["go"] == str(tmp_path / "go")
    assert manifest["inputs"][0]["path"] == str(tmp_path / "operators" / "net" / "segmentation")
    sources = [mount.source for mount in io.mounts]
    assert tmp_path / "operators" / "net" / "segmentation" not in sources  # it is not there yet
    assert tmp_path / "input" in sources


def test_an_early_container_has_folders_that_are_filled_with_links(folders: OperatorFolders, tmp_path: Path) -> None:
    early = EarlyFolders(go=tmp_path / "control" / "go", inputs=tmp_path / "control" / "inputs")
    early.go.parent.mkdir()
    descriptor = early.make((0,))
    io = prepare_io(OPERATOR, replace(folders, early=early), JOB, lambda mount: mount.target)
    mounts = {mount.target: mount for mount in io.mounts}
    assert mounts["/input"] == Mount(source=early.inputs / "0", target="/input")
    assert mounts["/clara/go"] == Mount(source=early.go, target="/clara/go")
    assert mounts["/dcm"].source == tmp_path / "input"
    assert json.loads(folders.manifest.read_text())["go"] == "/clara/go"
    sealed = folders.input(OPERATOR.inputs[0])
    (sealed / "deep").mkdir(parents=True)
    (sealed / "deep" / "mask.nii").write_bytes(b"voxels")
    (sealed / "link").symlink_to("deep/mask.nii")
    early.fill({0: sealed})
    assert (early.inputs / "0" / "deep" / "mask.nii").samefile(sealed / "deep" / "mask.nii")
    assert (early.inputs / "0" / "link").read_bytes() == b"voxels"
    say_go(descriptor, ("GPU-1",))
    assert take_back_go(descriptor)
    assert not take_back_go(descriptor)  # it was read
    os.close(descriptor)
    early.remove()
    early.remove()
    assert list(early.go.parent.iterdir()) == []
    assert (sealed / "deep" / "mask.nii").read_bytes() == b"voxels"


def test_memory_types_and_services_are_refused_by_name() -> None:
    array = PlanType(type="array", element_type="uint8", shape=(-1, -1, -1))
    with pytest.raises(LauncherUnavailable, match=r"'seg' hands over volume in shared memory \(FastIO\)"):
        refuse_what_cannot_run(OPERATOR.model_copy(update={"inputs": (PlanInput(name="volume", type=array),)}))
    service = PlanService(name="triton", signature="x", container=PlanContainer(image="triton"))
    with pytest.raises(LauncherUnavailable, match="needs the pipeline service triton"):
        refuse_what_cannot_run(OPERATOR.model_copy(update={"services": (service,)}))
    assert refuse_what_cannot_run(OPERATOR) is None


def digest(operator: PlanOperator = OPERATOR, code: str = "c", data: str = "d", model: str = "m") -> str:
    return operator_digest(operator, code=code, inputs={"": data}, models={"net_v1": model})


@given(cpu=st.integers(0, 99), retries=st.integers(0, 9), timeout_s=st.none() | st.integers(1, 99))
def test_requests_do_not_change_the_digest(cpu: int, retries: int, timeout_s: int | None) -> None:
    update = {"requests": PlanRequests(cpu=cpu), "retries": retries, "timeout_s": timeout_s}
    update |= {"retry_on": ("failed",), "early_start": bool(retries)}
    assert digest(OPERATOR.model_copy(update=update)) == digest()


def test_everything_that_decides_the_outputs_changes_the_digest() -> None:
    others = [
        digest(OPERATOR.model_copy(update={"variables": {"TITLE": "other"}})),
        digest(OPERATOR.model_copy(update={"container": PlanContainer(image="clara/seg", command=("x",))})),
        digest(OPERATOR.model_copy(update={"outputs": OPERATOR.outputs[:1]})),
        digest(code="c2"),
        digest(data="d2"),
        digest(model="m2"),
    ]
    assert len({digest(), *others}) == 1 + len(others)
