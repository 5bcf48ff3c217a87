"""Kill what receives, groups, runs and sends at random while studies come: no instance is lost, no result, none twice.

The long form (`make soak`) takes its seed from SOAK_SEED, and prints what happened.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from platform_fixture import free_port
from soak.dicom_soak import DicomSoak, dicom_soak_settings

ONCE_EACH = (
    "adapter", "listener", "listener", "runner", "gateway", "listener", "backend", "listener", "postgres", "listener",
    "runner",
)  # fmt: skip
WEIGHTS = {
    "listener": 60, "adapter": 40, "runner": 40, "operator supervisor": 20, "backend": 25, "gateway": 10, "zygote": 8,
    "worker": 8, "postgres": 12, "prefect": 6, "supervisor": 6,
}  # fmt: skip
KILLS = 300


@pytest.fixture
def make_soak(tmp_path: Path) -> Iterator[Any]:
    made: list[DicomSoak] = []

    def make(seed: int) -> DicomSoak:
        settings = dicom_soak_settings(
            tmp_path, dicom_port=free_port(), gateway_port=free_port(), prefect_port=free_port()
        )
        soak = DicomSoak(settings, tmp_path, seed)
        made.append(soak)
        soak.up()
        soak.connect()
        soak.begin()
        return soak

    yield make
    for soak in made:
        soak.close()


def endure(soak: DicomSoak, parts: list[str], *, drain_s: float, settle_s: float) -> None:
    """Kill these parts, let everything arrive, and let nothing be wrong."""
    soak.run(parts)
    soak.drain(drain_s)
    summary = soak.summary()
    wrong = soak.settle(settle_s)
    print(summary)
    assert not wrong, "\n".join([summary, *wrong])
    assert soak.killed.total() == len(parts)
    assert soak.ledger.answered


def test_ten_kills(make_soak: Any) -> None:
    endure(make_soak(seed=4), list(ONCE_EACH), drain_s=120, settle_s=30)


@pytest.mark.soak
def test_hundreds_of_kills_while_studies_come(make_soak: Any) -> None:
    seed = int(os.environ.get("SOAK_SEED", secrets.randbelow(10**6)))
    print(f"SOAK_SEED={seed}")
    chance = random.Random(seed)  # noqa: S311
    parts = [*WEIGHTS, *chance.choices(list(WEIGHTS), weights=list(WEIGHTS.values()), k=KILLS - len(WEIGHTS))]
    chance.shuffle(parts)
    endure(make_soak(seed), parts, drain_s=300, settle_s=120)
