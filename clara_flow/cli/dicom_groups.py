"""`clara-flow dicom groups` and `clara-flow dicom explain`: what was received, what it waits for, what it became."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clara_flow.cli.records import DataDir, records
from clara_flow.cli.tables import print_table

if TYPE_CHECKING:
    from clara_flow.records.dicom_models import Delivery, Group
    from clara_flow.records.dicom_steps import StepFacts
    from clara_flow.services.dicom.grouping.explain import Choice, Explanation, MadeJob

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)

Reference = Annotated[str, typer.Argument(metavar="GROUP", help="Id of the group, or the beginning of it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
LIVE = ("OPEN", "COMPLETE", "FAILED")
WORDS = {  # of a group's state, and what its reason is the reason for
    "OPEN": ("takes instances", "waits"),
    "COMPLETE": ("complete, its jobs are being made", "complete"),
    "SUBMITTED": ("complete, its jobs were made", "complete"),
    "FAILED": ("its jobs could not be made", "failed"),
    "DISCARDED": ("discarded", "discarded"),
}


def register(dicom: typer.Typer) -> None:
    """Add these commands to `clara-flow dicom`."""
    dicom.add_typer(app, name="groups")
    dicom.command("explain")(explain)


@app.callback()
def groups() -> None:
    """List groups of received instances, make the jobs of one now, or give one up.

    Example: clara-flow dicom groups list
    """


@app.command("list")
def list_(
    all_: Annotated[bool, typer.Option("--all", help="Those that are over, too.")] = False,
    aetitle: Annotated[str | None, typer.Option(help="Only of this AE title (its name).", show_default=False)] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Show this many, the newest on top.")] = 20,
    json_: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Show the groups that take instances, wait for their jobs, or failed.

    Example: clara-flow dicom groups list --aetitle BRAIN --all
    """
    from clara_flow.records import dicom_group_queries as queries
    from clara_flow.records.dicom_models import GroupState

    states = [] if all_ else [GroupState(state) for state in LIVE]
    with records(data_dir) as engine:
        rows = queries.list_groups(engine, states=states, aetitle=aetitle, limit=limit)
    if json_:
        typer.echo(json.dumps([_facts(row) for row in rows], indent=2))
        return
    cells = [
        {
            "group": row.id.hex[:8],
            "AE title": row.aetitle,
            "from": row.calling_ae,
            "state": row.state.lower(),
            "instances": f"{row.instances} of {row.expected}" if row.expected else str(row.instances),
            "opened": f"{row.opened:%Y-%m-%d %H:%M:%S}",
        }
        for row in rows
    ]
    none = "There is no group." if all_ else "There is no group. (--all shows those that are over, too.)"
    print_table(cells, none, notes=[row.message or row.rule for row in rows])


@app.command()
def retry(group: Reference, data_dir: DataDir = None) -> None:
    """Make the jobs of a group now: of one that failed, or of one that waits for more instances.

    Jobs that it has already are not made again. Exit status 3 when its jobs were all made, or it was discarded.

    Example: clara-flow dicom groups retry 3f2a91
    """
    from clara_flow.records import dicom_group_queries as queries
    from clara_flow.records import dicom_groups

    with records(data_dir) as engine:
        found = dicom_groups.retry(engine, queries.get_group(engine, group).id)
    typer.echo(f"the jobs of group {found.id} are made now")


@app.command()
def discard(
    group: Reference,
    reason: Annotated[str, typer.Option(help="Kept with the group, for people.")] = "",
    data_dir: DataDir = None,
) -> None:
    """Give a group up: no job is made of it, and its files are removed. Exit status 3 when its jobs were made.

    Example: clara-flow dicom groups discard 3f2a91 --reason "sent by mistake"
    """
    from clara_flow.records import dicom_group_queries as queries
    from clara_flow.records import dicom_groups

    with records(data_dir) as engine:
        found = dicom_groups.discard(engine, queries.get_group(engine, group).id, reason)
    typer.echo(f"group {found.id} is discarded")


def explain(
    study: Annotated[str, typer.Argument(metavar="STUDY_UID", help="Study Instance UID.")],
    json_: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Say what became of a study: why it waits, which rules hold, its jobs, and whether their results were delivered.

    The rules are tried on what was received, and nothing is changed. Exit status 3 when nothing of it was received.

    Example: clara-flow dicom explain 1.2.840.113619.2.55.3.1
    """
    from clara_flow.services.dicom.grouping.explain import explain as explained

    with records(data_dir) as engine:
        found = explained(engine, study.strip())
    if json_:
        typer.echo(json.dumps([_explained(one) for one in found], indent=2))
        return
    typer.echo("\n\n".join(_told(one) for one in found))


def _facts(row: Group) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "aetitle": row.aetitle,
        "callingAe": row.calling_ae,
        "calledAe": row.called_ae,
        "state": str(row.state),
        "instances": row.instances,
        "bytes": row.size_bytes,
        "expected": row.expected,
        "opened": row.opened.isoformat(),
        "rule": row.rule,
        "attempts": row.attempts,
        "amends": str(row.amends) if row.amends else None,
        "message": row.message,
    }


def _explained(one: Explanation) -> dict[str, Any]:
    facts = _facts(one.group)
    if one.expected is not None:
        facts["expected"] = one.expected.instances
    choices = [{"label": c.label, "pipeline": c.pipeline, "rule": c.rule, "chosen": c.chosen} for c in one.choices]
    made = [_job_facts(job) for job in one.jobs]
    steps = [{"status": s.status, "named": s.named, "received": s.here, "missing": s.missing} for s in one.steps]
    return {**facts, "why": one.why, "steps": steps, "pipelines": choices, "jobs": made, "problem": one.problem}


def _job_facts(job: MadeJob) -> dict[str, Any]:
    sent = [
        {"id": str(row.id), "destination": row.destination, "state": str(row.state), "reason": row.message}
        for row in job.deliveries
    ]
    return {"label": job.label, "job": job.job_id, "state": job.state, "message": job.message, "deliveries": sent}


def _told(one: Explanation) -> str:
    from clara_flow.records.state_machine import JobPhase
    from clara_flow.services.dicom.grouping.explain import FATES

    row = one.group
    state, why = WORDS[row.state]
    facts = [
        (
            "received",
            f"{row.instances} instances for {row.aetitle} from {row.calling_ae}, since {row.opened:%F %T} UTC",
        ),
        (why, one.why.removeprefix("waits ")),
    ]
    expected = one.expected.instances if one.expected else row.expected
    if expected is not None:
        facts.append(("expected", f"{expected}" + (f" ({one.expected.source})" if one.expected else "")))
    if row.amends:
        facts.append(("amends", f"group {row.amends}"))
    facts += [("MPPS", _step(step)) for step in one.steps]
    facts += [("pipeline", _choice(choice)) for choice in one.choices]
    for job in one.jobs:
        facts.append(("job", f"{job.job_id} of {job.label} {job.fate}{f': {job.message}' if job.message else ''}"))
        facts += [("delivery", _delivery(row)) for row in job.deliveries]
        if job.fate == FATES[JobPhase.COMPLETED] and not job.deliveries:
            facts.append(("delivery", "none: its pipeline registered no results"))
    if one.problem:
        facts.append(("problem", one.problem))
    return "\n".join([f"group {row.id}: {state}", *(f"  {heading:<10}  {text}" for heading, text in facts)])


def _step(step: StepFacts) -> str:
    """What the modality said of its procedure step, and what came of that."""
    missing = f", {step.missing} did not come" if step.missing else ""
    return f"a step is {step.status.lower()}: it made {step.named} instances, {step.here} are here{missing}"


def _choice(choice: Choice) -> str:
    """Whether the group becomes a job of it, and by which rule."""
    name = choice.label if choice.label == choice.pipeline else f"{choice.label} ({choice.pipeline})"
    if not choice.rule:
        return f"{name} {'is for all that comes' if choice.chosen else 'is not for this group'}"
    return f"{name}: its rule {'holds' if choice.chosen else 'does not hold'}: {choice.rule}"


def _delivery(row: Delivery) -> str:
    target = row.destination or row.agent
    state = "discarded" if row.discarded else str(row.state)
    return f"{str(row.id)[:8]} to {target}: {state}{f': {row.message}' if row.message else ''}"
