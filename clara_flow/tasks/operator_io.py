"""From the plan's operator to what a launcher understands: mounts, environment, the driver's manifest, the digest.

Layout and variables are Clara's (pipeline language, what a container gets); `/clara/...` paths are ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clara_flow.errors import LauncherUnavailable
from clara_flow.infra.launchers.spec import Mount, RequiredOutput
from clara_flow.plan import Medium, PlanInput, PlanOperator, PlanOutput, substitute_builtins
from clara_flow.tasks.early_io import EarlyFolders

MANIFEST_TARGET = "/clara/io.json"
REPORT_TARGET = "/clara/report"
MODELS_TARGET = "/clara/models"
FASTIO_TARGET = "/clara/fastio"
GO_TARGET = "/clara/go"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorFolders:
    """Where an operator's data lies on this machine.

    payload     the job's input folder.
    upstreams   sealed folder of each operator it reads from.
    output      its own unsealed folder; named outputs are sub-folders.
    report      folder for facts that the platform reads.
    manifest    file for the driver's I/O manifest.
    models      folder of each model it needs.
    fastio      the job's shared memory; None when it has none.
    early       set when its upstreams are not sealed yet.
    """

    payload: Path
    upstreams: Mapping[str, Path]
    output: Path
    report: Path
    manifest: Path
    models: Mapping[str, Path]
    fastio: Path | None = None
    early: EarlyFolders | None = None

    def input(self, entry: PlanInput) -> Path:
        """Where the sealed files of an input lie, or will lie."""
        folder = self.upstreams[entry.upstream] if entry.upstream else self.payload
        return folder / entry.output if entry.output else folder


@dataclass(frozen=True, slots=True, kw_only=True)
class JobIdentity:
    """What an operator is told of its job; nothing of the patient."""

    job_id: str
    job_name: str
    payload_id: str
    pipeline_id: str
    deadline: str | None

    def builtins(self, operator: str) -> dict[str, str]:
        """Values of the placeholders that only a running job knows."""
        return {
            "JOB_ID": self.job_id,
            "JOB_NAME": self.job_name,
            "PAYLOAD_ID": self.payload_id,
            "PIPELINE_ID": self.pipeline_id,
            "OPERATOR_NAME": operator,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorIO:
    """All that a LaunchSpec needs of an operator's inputs and outputs."""

    mounts: tuple[Mount, ...]
    outputs: tuple[RequiredOutput, ...]
    environment: dict[str, str]


def refuse_what_cannot_run(operator: PlanOperator) -> None:
    """Raise LauncherUnavailable for what the language knows and this version cannot run."""
    entries: list[PlanInput | PlanOutput] = [*operator.inputs, *operator.outputs]
    in_memory = [entry.name for entry in entries if entry.type and entry.type.medium is Medium.MEMORY]
    if in_memory:
        raise LauncherUnavailable(
            f"operator {operator.name!r} hands over {', '.join(in_memory)} in shared memory (FastIO), which this "
            "version cannot run yet; use `type: stream` with a path"
        )
    if operator.services:
        names = ", ".join(service.name for service in operator.services)
        raise LauncherUnavailable(
            f"operator {operator.name!r} needs the pipeline service {names}, which this version cannot start yet; "
            "use an operator that brings its own inference"
        )


def prepare_io(
    operator: PlanOperator,
    folders: OperatorFolders,
    job: JobIdentity,
    path_inside: Callable[[Mount], str],
) -> OperatorIO:
    """Mounts, checks and environment of one attempt; writes the driver's manifest to `folders.manifest`.

    path_inside     the launcher's: the path of a mount as the operator sees it.
    """
    mounts: list[Mount] = []

    def see(source: Path, target: str, *, read_only: bool) -> str:
        mount = Mount(source=source, target=target, read_only=read_only)
        mounts.append(mount)
        return path_inside(mount)

    inputs, early = [], folders.early
    for number, entry in enumerate(operator.inputs):
        source = folders.input(entry)
        if early is None or not entry.upstream:
            path = see(source, entry.path, read_only=True)
        elif (staged := early.staged(number)) is not None:
            path = see(staged, entry.path, read_only=True)
        else:
            path = str(source)  # a process finds it there, once it is there
        inputs.append(
            {
                "name": entry.name,
                "from": entry.upstream,
                "output": entry.output,
                "path": path,
                "type": entry.type.type if entry.type else "stream",
                "element_type": entry.type.element_type if entry.type else "",
            }
        )
    outputs, required = [], []
    for output in operator.outputs:
        folder = folders.output / output.name if output.name else folders.output
        required.append(RequiredOutput(name=output.name, path=folder))
        outputs.append(
            {
                "name": output.name,
                "path": see(folder, output.path, read_only=False),
                "type": output.type.type if output.type else "stream",
                "element_type": output.type.element_type if output.type else "",
            }
        )
    manifest = {
        "job_id": job.job_id,
        "job_name": job.job_name,
        "stage": operator.name,
        "deadline": job.deadline,
        "inputs": inputs,
        "outputs": outputs,
        "report_dir": see(folders.report, REPORT_TARGET, read_only=False),
        "models": {
            name: see(folder, f"{MODELS_TARGET}/{name}", read_only=True) for name, folder in folders.models.items()
        },
    }
    if early is not None:
        manifest["go"] = str(early.go) if early.inputs is None else see(early.go, GO_TARGET, read_only=True)
    folders.manifest.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    builtins = job.builtins(operator.name)
    environment = {name: substitute_builtins(value, builtins) for name, value in operator.variables.items()}
    environment |= {  # ids cannot be overridden by a definition's variables
        "CLARA_JOB_ID": job.job_id,
        "CLARA_JOB_NAME": job.job_name,
        "CLARA_STAGE_NAME": operator.name,
        "CLARA_PAYLOAD_ID": job.payload_id,
        "CLARA_IO_MANIFEST": see(folders.manifest, MANIFEST_TARGET, read_only=True),
        "CLARA_CPU": str(max(1, operator.requests.cpu)),
    }
    if operator.requests.gpu_memory_mib:  # nothing else holds it to its share
        environment["CLARA_GPU_MEMORY_MIB"] = str(operator.requests.gpu_memory_mib)
    if folders.fastio is not None:
        environment["CLARA_FASTIO"] = see(folders.fastio, FASTIO_TARGET, read_only=False)
    return OperatorIO(mounts=tuple(mounts), outputs=tuple(required), environment=environment)


def operator_digest(operator: PlanOperator, *, code: str, inputs: Mapping[str, str], models: Mapping[str, str]) -> str:
    """SHA-256 (hex) over everything that decides an operator's outputs: equal digest, equal work.

    code        identity of what runs: the bundled operator's version, or the image's id or reference.
    inputs      digest of the payload's input ("") and of each upstream's sealed outputs.
    models      digest of each model's files.

    Requests, timeouts and retries are left out: they decide whether an operator ends, not with what. So are values that
    differ between jobs (`${{JOB_ID}}`), else a resumed job could reuse nothing.
    """
    facts = operator.model_dump(
        mode="json", exclude={"description", "requests", "timeout_s", "retries", "retry_on", "early_start"}
    )
    facts |= {"code": code, "input_digests": dict(inputs), "model_digests": dict(models)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
