"""Simulate a day of jobs: definitions become what the ledger's simulator knows, and policies are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from clara_flow.deployments.pipelines import read_definition
from clara_flow.errors import InputError, SettingsError
from clara_flow.flows.compiler import Defaults, compile_pipeline
from clara_flow.infra.ledger.simulation import files
from clara_flow.infra.ledger.simulation.baselines import BASELINES
from clara_flow.infra.ledger.simulation.engine import Simulation
from clara_flow.infra.ledger.simulation.policy import LEDGER, Policy
from clara_flow.infra.ledger.simulation.report import Report, report
from clara_flow.infra.ledger.simulation.workload import Duration, SimOperator, SimPipeline, Workload
from clara_flow.plan import Plan
from clara_flow.settings import Settings
from clara_flow.tasks.demand import GANG, job_amounts, operator_amounts

Progress = Callable[[str, float], None]


def load_workload(
    settings: Settings, *, arrivals: Path, nodes: Path, pipelines: Path, quotas: Path | None = None, seed: int = 0
) -> Workload:
    """Read what a simulation needs. Raises InputError.

    pipelines   folder of definitions (*.yaml), with a file `durations.yaml` that says how long their operators last.
    """
    known = load_pipelines(settings, pipelines)
    rows = []
    for arrival in files.read_arrivals(arrivals):
        if arrival.pipeline not in known:
            have = ", ".join(sorted(known))
            raise InputError(f"{arrivals}: {pipelines} has no pipeline {arrival.pipeline!r}; it has {have}")
        plan, _ = known[arrival.pipeline]
        rows.append(replace(arrival, tenant=arrival.tenant or plan.tenant or settings.tenant))
    machines, events = files.read_nodes(nodes)
    return Workload(
        pipelines={name: pipeline for name, (_, pipeline) in known.items()},
        arrivals=tuple(rows),
        nodes=tuple(machines),
        events=tuple(events),
        quotas=tuple(files.read_quotas(quotas)) if quotas is not None else (),
        seed=seed,
        ageing_s=settings.ageing_s,
        lease_ttl_s=settings.lease_ttl_s,
    )


def load_pipelines(settings: Settings, folder: Path) -> dict[str, tuple[Plan, SimPipeline]]:
    """The definitions of a folder by their pipelines' names. Raises InputError, DefinitionInvalid."""
    durations = files.read_durations(folder / files.DURATIONS_FILE)
    defaults = Defaults(cpu=settings.operator_cpu_default, memory_mib=settings.operator_memory_default_mib)
    found: dict[str, tuple[Plan, SimPipeline]] = {}
    for path in sorted(folder.glob("*.yaml")):
        if path.name == files.DURATIONS_FILE:
            continue
        compiled = compile_pipeline(read_definition(path), source=str(path), root=folder, defaults=defaults)
        plan = compiled.require_plan()
        if plan.name in found:
            raise InputError(f"{path}: another definition of {folder} has the name {plan.name!r}, too")
        lasting = durations.get(plan.name, {})
        if missing := [operator.name for operator in plan.operators if operator.name not in lasting]:
            raise InputError(
                f"{folder / files.DURATIONS_FILE} does not say how long these operators of {plan.name!r} last: "
                f"{', '.join(missing)}"
            )
        found[plan.name] = plan, to_pipeline(settings, plan, lasting)
    return found


def to_pipeline(settings: Settings, plan: Plan, durations: dict[str, Duration]) -> SimPipeline:
    """A plan as the simulator knows it: amounts as the platform asks for them, limits as it sets them."""
    return SimPipeline(
        name=plan.name,
        operators=tuple(
            SimOperator(
                name=operator.name,
                amounts=operator_amounts(operator),
                duration=durations[operator.name],
                upstreams=operator.upstreams,
                limit_s=operator.timeout_s,
            )
            for operator in plan.operators
        ),
        job=job_amounts(plan),
        gang=plan.scheduling == GANG,
        preemptible=plan.preemptible,
        limit_s=plan.timeout_s or settings.job_timeout_s,
        grace_s=settings.stop_grace_s,
    )


def policies(names: Iterable[str]) -> list[Policy]:
    """The ledger, and the baselines of these names. Raises SettingsError."""
    chosen = [LEDGER]
    for name in names:
        if name not in BASELINES:
            raise SettingsError(f"there is no policy {name!r} to compare with; there are {', '.join(BASELINES)}")
        chosen.append(BASELINES[name])
    return chosen


def simulate(
    workload: Workload, against: Sequence[Policy], *, progress: Progress = lambda policy, share: None
) -> list[Report]:
    """Replay the workload under each policy.

    progress    called with a policy's name and the share (0 to 1) of its jobs that have ended.
    """
    reports = []
    for policy in against:
        simulation = Simulation(workload, policy, progress=partial(progress, policy.name))
        simulation.run()
        reports.append(report(simulation))
    return reports
