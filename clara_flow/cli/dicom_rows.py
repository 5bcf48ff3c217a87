"""What the commands of `clara-flow dicom` share: adding a row so that it may be repeated, and showing rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import sqlalchemy as sa

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Replace = Annotated[bool, typer.Option("--replace", help="Change one that is there already and says something else.")]

TIMES = ("created", "updated")


class Outcome(StrEnum):
    """What `put` did."""

    ADDED = "added"
    CHANGED = "changed"
    SAME = "there already"


def put(
    engine: sa.Engine,
    row: Any,
    *,
    key: str,
    what: str,
    now: Any,
    add: Callable[[sa.Engine, Any], Any],
    update: Callable[..., Any],
    replace: bool,
) -> Outcome:
    """Add a checked row. One that is there already and equal is left alone, so that commands may be repeated.

    key     its column; what: the noun for it. now: the row that is there, None for none.

    Raises Conflict that says what differs, unless `replace`: then that is changed.
    """
    from clara_flow.errors import Conflict

    if now is None:
        add(engine, row)
        return Outcome.ADDED
    name = getattr(now, key)
    fresh = row.model_dump(exclude={*TIMES, "draining", key})
    differs = {column: value for column, value in fresh.items() if getattr(now, column) != value}
    if not differs:
        return Outcome.SAME
    if not replace:
        told = ", ".join(sorted(column.replace("_", " ") for column in differs))
        raise Conflict(
            f"there is {what} {name!r} already, with another {told}; add --replace to change it",
            name=name,
            differs=sorted(differs),
        )
    update(engine, name, **differs)
    return Outcome.CHANGED


def facts_of(row: Any, secret: Sequence[str] = ()) -> dict[str, Any]:
    """A row as JSON, times as ISO 8601; of columns in `secret` only whether there is something."""
    facts: dict[str, Any] = row.model_dump(mode="json", exclude=set(secret))
    return facts | {f"has_{column}": bool(getattr(row, column)) for column in secret}


def print_json(content: Any) -> None:
    """On stdout."""
    typer.echo(json.dumps(content, indent=2))


def print_table(rows: Sequence[Mapping[str, str]], none: str) -> None:
    """A column for each key; `none` where there is no row."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        Console().print(none, highlight=False)
        return
    table = Table(box=None, pad_edge=False)
    for heading in rows[0]:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(value) for value in row.values()))
    Console().print(table, highlight=False)


def shown_time(moment: datetime) -> str:
    """UTC, to the minute."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"
