"""The jobs of the soak: small pipelines of every kind, and how each may end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CATALOG = Path(__file__).parent / "catalog"
PROGRAM = CATALOG / "marking_operator.py"
TENANTS = ("radiology", "emergency", "research")
PRIORITIES = ("LOWER", "NORMAL", "NORMAL", "HIGHER")
# In a container the program comes as a variable: any image with a Python will do.
IN_CONTAINER = ["python3", "-c", "import os; exec(os.environ['PROGRAM'])"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of job.

    operators   name -> (upstreams, SCRIPT), in a topological order.
    keys        further keys of the definition.
    ends        the status that its script gives.
    is_cancelled    somebody asks for its end.
    weight      how often it comes.
    """

    name: str
    operators: dict[str, tuple[tuple[str, ...], str]]
    ends: str = "HEALTHY"
    keys: dict[str, Any] = field(default_factory=dict)
    is_cancelled: bool = False
    weight: int = 1

    def definition(self, marks: Path, image: str | None = None) -> str:
        """Its text. `image`: of containers; None: it runs as processes."""
        operators = []
        for name, (upstreams, script) in self.operators.items():
            variables = {"SCRIPT": script, "MARKS": str(marks), "PYTHONPATH": str(CATALOG)}
            container: dict[str, Any] = {"image": "soak/marking"}
            if image is not None:
                variables["PROGRAM"] = PROGRAM.read_text()
                reference, _, tag = image.rpartition(":")
                container = {"image": reference, "tag": tag, "command": IN_CONTAINER}
            inputs = [{"path": f"/in{n}", "from": upstream} for n, upstream in enumerate(upstreams)]
            operators.append(
                {
                    "name": name,
                    "container": container,
                    "variables": variables,
                    "requests": {"cpu": 1, "memory": 64},
                    "retries": 2,
                    "input": inputs or [{"path": "/in"}],
                    "output": [{"path": "/out"}],
                }
            )
        document = {"api-version": "0.4.0", "name": self.name, "operators": operators} | self.keys
        return yaml.safe_dump(document)


def chain(*scripts: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """One operator after another."""
    return {f"s{n}": ((f"s{n - 1}",) if n else (), script) for n, script in enumerate(scripts)}


def diamond(**scripts: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """a -> {b, c} -> d; `scripts` replaces what an operator does."""
    shape: dict[str, tuple[str, ...]] = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}
    return {name: (upstreams, scripts.get(name, "work:0.1 copy")) for name, upstreams in shape.items()}


KINDS = (
    Kind("soak-diamond", diamond(), weight=4),
    Kind("soak-chain", chain(*["copy"] * 4), weight=3),
    Kind("soak-long", chain("work:2 copy", "work:1 copy"), weight=3),
    Kind("soak-gang", chain("work:0.5 copy", "copy"), keys={"scheduling": "gang"}),
    Kind("soak-preemptible", chain(*["work:0.3 copy"] * 4), keys={"preemptible": "true"}, weight=2),
    Kind("soak-fastio", chain("work:0.5 copy", "copy"), keys={"fastio": 2}, weight=2),
    Kind("soak-evict", chain("work:0.5 copy", "copy"), keys={"on-restart": "evict"}, weight=1),
    Kind("soak-failing", diamond(c="work:0.2 fail:3"), ends="FAULTED", weight=2),
    Kind("soak-late", chain("copy", "hang"), ends="TERMINATED", keys={"timeout": 3}),
    Kind("soak-cancelled", chain("copy", "hang"), ends="CANCELED", is_cancelled=True),
)


def draw(chance: random.Random, kinds: Sequence[Kind] = KINDS) -> Kind:
    """The kind of the next job."""
    return chance.choices(kinds, weights=[kind.weight for kind in kinds])[0]


def kinds_in_turn(chance: random.Random) -> list[Kind]:
    """Every kind once, in a random order."""
    return chance.sample(KINDS, len(KINDS))
