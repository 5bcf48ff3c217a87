"""What the benchmarks share: a platform of their own, statistics, results on disk."""

from __future__ import annotations

import json
import os
import platform as machine
import socket
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from clara_flow.deployments.trigger import House
from clara_flow.infra.images.catalog import installed
from clara_flow.records.database import connect
from clara_flow.services.platform import PlatformHandle, ensure_platform
from clara_flow.settings import load_settings

HERE = Path(__file__).parent
NOOP = HERE / "noop"
RESULTS = HERE / "results"
DOCKER_COMMAND = ["sh", "-c", "cp /in/* /out/"]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much to measure: `smoke` runs in a test so that nothing here rots, `full` on request."""

    rounds: int
    chains: tuple[int, ...]


SMOKE = Scale(rounds=1, chains=(1, 2))
FULL = Scale(rounds=7, chains=(1, 5, 20))


@dataclass(frozen=True, slots=True)
class Bench:
    """A platform with nothing on it but the benchmark."""

    platform: PlatformHandle
    house: House
    folder: Path
    study: Path


@contextmanager
def bench(*, dicom: bool = False) -> Iterator[Bench]:
    """A fresh platform in a temporary folder on free ports, and an input of one small file.

    dicom       whether it receives DICOM, of anybody.
    """
    import docker_engine  # of the tests

    with tempfile.TemporaryDirectory(prefix="clara-flow-bench-") as name:
        folder = Path(name)
        settings = load_settings(
            data_dir=folder / "data",
            prefect_port=free_port(),
            dicom_port=free_port() if dicom else 0,
            dicom_reject_unknown_sources=False,
            gateway_port=0,
            catalogs=(HERE,),
            docker_base_url=docker_engine.expected_url(),
        )
        platform = ensure_platform(settings)
        os.environ.update(platform.prefect_environment)
        engine = connect(platform.database_url)
        study = folder / "study"
        study.mkdir()
        (study / "one.txt").write_text("one\n")
        try:
            house = House(settings=settings, engine=engine, catalog=installed(settings.catalogs))
            yield Bench(platform, house, folder, study)
        finally:
            engine.dispose()
            platform.stop()


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def chain(folder: Path, length: int, image: str | None = None, stamp: str = "") -> Path:
    """A definition of `length` no-op operators in a row; with `image` for Docker, else ours.

    stamp   name of a file in the first one's output that tells when it began.
    """
    container: dict[str, Any] = {"image": "bench/noop"}
    if image is not None:
        name, _, tag = image.rpartition(":")
        container = {"image": name, "tag": tag, "command": DOCKER_COMMAND}
    operators = [
        {
            "name": f"step-{number}",
            "container": container,
            "variables": {"PYTHONPATH": str(NOOP)} | ({"NOOP_STAMP": stamp} if stamp and not number else {}),
            "requests": {"cpu": 1, "memory": 256},
            "input": [{"path": "/in"} | ({"from": f"step-{number - 1}"} if number else {})],
            "output": [{"path": "/out"}],
        }
        for number in range(length)
    ]
    path = folder / f"chain-{length}-{'docker' if image else 'process'}.yaml"
    path.write_text(yaml.safe_dump({"api-version": "0.4.0", "name": f"chain-{length}", "operators": operators}))
    return path


def timed(work: Callable[[], object], rounds: int, *, warm_up: int = 1) -> dict[str, float]:
    """Seconds that `work` takes: median, minimum and maximum of `rounds` runs after the warm-up."""
    import time

    seconds = []
    for number in range(warm_up + rounds):
        start = time.perf_counter()
        work()
        if number >= warm_up:
            seconds.append(time.perf_counter() - start)
    return summary(seconds)


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, minimum, maximum, and how many."""
    return {
        "median_s": round(statistics.median(seconds), 4),
        "min_s": round(min(seconds), 4),
        "max_s": round(max(seconds), 4),
        "runs": len(seconds),
    }


def write(results: Path, name: str, figures: dict[str, Any]) -> Path:
    """Write `<results>/<name>.json` with what the machine was."""
    from importlib.metadata import version

    results.mkdir(parents=True, exist_ok=True)
    facts = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "python": machine.python_version(),
        "prefect": version("prefect"),
        "load_1min": round(os.getloadavg()[0], 2),
    }
    path = results / f"{name}.json"
    path.write_text(json.dumps({"benchmark": name, "machine": facts, "figures": figures}, indent=2) + "\n")
    sys.stdout.write(path.read_text())
    return path
