"""Small pipelines of scripted operators, for tests of everything above the launchers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from clara_flow.infra.images.catalog import Catalog

TINY = Path(__file__).parent


def tiny_catalog() -> Catalog:
    """The catalog with the one scripted operator."""
    return Catalog.load(TINY, TINY / "images.yaml")


def scripted(name: str, *upstreams: str, script: str = "copy", **keys: Any) -> dict[str, Any]:
    """One operator of a definition; without upstreams it reads the payload."""
    inputs = [{"path": f"/in{n}", "from": upstream} for n, upstream in enumerate(upstreams)] or [{"path": "/in"}]
    return {
        "name": name,
        "container": {"image": "test/scripted"},
        "variables": {"SCRIPT": script, "PYTHONPATH": str(TINY)},
        "requests": {"cpu": 1, "memory": 128},
        "input": inputs,
        "output": [{"path": "/out"}],
    } | keys


def write_definition(path: Path, *operators: Mapping[str, Any], **keys: Any) -> Path:
    """A definition file of these operators."""
    document = {"api-version": "0.4.0", "name": "tiny", "operators": list(operators)} | keys
    path.write_text(yaml.safe_dump(document))
    return path


def diamond(**scripts: str) -> list[dict[str, Any]]:
    """a -> {b, c} -> d, and c -> e; `scripts` replaces the script of an operator."""
    shape = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ("c",)}
    return [scripted(name, *ups, script=scripts.get(name, "copy")) for name, ups in shape.items()]
