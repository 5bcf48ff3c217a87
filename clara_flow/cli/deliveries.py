"""`clara-flow results`: what is delivered, what could not be, and what to do about it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Container
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clara_flow.cli.completion import names_of
from clara_flow.cli.records import DataDir, records
from clara_flow.cli.tables import print_table, shown_duration

if TYPE_CHECKING:
    import sqlalchemy as sa

    from clara_flow.records.dicom_models import Delivery, DeliveryItem, DeliveryState

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Deliveries = Annotated[list[str], typer.Argument(help="Ids of deliveries, or the beginnings of them.")]
Destination = Annotated[
    str | None,
    typer.Option(
        "--destination", "-d", help="Only those for this destination.", autocompletion=names_of("list_destinations")
    ),
]
SHOWN_DIGITS = 8


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
    none = "No delivery is like that." if state or destination or agent or job else "No deliveries yet."
    cells = [
        {
            "delivery": str(row.id)[:SHOWN_DIGITS],
            "state": _shown_state(row),
            "destination": _target(row),
            "job": row.job_id[:SHOWN_DIGITS],
            "files": str(len(row.uris)),
            "retries": str(row.retries),
            "age": _age(row.created),
        }
        for row in rows
    ]
    print_table(cells, none, notes=[_why(row) for row in rows], right={"files", "retries", "age"})


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
    for name, value in (
        ("delivery", str(row.id)), ("state", _shown_state(row)), ("reason", row.message), ("agent", row.agent),
        ("destination", row.destination), ("job", row.job_id), ("payload", row.payload_id),
        ("retries", str(row.retries)), ("registered", _moment(row.created)), ("next try", _moment(row.not_before)),
        ("ended", _moment(row.ended)),
    ):  # fmt: skip
        if value:
            typer.echo(f"{name:<12} {value}")
    cells = [{"state": str(item.state), "attempts": str(item.attempts), "file": item.uri} for item in items]
    typer.echo()
    print_table(cells, "It has no files.", notes=[item.reason for item in items], right={"attempts"})


@app.command()
def retry(
    which: Annotated[list[str] | None, typer.Argument(help="Ids of deliveries, or the beginnings of them.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All that failed and were not discarded.")] = False,
    destination: Destination = None,
    data_dir: DataDir = None,
) -> None:
    """Try deliveries again that failed: only those of their files go that were not sent.

    One that waits for its next try is tried now. Exit status 3 when one cannot be retried: it is being delivered, was
    delivered, its destination is not there, or the files of its job were removed; the others are retried all the same.

    \b
    Examples: clara-flow results retry 3f2a91
              clara-flow results retry --failed --destination PACS
    """
    from clara_flow.errors import SettingsError
    from clara_flow.records import deliveries, dicom_config
    from clara_flow.records.dicom_models import DeliveryState

    if bool(which) is failed:
        raise SettingsError("results retry takes ids, or --failed for all that failed")
    if destination is not None and not failed:
        raise SettingsError("--destination goes with --failed")
    with records(data_dir) as engine:
        retried = partial(_retried, engine, {row.name.casefold() for row in dicom_config.list_destinations(engine)})
        if not failed:
            _each(engine, which or [], retried, "will be tried again")
            return
        _all(deliveries.list_deliveries(engine, state=DeliveryState.FAILED, destination=destination), retried)


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


def _retried(engine: sa.Engine, destinations: Container[str], row: Delivery) -> None:
    """Try it again. Raises Conflict with its `reason` where that would come to nothing."""
    from clara_flow.errors import Conflict
    from clara_flow.records import deliveries

    if row.destination and row.destination.casefold() not in destinations:
        reason = f"there is no destination {row.destination!r}; add it first: clara-flow dicom destination add"
        raise Conflict(f"delivery {row.id} cannot be retried: {reason}", reason=reason)
    deliveries.retry(engine, row.id)


def _all(rows: list[Delivery], retry: Callable[[Delivery], object]) -> None:
    """Retry all that can be; that some cannot is no failure of the command."""
    from clara_flow.errors import Conflict

    retried, left_out = 0, Counter[str]()
    for row in rows:
        if row.discarded:
            continue
        try:
            retry(row)
            retried += 1
        except Conflict as error:
            left_out[error.facts.get("reason", "somebody was quicker")] += 1
    more = "".join(f"; {count} cannot be: {reason}" for reason, count in left_out.items())
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


def _why(row: Delivery) -> str:
    """Its reason, and when it is tried next."""
    wait_s = (row.not_before - datetime.now(UTC)).total_seconds() if row.not_before is not None else 0.0
    return "; ".join(filter(None, [row.message, f"next try in {shown_duration(wait_s)}" if wait_s > 0 else ""]))


def _age(created: datetime) -> str:
    """Since then."""
    return shown_duration((datetime.now(UTC) - created).total_seconds())


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S UTC")
