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
Replace = Annotated[
    bool, typer.Option("--replace", help="Change one that is there already: what is given, and nothing else.")
]

OURS = ("created", "updated", "block", "block_updated")  # columns that no option gives
SETTINGS = "processor_settings"
WORDS = {  # columns as the options are called; others as they are
    "ae_title": "AE title",
    "calling_ae": "calling",
    "deidentify": "de-identification",
    "ignored_sop_classes": "ignored SOP classes",
    "maximum_associations": "max-associations",
    "overwrite_same_instance": "overwrite",
    "require_release": "require-release",
    "storage_commitment": "commitment",
    "tls": "TLS",
    "url": "STOW URL",
    "user_name": "user",
    "user_secret": "passcode",
}
SECRETS = ("user_secret",)


class Outcome(StrEnum):
    """What `put` did."""

    ADDED = "added"
    CHANGED = "changed"
    SAME = "there already"


def merged(now: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row: those given (not None), the others as they are in `now` (None: nothing is there)."""
    kept: dict[str, Any] = now.model_dump(exclude=set(OURS)) if now is not None else {}
    return kept | {column: value for column, value in given.items() if value is not None}


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
) -> tuple[Outcome, str]:
    """Add a checked row. One that is there already and equal is left alone, so that commands may be repeated.

    key     its column; what: the noun for it. now: the row that is there, None for none.

    Returns what was done, and in words what is different then. Raises Conflict that says what differs, unless
    `replace`: then that is changed.
    """
    from clara_flow.errors import Conflict

    if now is None:
        add(engine, row)
        return Outcome.ADDED, ""
    name = getattr(now, key)
    fresh = row.model_dump(exclude={*OURS, "draining", key})
    differs = {column: value for column, value in fresh.items() if getattr(now, column) != value}
    if not differs:
        return Outcome.SAME, ""
    told = "; ".join(text for column, value in differs.items() for text in _steps(column, getattr(now, column), value))
    if not replace:
        raise Conflict(
            f"there is {what} {name!r} already; --replace changes it ({told})", name=name, differs=sorted(differs)
        )
    update(engine, name, **differs)
    return Outcome.CHANGED, told


def _steps(column: str, before: Any, after: Any) -> list[str]:
    """`timeout: 2 -> 3`, one for each setting of a processor; of a secret only that it is another one."""
    if column == SETTINGS:
        keys = sorted(before.keys() | after.keys())
        return [
            f"{key}: {_shown(before.get(key))} -> {_shown(after.get(key))}"
            for key in keys
            if before.get(key) != after.get(key)
        ]
    word = WORDS.get(column, column)
    return [f"another {word}" if column in SECRETS else f"{word}: {_shown(before)} -> {_shown(after)}"]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "none" if value in (None, "") else str(value)


def facts_of(row: Any, secret: Sequence[str] = ()) -> dict[str, Any]:
    """A row as JSON, times as ISO 8601; of columns in `secret` only whether there is something."""
    facts: dict[str, Any] = row.model_dump(mode="json", exclude=set(secret))
    return facts | {f"has_{column}": bool(getattr(row, column)) for column in secret}


def maker(row: Any) -> str:
    """Of a destination or source, for lists."""
    return f"block {row.block}" if row.block else "-"


def print_json(content: Any) -> None:
    """On stdout."""
    typer.echo(json.dumps(content, indent=2))


def shown_time(moment: datetime) -> str:
    """UTC, to the minute."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"
