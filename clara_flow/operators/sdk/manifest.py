"""How the driver finds its job: the I/O manifest that the platform writes, or plain folders without a platform.

The manifest is JSON, its path stands in `CLARA_IO_MANIFEST`:

    {"job_id": "6f1c...", "job_name": "liver 17", "stage": "liver", "deadline": "2030-01-01T00:10:00Z",
     "inputs":  [{"name": "volume", "from": "reader", "path": "/input", "type": "stream", "element_type": "metaimage"}],
     "outputs": [{"name": "mask", "path": "/output", "type": "stream", "element_type": "metaimage"}],
     "report_dir": "/report", "models": {"brain_extraction_deepbet": "/models/brain_extraction_deepbet"},
     "go": "/clara/go"}

`job_id`, `stage`, `inputs` and `outputs` must be there. An input may say how its upstream spells it (`output`). `go` is
there when the inputs come later (see `go`). Unknown keys are left alone, so that an older operator image runs under a
newer platform.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clara_flow.operators.sdk.payload import DriverError, PayloadCollection, PayloadEntry

MANIFEST_VARIABLE = "CLARA_IO_MANIFEST"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageJob:
    """The stage of a job that this process is.

    deadline    UTC; None = no limit.
    report_dir  where facts for the platform are left; None stand-alone.
    models      folder of each model that the operator needs, by the model's name.
    go          FIFO that tells when the inputs are there; None: they are there from the start.
    """

    job_id: uuid.UUID
    job_name: str
    stage_name: str
    deadline: datetime | None
    inputs: PayloadCollection
    outputs: PayloadCollection
    report_dir: Path | None = None
    models: Mapping[str, Path] = field(default_factory=dict)
    go: Path | None = None


def load_job(environment: Mapping[str, str]) -> StageJob:
    """The stage that this environment describes; stand-alone when it names no manifest.

    Raises DriverError naming the file, the key and what was expected.
    """
    named = environment.get(MANIFEST_VARIABLE)
    return _from_manifest(Path(named), environment) if named else _stand_alone(environment)


def _stand_alone(environment: Mapping[str, str]) -> StageJob:
    """`NVIDIA_CLARA_INPUT` and `_OUTPUT`, else `/input` and `/output` where those folders exist."""
    inputs, outputs = [], []
    if (folder := environment.get("NVIDIA_CLARA_INPUT")) or Path("/input").is_dir():
        inputs = [_usable(PayloadEntry("", folder or "/input"), "input")]
    if (folder := environment.get("NVIDIA_CLARA_OUTPUT")) or Path("/output").is_dir():
        outputs = [_usable(PayloadEntry("", folder or "/output"), "output")]
    given_id = environment.get("CLARA_JOB_ID")
    return StageJob(
        job_id=_uuid(given_id, "CLARA_JOB_ID") if given_id else uuid.uuid4(),
        job_name=environment.get("CLARA_JOB_NAME") or "stand-alone",
        stage_name=environment.get("CLARA_STAGE_NAME") or _script_name(),
        deadline=None,
        inputs=PayloadCollection("input", inputs),
        outputs=PayloadCollection("output", outputs),
        report_dir=_report_dir(environment.get("CLARA_REPORT_DIR")),
    )


def _script_name() -> str:
    """`reader` for `python reader.py`, `python reader/__main__.py` and `python -m reader`."""
    script = Path(sys.argv[0])
    return (script.parent.name if script.stem == "__main__" else script.stem) or "stand-alone"


def _from_manifest(path: Path, environment: Mapping[str, str]) -> StageJob:
    where = f"I/O manifest {path}"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise DriverError(
            f"{where} (variable {MANIFEST_VARIABLE}) cannot be read: {problem.strerror}; "
            "unset the variable to run stand-alone"
        ) from None
    except ValueError as problem:
        raise DriverError(f"{where} is not JSON: {problem}") from None
    if not isinstance(document, dict):
        raise DriverError(f"{where} must be a JSON object, found {type(document).__name__}")
    models = _get(document, "models", dict, where, {})
    if not all(isinstance(folder, str) for folder in models.values()):
        raise DriverError(f"{where}: 'models' must map each model's name to a folder")
    go = _get(document, "go", str, where, "")
    job = StageJob(
        job_id=_uuid(_get(document, "job_id", str, where), f"{where}: 'job_id'"),
        job_name=_get(document, "job_name", str, where, ""),
        stage_name=_get(document, "stage", str, where),
        deadline=_utc(_get(document, "deadline", str, where, ""), where),
        inputs=_entries(document, "inputs", where),
        outputs=_entries(document, "outputs", where),
        report_dir=_report_dir(_get(document, "report_dir", str, where, "") or environment.get("CLARA_REPORT_DIR")),
        models={name: Path(folder) for name, folder in models.items()},
        go=Path(go) if go else None,
    )
    if job.go is None:
        check_inputs(job)
    return job


def check_inputs(job: StageJob) -> None:
    """Raise DriverError when the folder of an input is not there."""
    for entry in job.inputs:
        _usable(entry, "input")


def _entries(document: dict[str, Any], key: str, where: str) -> PayloadCollection:
    kind = key.removesuffix("s")
    entries = []
    for position, item in enumerate(_get(document, key, list, where)):
        here = f"{where}: {key}[{position}]"
        if not isinstance(item, dict):
            raise DriverError(f"{here} must be a JSON object")
        medium = _get(item, "type", str, here, "") or "stream"
        if medium != "stream":
            raise DriverError(f"{here} has type {medium!r}; this driver hands over folders only (type 'stream')")
        name = _get(item, "name", str, here, "")
        entry = PayloadEntry(
            name=name,
            path=_get(item, "path", str, here),
            source=_get(item, "from", str, here, ""),
            element_type=_get(item, "element_type", str, here, ""),
            output=_get(item, "output", str, here, name),
        )
        entries.append(_usable(entry, kind) if kind == "output" else entry)
    return PayloadCollection(kind, entries)


def _usable(entry: PayloadEntry, kind: str) -> PayloadEntry:
    """The entry, its folder known to be there; an output's folder is made."""
    folder = Path(entry.path)
    try:
        if kind == "output":
            folder.mkdir(parents=True, exist_ok=True)
        there = folder.is_dir()
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the path
        why = problem.strerror if isinstance(problem, OSError) else problem
        raise DriverError(f"{kind} {entry.keys[0]!r}: folder {str(folder)!r} cannot be used: {why}") from None
    if not there:
        raise DriverError(f"{kind} {entry.keys[0]!r}: there is no folder {folder}")
    return entry


def _report_dir(text: str | None) -> Path | None:
    return Path(text) if text else None


_REQUIRED = object()


def _get(document: dict[str, Any], key: str, kind: type, where: str, default: Any = _REQUIRED) -> Any:
    """The value of a key; null counts as absent."""
    value = document.get(key)
    if value is None:
        if default is _REQUIRED:
            raise DriverError(f"{where} lacks {key!r}")
        return default
    if not isinstance(value, kind):
        expected = {"str": "text", "list": "a list", "dict": "an object"}[kind.__name__]
        raise DriverError(f"{where}: {key!r} must be {expected}, found {type(value).__name__}")
    return value


def _uuid(text: str, what: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise DriverError(f"{what} must be a UUID, found {text!r}") from None


def _utc(text: str, where: str) -> datetime | None:
    if not text:
        return None
    try:
        deadline = datetime.fromisoformat(text)
        in_utc = deadline.astimezone(UTC)  # overflows within a day of the years 1 and 9999
    except (ValueError, OverflowError):
        raise DriverError(f"{where}: 'deadline' must be an ISO 8601 time, found {text!r}") from None
    if deadline.tzinfo is None:
        raise DriverError(f"{where}: 'deadline' must say its time zone (2030-01-01T00:10:00Z), found {text!r}")
    return in_utc
