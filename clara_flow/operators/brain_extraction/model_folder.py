"""The model's folder: which files it holds, where it lies, and whether it is whole.

model.onnx, bbox_model.onnx   the two networks
LICENSE.deepbet.txt           licence of the networks
model.json                    what they were made of, and the SHA-256 of each file; written last
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MODEL_NAME = "brain_extraction_deepbet"
MODEL_VERSION = "1.0.2"
BRAIN_FILE, BOX_FILE, LICENCE_FILE, RECORD_FILE = "model.onnx", "bbox_model.onnx", "LICENSE.deepbet.txt", "model.json"
CONVERTER_VERSION = 1
"""Raised when the same source gives other files; folders made by another version are made anew."""


class ModelUnusable(Exception):
    """The model's folder lacks something or is damaged; the message says how to make it."""


def default_folder() -> Path:
    """Where a stand-alone run keeps the model: `$XDG_CACHE_HOME/clara-flow/models/`, by default under `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "clara-flow" / "models" / MODEL_NAME


def read_record(folder: Path) -> dict[str, Any]:
    """The folder's `model.json`, its files checked against it.

    Raises ModelUnusable where a file is missing, damaged or of another version.
    """

    def unusable(why: str) -> ModelUnusable:
        remedy = f"python -m clara_flow.operators.brain_extraction.prepare_model --destination {folder}"
        return ModelUnusable(f"the model {MODEL_NAME} in {folder} cannot be used: {why}. Make it with: {remedy}")

    try:
        record: dict[str, Any] = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        digests = {name: record["files"][name]["sha256"] for name in (BRAIN_FILE, BOX_FILE, LICENCE_FILE)}
        made_by = (record["version"], record["converter"]["version"])
    except OSError as problem:
        raise unusable(f"{RECORD_FILE}: {problem.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise unusable(f"{RECORD_FILE} is damaged") from None
    if made_by != (MODEL_VERSION, CONVERTER_VERSION):
        raise unusable(f"it is version {made_by[0]} made by converter {made_by[1]}")
    for name, digest in digests.items():
        try:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as problem:
            raise unusable(f"{name}: {problem.strerror}") from None
        if found != digest:
            raise unusable(f"{name} is damaged")
    return record
