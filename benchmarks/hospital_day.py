"""The hospital day on four GPUs: the ledger against whole-job reservation and first-come-first-served.

Questions to the simulator: how a day of 1,500 studies goes; how many jobs an hour come through when the multi-AI mix
(half of it multi-AI, published by Clara with six GPUs) never runs dry, or the day's own jobs do not; and whether
four tenants that all want more than there is get what their weights say. Virtual time: only `simulated_in_s` depends on
the machine.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.common import HERE, Scale, write
from clara_flow.deployments.simulate import load_workload, policies, simulate
from clara_flow.infra.ledger.model import Quota
from clara_flow.infra.ledger.simulation.report import Report
from clara_flow.infra.ledger.simulation.workload import Arrival, Workload
from clara_flow.settings import Settings

DAY = HERE.parent / "tests" / "data" / "hospital_day"
MULTI_AI_MIX = ("multi-ai", "liver-tumor", "multi-ai", "brain-tumor")
WEIGHTS = {"EMERGENCY": 4.0, "RADIOLOGY": 4.0, "WARD": 2.0, "RESEARCH": 1.0}
HOUR_S = 3600.0


def main(scale: Scale, results: Path) -> Path:
    """Simulate and write the result."""
    smoke = scale.rounds == 1
    day = load_workload(
        Settings(),
        arrivals=DAY / "arrivals.csv",
        nodes=DAY / "nodes.yaml",
        pipelines=DAY / "pipelines",
        quotas=DAY / "quotas.yaml",
    )
    if smoke:
        peak = tuple(arrival for arrival in day.arrivals if 10 <= arrival.at_s / HOUR_S < 11)
        day = replace(day, arrivals=peak)
    figures: dict[str, Any] = {
        "day": compared(day),
        "multi_ai_saturated": compared(saturated(day, jobs=20 if smoke else 400)),
        "day_saturated": compared(at_once(day)),
        "overload": compared(overload(day, hours=1 if smoke else 6)),
    }
    saturation, crowd = figures["multi_ai_saturated"]["policies"], figures["overload"]["policies"]
    simulated = [figures[name]["policies"] for name in figures]
    own = figures["day_saturated"]["policies"]
    figures["found"] = {
        "jobs_per_hour_over_whole_job": over_whole_job(saturation),
        "jobs_per_hour_over_whole_job of the day's own mix": over_whole_job(own),
        "fairness_under_overload": crowd["ledger"]["fairness"],
    }
    checksum = hashlib.sha256(json.dumps(simulated).encode())
    aim = {"jobs_per_hour_over_whole_job": 2.0, "fairness_under_overload": 0.95, "simulated_in_s of the day": 60}
    return write(results, "hospital_day", {**figures, "aim": aim, "checksum": checksum.hexdigest()})


def saturated(day: Workload, jobs: int) -> Workload:
    """The multi-AI mix, all of it there at once; one tenant, no quotas, one priority."""
    names = itertools.islice(itertools.cycle(MULTI_AI_MIX), jobs)
    return replace(day, arrivals=tuple(Arrival(at_s=0.0, pipeline=name) for name in names), quotas=())


def at_once(day: Workload) -> Workload:
    """The day's own jobs, all of them there at once; one tenant, no quotas, one priority."""
    return replace(day, arrivals=tuple(Arrival(at_s=0.0, pipeline=job.pipeline) for job in day.arrivals), quotas=())


def overload(day: Workload, hours: int) -> Workload:
    """Every tenant alone sends the multi-AI mix faster than the pool can run it; weights, but no limits."""
    arrivals = tuple(
        Arrival(at_s=at_s, pipeline=MULTI_AI_MIX[number % len(MULTI_AI_MIX)], tenant=tenant)
        for number, at_s in enumerate(range(0, int(hours * HOUR_S), 30))
        for tenant in WEIGHTS
    )
    quotas = tuple(Quota(tenant=tenant, weight=weight) for tenant, weight in WEIGHTS.items())
    return replace(day, arrivals=arrivals, quotas=quotas)


def compared(workload: Workload) -> dict[str, Any]:
    """The figures of all policies, and how long it took to get them."""
    start = perf_counter()
    reports = simulate(workload, policies(["whole-job", "fifo"]))
    return {
        "jobs": len(workload.arrivals),
        "policies": {report.policy: chosen(report) for report in reports},
        "simulated_in_s": round(perf_counter() - start, 2),
    }


def over_whole_job(found: dict[str, Any]) -> float:
    """Completed jobs per hour of the ledger, over those of whole-job reservation."""
    return round(float(found["ledger"]["jobs_per_hour"]) / float(found["whole-job"]["jobs_per_hour"]), 2)


def chosen(report: Report) -> dict[str, Any]:
    """What is worth keeping of a report."""
    facts = report.as_json()
    del facts["hours"], facts["turnarounds_by_pipeline"], facts["turnarounds_by_priority"], facts["policy"]
    return facts
