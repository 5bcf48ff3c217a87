"""`clara-flow queue` and `clara-flow cancel`: who waits for what, and how to end it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from clara_flow.cli.records import DataDir, records


def queue(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Show this many, those served first on top.")] = 20,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show what waits: its place in the queue, what it waits for, who holds that, and when it will probably begin.

    The order is the one in which the pool would serve it now; more urgent jobs that come later go before.

    Example: clara-flow queue --limit 50
    """
    from rich.console import Console
    from rich.table import Table

    from clara_flow.deployments.queue import waiting
    from clara_flow.settings import load_settings

    with records(data_dir) as engine:
        rows, total = waiting(engine, limit=limit, ageing_s=load_settings(data_dir=data_dir).ageing_s)
    if json_:
        typer.echo(json.dumps([row.as_json() for row in rows], indent=2))
        return
    console = Console()
    if not rows:
        console.print("Nothing waits.")
        return
    table = Table(title=f"{total} waiting", title_justify="left", padding=(0, 1, 0, 0), box=None)
    for heading in ("#", "job", "name", "tenant", "priority", "waited", "begins in"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis", max_width=28)
    table.add_column("waits for", overflow="fold", ratio=1)
    for row in rows:
        begins = "?" if row.begins_in_s is None else f"{row.begins_in_s:.0f} s"
        name = f"{row.name}/{row.operator}" if row.operator else row.name
        table.add_row(
            str(row.position), str(row.job_id)[:8], name, row.tenant, row.priority.lower(), f"{row.waited_s:.0f} s",
            begins, row.reason.removeprefix("waits for "),
        )  # fmt: skip
    console.print(table)


def cancel(
    job: Annotated[str, typer.Argument(help="Id of the job, or the beginning of it.")],
    reason: Annotated[str, typer.Option(help="Kept with the job, for people.")] = "",
    data_dir: DataDir = None,
) -> None:
    """End a job: a waiting one at once, a running one after its operators were stopped (about a second).

    A job that is over stays as it is. Exit status 3 when there is no such job.

    Example: clara-flow cancel 3f2a91
    """
    from clara_flow.records import jobs
    from clara_flow.records.state_machine import JobState

    with records(data_dir) as engine:
        found = jobs.cancel_job(engine, jobs.get_job(engine, job).id, reason=reason)
    if found.state is JobState.STOPPED:
        typer.echo(f"job {found.id} is {found.state}/{found.status}")
    else:
        typer.echo(f"job {found.id} is being stopped")
