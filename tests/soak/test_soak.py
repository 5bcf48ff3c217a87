"""Kill the parts of a running platform at random: no job is lost, none runs twice, nothing is left.

The long form (`make soak`) takes its seed from SOAK_SEED, and prints what happened.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import pytest
from platform_fixture import free_port
from soak.containers import ContainerMarks
from soak.soak import Soak, soak_settings

# In this order what takes long to rise again rises once.
ONCE_EACH = (
    "runner", "operator", "operator supervisor", "fork server", "backend", "runner", "zygote", "postgres", "runner",
    "prefect", "worker", "supervisor",
)  # fmt: skip
WEIGHTS = {
    "runner": 50, "operator": 20, "operator supervisor": 25, "fork server": 15, "backend": 30, "zygote": 15,
    "worker": 20, "postgres": 12, "prefect": 12, "supervisor": 10,
}  # fmt: skip
CONTAINER_WEIGHTS = {"runner": 20, "container": 10, "worker": 8, "backend": 6, "postgres": 2, "zygote": 4}
KILLS = 220


@pytest.fixture
def make_soak(tmp_path: Path) -> Iterator[Any]:
    made: list[Soak] = []

    def make(seed: int, **keys: Any) -> Soak:
        settings = keys.pop("settings", {})
        soak = Soak(soak_settings(tmp_path, prefect_port=free_port(), **settings), tmp_path, seed, **keys)
        made.append(soak)
        soak.up()
        soak.connect()
        return soak

    yield make
    for soak in made:
        soak.close()


def drawn(seed: int, weights: dict[str, int], count: int) -> list[str]:
    """The parts to kill: each at least once."""
    chance = random.Random(seed)  # noqa: S311
    parts = [*weights, *chance.choices(list(weights), weights=list(weights.values()), k=count - len(weights))]
    chance.shuffle(parts)
    return parts


def endure(soak: Soak, parts: list[str], *, drain_s: float, settle_s: float) -> None:
    """Kill these parts, let everything end, and let nothing be wrong."""
    soak.run(parts)
    soak.drain(drain_s)
    summary = soak.summary()
    wrong = soak.settle(settle_s)
    print(summary)
    assert not wrong, "\n".join([summary, *wrong])
    assert soak.killed.total() == len(parts)


def test_a_dozen_kills(make_soak: Any) -> None:
    endure(make_soak(seed=20, open_jobs=3), list(ONCE_EACH), drain_s=120, settle_s=60)


@pytest.mark.soak
def test_hundreds_of_kills(make_soak: Any) -> None:
    seed = int(os.environ.get("SOAK_SEED", secrets.randbelow(10**6)))
    print(f"SOAK_SEED={seed}")
    endure(make_soak(seed), drawn(seed, WEIGHTS, KILLS), drain_s=300, settle_s=120)


@pytest.mark.soak
@pytest.mark.docker
def test_kills_while_containers_run(make_soak: Any, docker_engine: str, base_image: str) -> None:
    seed = int(os.environ.get("SOAK_SEED", secrets.randbelow(10**6)))
    print(f"SOAK_SEED={seed}")
    settings = {"docker_base_url": docker_engine, "runtime": "docker"}
    with closing(docker.APIClient(base_url=docker_engine)) as api, closing(ContainerMarks(docker_engine)) as marks:
        soak = make_soak(seed, image=base_image, engine_api=api, containers=marks, settings=settings)
        endure(soak, drawn(seed, CONTAINER_WEIGHTS, 60), drain_s=300, settle_s=120)
