"""Models that a job's operators need: there before the first operator starts, made once, shared by all jobs.

A model's folder is `<data_dir>/models/<name>`; it is ready when it holds `model.json`, which whoever makes it writes
last. Bundled operators say in their `operator.yaml` how theirs is made: a Python command that prints progress as JSON
lines `{"progress": 0..1, "message": "..."}`.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

from clara_flow.errors import LauncherUnavailable
from clara_flow.infra.images.catalog import Catalog
from clara_flow.plan import Plan
from clara_flow.tasks.job_context import JobContext

READY_MARK = "model.json"
LAST_LINES = 15

Progress = Callable[[str, float, str], None]


def model_digest(folder: Path) -> str:
    """SHA-256 (hex) of the model's `model.json`, which names its files by hash."""
    return hashlib.sha256((folder / READY_MARK).read_bytes()).hexdigest()


def recipes(plan: Plan, catalog: Catalog) -> dict[str, tuple[str, ...]]:
    """How each model that the plan needs is made: arguments of `python`, by the model's name.

    Raises LauncherUnavailable for a model that nothing bundled brings (rule P14: models exist).
    """
    known = {model.name: model.prepare for operator in catalog.operators.values() for model in operator.models}
    wanted = {model.name: operator.name for operator in plan.operators for model in operator.models}
    for name, operator in wanted.items():
        if name not in known:
            raise LauncherUnavailable(
                f"operator {operator!r} needs the model {name!r}, which is not there; "
                f"there is {', '.join(sorted(known))}"
            )
    return {name: known[name] for name in wanted}


async def ensure_models(job: JobContext) -> None:
    """Make every model of the job's plan ready and note its folder in `job.models`."""
    models_dir = job.settings.data_dir / "models"
    for name, prepare in recipes(job.plan, job.catalog).items():
        job.models[name] = await ensure_model(name, prepare, models_dir, job.on_model_progress)


async def ensure_model(name: str, prepare: tuple[str, ...], models_dir: Path, on_progress: Progress) -> Path:
    """The model's folder, made now when it is not ready yet.

    prepare         arguments of `python` that make it, `--destination FOLDER` is added.
    on_progress     (model name, done 0..1, message), while it is made.
    Raises LauncherUnavailable with the last lines of what it printed when it cannot be made.
    """
    folder = models_dir / name
    if (folder / READY_MARK).is_file():
        return folder
    models_dir.mkdir(parents=True, exist_ok=True)
    with (models_dir / f".{name}.lock").open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        if not (folder / READY_MARK).is_file():  # else another job made it while this one waited
            await _make(name, prepare, folder, on_progress)
    return folder


async def _make(name: str, prepare: tuple[str, ...], folder: Path, on_progress: Progress) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *prepare,
        "--destination",
        str(folder),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        stdin=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None  # noqa: S101  asked for above
    said: list[str] = []
    try:
        async for raw in process.stdout:
            line = raw.decode(errors="replace").strip()
            try:
                told = json.loads(line)
                on_progress(name, float(told["progress"]), str(told["message"]))
            except (ValueError, TypeError, KeyError):
                said = [*said[1 - LAST_LINES :], line]
        exit_code = await process.wait()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if exit_code != 0 or not (folder / READY_MARK).is_file():
        raise LauncherUnavailable(
            "\n".join([f"model {name!r} could not be made (exit status {exit_code}). It said:", *said[-LAST_LINES:]])
        )
