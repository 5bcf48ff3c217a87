"""What an operator costs on top of the bare launch of the same command: chains of no-op operators, process and Docker.

The floor of a chain of n is n times the bare launch (a subprocess, or `docker run --rm --network none`, of the same
command on the same folders), measured in the same run. `per_operator` is the slope between the shortest and the longest
chain: what one more operator costs when the job's own costs are paid.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common import DOCKER_COMMAND, NOOP, Bench, Scale, bench, chain, timed, write
from clara_flow.deployments.trigger import compile_definition, create_job
from clara_flow.deployments.watch import JobWatch


def run_chain(house: Any, study: Path, definition: Path, runtime: str) -> str:
    """Run one job; the checksum of its last output, so that nobody speeds it up by doing less."""
    compiled = compile_definition(house.settings, definition, {})
    job = create_job(house, compiled, source=study, runtime=runtime)
    outcome = JobWatch(house, job.id).follow()
    outcome.raise_for_status()
    manifest = outcome.payload.sealed(compiled.plan.operators[-1].name)
    house.store.remove(job.payload_id)
    assert manifest is not None
    return manifest.digest


def bare_process(folder: Path, study: Path) -> None:
    """The same command line without us."""
    out = folder / "bare-out"
    out.mkdir(exist_ok=True)
    manifest = folder / "bare.json"
    manifest.write_text(json.dumps({"inputs": [{"path": str(study)}], "outputs": [{"path": str(out)}]}))
    environment = {"CLARA_IO_MANIFEST": str(manifest), "PYTHONPATH": str(NOOP), "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "-m", "noop_operator"], env=environment, check=True)


def bare_docker(folder: Path, study: Path, image: str, base_url: str) -> None:
    """`docker run` of the same command, with the mounts and without a network."""
    out = folder / "bare-docker-out"
    out.mkdir(exist_ok=True)
    mounts = ["-v", f"{study}:/in:ro", "-v", f"{out}:/out"]
    command = ["docker", "run", "--rm", "--network", "none", *mounts, image, *DOCKER_COMMAND]
    subprocess.run(command, env={**os.environ, "DOCKER_HOST": base_url}, check=True)


def measure(ground: Bench, scale: Scale, runtime: str, image: str | None, base_url: str = "") -> dict[str, Any]:
    """Bare launches and chains in turn on one runtime."""
    house, checksums, chains = ground.house, set(), {}
    if image is None:
        bare = timed(lambda: bare_process(ground.folder, ground.study), 3 * scale.rounds)
    else:
        bare = timed(lambda: bare_docker(ground.folder, ground.study, image, base_url), 3 * scale.rounds)
    for length in scale.chains:
        definition = chain(ground.folder, length, image)
        figures = timed(lambda d=definition: checksums.add(run_chain(house, ground.study, d, runtime)), scale.rounds)
        chains[str(length)] = figures | {"over_bare": round(figures["median_s"] / (length * bare["median_s"]), 3)}
    first, last = scale.chains[0], scale.chains[-1]
    slope = (chains[str(last)]["median_s"] - chains[str(first)]["median_s"]) / (last - first)
    assert len(checksums) == 1, "every chain hands the same bytes through"
    return {
        "bare_launch": bare,
        "chains": chains,
        "per_operator_s": round(slope, 4),
        "per_operator_over_bare": round(slope / bare["median_s"], 3),
        "checksum": checksums.pop(),
    }


def main(scale: Scale, results: Path) -> Path:
    """Measure and write the result."""
    import docker_engine
    import pytest

    figures: dict[str, Any] = {}
    with bench() as ground, ExitStack() as stack:
        figures["process"] = measure(ground, scale, "process", None)
        try:
            base_url = stack.enter_context(docker_engine.engine())
            image = docker_engine.ensure_base_image(base_url)
        except pytest.skip.Exception as reason:
            figures["docker"] = {"not_measured": str(reason)}
        else:
            figures["docker"] = measure(ground, scale, "docker", image, base_url)
            figures["aim"] = {"docker per_operator_over_bare": 1.25}
    return write(results, "operator_overhead", figures)
