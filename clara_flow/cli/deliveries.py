"""`clara-flow results`: what is delivered, what could not be, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clara_flow.cli.records import DataDir, records

if TYPE_CHECKING:
    import sqlalchemy as sa

    from clara_flow.records.dicom_models import Delivery, DeliveryItem, DeliveryState

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Deliveries = Annotated[list[str], typer.Argument(help="Ids of deliveries, or the beginnings of them.")]
Destination = Annotated[str | None, typer.Option("--destination", "-d", help="Only those for this destination.")]
SHOWN_DIGITS = 8
UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


@app.callback()
def results() -> None:
    """Show deliveries of results; try those again that failed, or give them up.

    A delivery is the files of one job for one destination. It is Pending, InProgress, Succeeded or Failed.

    Example: clara-flow results list --state failed
    """


@app.command("list")
def list_(
    state: Annotated[
        str | None, typer.Option("--state", "-s", help="pending, inprogress, succeeded or failed.", show_default=False)
    ] = None,
    destination: Destination = None,
    agent: Annotated[str | None, typer.Option("--agent", "-a", help="Only those of this agent.")] = None,
    job: Annotated[str | None, typer.Option("--job", "-j", help="Only those of this job (its whole id).")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Show this many, the newest first.")] = 20,
    json_: Json = False,
    data_dir: DataDir = None,
) -> None:
    """List deliveries, the newest first: their state, where they go, how often they were tried again, and why.

    \b
    Examples: clara-flow results list
              clara-flow results list --state failed --destination PACS --json
    """
    from clara_flow.records import deliveries

    wanted = _state(state)
    with records(data_dir) as engine:
        rows = deliveries.list_deliveries(
            engine, agent=agent, state=wanted, job_id=job, destination=destination, limit=limit
        )
    if json_:
        typer.echo(json.dumps([_facts(row) for row in rows], indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        Console().print("No delivery is like that." if state or destination or agent or job else "No deliveries yet.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("delivery", "state", "destination", "job", "files", "retries", "age"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in {"files", "retries", "age"} else "left")
    table.add_column("reason", overflow="fold", ratio=1)
    for row in rows:
        table.add_row(
            str(row.id)[:SHOWN_DIGITS], _shown_state(row), Text(_target(row)), Text(row.job_id[:SHOWN_DIGITS]),
            str(len(row.uris)), str(row.retries), _age(row.created), Text(row.message),
        )  # fmt: skip
    Console().print(table, highlight=False)


@app.command()
def show(
    delivery: Annotated[str, typer.Argument(help="Id of the delivery, or the beginning of it.")],
    json_: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Show one delivery with each of its files: what was sent, what was not, and why.

    A file is PENDING, SENT, COMMITTED (the destination confirmed that it keeps it), FAILED, or POISON: it can never be
    sent as it is, and is left out until somebody retries the delivery.

    Exit status 3 when there is no such delivery.

    Example: clara-flow results show 3f2a91
    """
    from clara_flow.records import deliveries

    with records(data_dir) as engine:
        row = deliveries.get_delivery(engine, delivery)
        items = deliveries.list_items(engine, row)
    if json_:
        typer.echo(json.dumps({**_facts(row), "items": [_item_facts(item) for item in items]}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for name, value in (
        ("delivery", str(row.id)), ("state", _shown_state(row)), ("reason", row.message), ("agent", row.agent),
        ("destination", row.destination), ("job", row.job_id), ("payload", row.payload_id),
        ("retries", str(row.retries)), ("registered", _moment(row.created)), ("next try", _moment(row.not_before)),
        ("ended", _moment(row.ended)),
    ):  # fmt: skip
        if value:
            console.print(Text(f"{name:<12} {value}"), highlight=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("file", "state", "attempts", "reason"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "attempts" else "left")
    for item in items:
        table.add_row(Text(item.uri), str(item.state), str(item.attempts), Text(item.reason))
    console.print(table, highlight=False)


@app.command()
def retry(
    which: Annotated[list[str] | None, typer.Argument(help="Ids of deliveries, or the beginnings of them.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All that failed and were not discarded.")] = False,
    destination: Destination = None,
    data_dir: DataDir = None,
) -> None:
    """Try deliveries again that failed: only those of their files go that were not sent.

    One that waits for its next try is tried now. Exit status 3 when one cannot be retried: it is being delivered, was
    delivered, or the files of its job were removed; the others are retried all the same.

    \b
    Examples: clara-flow results retry 3f2a91
              clara-flow results retry --failed --destination PACS
    """
    from clara_flow.errors import SettingsError
    from clara_flow.records import deliveries
    from clara_flow.records.dicom_models import DeliveryState

    if bool(which) is failed:
        raise SettingsError("results retry takes ids, or --failed for all that failed")
    if destination is not None and not failed:
        raise SettingsError("--destination goes with --failed")
    with records(data_dir) as engine:
        if not failed:
            _each(engine, which or [], lambda row: deliveries.retry(engine, row.id), "will be tried again")
            return
        rows = deliveries.list_deliveries(engine, state=DeliveryState.FAILED, destination=destination)
        _all(rows, lambda row: deliveries.retry(engine, row.id))


@app.command()
def discard(
    which: Deliveries,
    reason: Annotated[str, typer.Option(help="Kept with the delivery, for people.")] = "",
    data_dir: DataDir = None,
) -> None:
    """Give deliveries up: nothing more of them is sent. `retry` brings them back.

    Exit status 3 when one was delivered already; the others are discarded all the same.

    Example: clara-flow results discard 3f2a91 --reason "sent by hand"
    """
    from clara_flow.records import deliveries

    with records(data_dir) as engine:
        _each(engine, which, lambda row: deliveries.discard(engine, row.id, reason), "is discarded")


def _each(engine: sa.Engine, ids: list[str], change: Callable[[Delivery], object], done: str) -> None:
    """Change each of these; exit status 3 at the end when one could not be."""
    from clara_flow.errors import InputError
    from clara_flow.records import deliveries

    status = 0
    for reference in ids:
        try:
            row = deliveries.get_delivery(engine, reference)
            change(row)
        except InputError as error:
            typer.echo(f"clara-flow: {error}", err=True)
            status = error.exit_status
        else:
            typer.echo(f"delivery {row.id} {done}")
    if status:
        raise typer.Exit(status)


def _all(rows: list[Delivery], retry: Callable[[Delivery], object]) -> None:
    """Retry all that can be; that some cannot is no failure of the command."""
    from clara_flow.errors import Conflict

    retried, left_out = 0, 0
    for row in rows:
        if row.discarded:
            continue
        try:
            retry(row)
            retried += 1
        except Conflict:  # the files of its job were removed, or somebody was quicker
            left_out += 1
    more = f"; {left_out} cannot be: the files of their jobs were removed" if left_out else ""
    typer.echo(f"{retried} failed deliver{'y' if retried == 1 else 'ies'} will be tried again{more}")


def _state(text: str | None) -> DeliveryState | None:
    from clara_flow.errors import SettingsError
    from clara_flow.records.dicom_models import DeliveryState

    if text is None:
        return None
    for state in DeliveryState:
        if state.casefold() == text.replace("-", "").casefold():
            return state
    raise SettingsError(f"--state takes {', '.join(state.lower() for state in DeliveryState)}, found {text!r}")


def _facts(row: Delivery) -> dict[str, Any]:
    """A delivery as JSON."""
    return {
        "id": str(row.id),
        "state": str(row.state),
        "discarded": row.discarded,
        "agent": row.agent,
        "destination": row.destination,
        "parameters": row.parameters,
        "job": row.job_id,
        "pipeline": row.pipeline_id,
        "payload": row.payload_id,
        "uris": row.uris,
        "retries": row.retries,
        "reason": row.message,
        "created": _iso(row.created),
        "updated": _iso(row.updated),
        "not_before": _iso(row.not_before),
        "ended": _iso(row.ended),
    }


def _item_facts(item: DeliveryItem) -> dict[str, Any]:
    return {
        "uri": item.uri,
        "state": str(item.state),
        "attempts": item.attempts,
        "reason": item.reason,
        "sop_class": item.sop_class_uid,
        "sop_instance": item.sop_instance_uid,
    }


def _shown_state(row: Delivery) -> str:
    return "discarded" if row.discarded else str(row.state)


def _target(row: Delivery) -> str:
    return f"{row.destination} ({row.agent})" if row.destination else row.agent


def _age(created: datetime) -> str:
    """Since then, in its largest unit."""
    age_s = max(0.0, (datetime.now(UTC) - created).total_seconds())
    for name, length_s in UNITS:
        if age_s >= length_s:
            return f"{age_s / length_s:.0f} {name}"
    return "0 s"


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S UTC")
