"""`clara-flow simulate`: a day of arrivals on machines that need not exist yet."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from clara_flow.deployments.simulate import Progress
    from clara_flow.infra.ledger.simulation.measures import Spread
    from clara_flow.infra.ledger.simulation.policy import Policy
    from clara_flow.infra.ledger.simulation.report import Report
    from clara_flow.infra.ledger.simulation.workload import Workload

NO_POLICY = "none"


def simulate(
    arrivals: Annotated[Path, typer.Option(help="Jobs: CSV or JSON lines with at, pipeline, tenant, priority.")],
    nodes: Annotated[Path, typer.Option(help="Machines, and what happens to them (YAML).")],
    pipelines: Annotated[Path, typer.Option(help="Folder of definitions, and durations.yaml.")],
    quotas: Annotated[Path | None, typer.Option(help="Quotas of tenants (YAML); none when absent.")] = None,
    against: Annotated[
        str, typer.Option(help="Ways of sharing to compare with, by commas: whole-job, fifo; or none.")
    ] = "whole-job,fifo",
    seed: Annotated[int, typer.Option(help="Of the operators' durations: the same seed, the same report.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Replay a day of arrivals through the pool's own ledger on a virtual clock, and say who waits how long.

    Nothing runs and no platform is needed. The settings ageing_s, lease_ttl_s, job_timeout_s and stop_grace_s count.

    Example: clara-flow simulate --arrivals day.csv --nodes nodes.yaml --pipelines pipelines/ --quotas quotas.yaml
    """
    from clara_flow.deployments import simulate as simulator
    from clara_flow.settings import load_settings

    names = [] if against == NO_POLICY else [name.strip() for name in against.split(",") if name.strip()]
    chosen = simulator.policies(names)
    workload = simulator.load_workload(
        load_settings(), arrivals=arrivals, nodes=nodes, pipelines=pipelines, quotas=quotas, seed=seed
    )
    reports = _watched(lambda progress: simulator.simulate(workload, chosen, progress=progress), chosen)
    if as_json:
        typer.echo(json.dumps({"seed": seed, "policies": [report.as_json() for report in reports]}, indent=2))
    else:
        _show(workload, reports)


def _watched(work: Callable[[Progress], list[Report]], chosen: Sequence[Policy]) -> list[Report]:
    """Do it with a bar for each policy on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True, disable=not Console(stderr=True).is_terminal) as bars:
        tasks = {policy.name: bars.add_task(policy.name, total=1.0) for policy in chosen}
        return work(lambda name, share: bars.update(tasks[name], completed=share))


def _show(workload: Workload, reports: Sequence[Report]) -> None:
    from rich.console import Console

    console = Console()
    gpus = sum(len(node.devices) for node in workload.nodes)
    console.print(f"{len(workload.arrivals)} jobs on {len(workload.nodes)} machine(s) with {gpus} GPU(s)")
    _show_figures(console, reports)
    _show_spreads(console, "Wait until the first operator starts, by priority", reports, lambda r: r.waits_by_priority)
    _show_spreads(console, "Wait until the first operator starts, by tenant", reports, lambda r: r.waits_by_tenant)
    _show_spreads(console, "From arrival to the end, by pipeline", reports, lambda r: r.turnarounds_by_pipeline)
    _show_hours(console, reports[0])


def _show_figures(console: Console, reports: Sequence[Report]) -> None:
    from rich.table import Table

    rows: dict[str, Callable[[Report], str]] = {
        "jobs completed": lambda r: str(r.jobs["completed"]),
        "  stopped by their time limit": lambda r: str(r.jobs["timed-out"]),
        "  refused, for they never fit": lambda r: str(r.jobs["refused"]),
        "  never served": lambda r: str(r.jobs["unserved"]),
        "  cut to what the machine has": lambda r: str(r.cut),
        "completed jobs per hour": lambda r: f"{r.jobs_per_hour:.1f}",
        "makespan": lambda r: _time(r.makespan_s),
        "GPUs held": lambda r: f"{r.gpu_held:.1%}",
        "GPUs busy": lambda r: f"{r.gpu_used:.1%}",
        "cores held": lambda r: f"{r.cpu_held:.1%}",
        "wait p50 / p95 / longest": lambda r: _spread(r.waits),
        "to the end p50 / p95 / longest": lambda r: _spread(r.turnarounds),
        "preemptions": lambda r: str(r.preemptions),
        "lost with a machine": lambda r: str(r.losses),
        "longest wait of any request": lambda r: _time(r.longest_wait_s),
        "  of the promised bound": lambda r: "-" if r.bound_used is None else f"{r.bound_used:.1%}",
        "several tenants wait for": lambda r: _time(r.contended_s),
        "  Jain's fairness index": lambda r: f"{r.fairness:.3f}",
    }
    table = Table("", *(report.policy for report in reports))
    for name, figure in rows.items():
        table.add_row(name, *(figure(report) for report in reports))
    console.print(table)


def _show_spreads(
    console: Console, title: str, reports: Sequence[Report], groups: Callable[[Report], Mapping[str, Spread]]
) -> None:
    from rich.table import Table

    table = Table("", "jobs", *(f"{report.policy}: p50 / p95 / longest" for report in reports), title=title)
    for name, spread in groups(reports[0]).items():
        others = [groups(report).get(name) for report in reports]
        table.add_row(name, str(spread.count), *(_spread(other) if other else "-" for other in others))
    console.print(table)


def _show_hours(console: Console, report: Report) -> None:
    from rich.table import Table

    table = Table("hour", "jobs", "wait p95", "GPUs busy", title=f"Hour by hour ({report.policy})")
    for hour in report.hours:
        table.add_row(f"{hour.hour:02}", str(hour.arrived), _time(hour.wait_p95_s), f"{hour.gpu_used:.0%}")
    console.print(table)


def _spread(spread: Spread) -> str:
    return " / ".join(_time(seconds) for seconds in (spread.p50_s, spread.p95_s, spread.max_s))


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
