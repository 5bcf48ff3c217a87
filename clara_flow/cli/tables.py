"""Tables on the terminal: a line for each row, never cut and never folded; long texts stand on lines below it."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence

import typer

INDENT = "    "
LEAST_WIDTH = 40
UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def print_table(
    rows: Sequence[Mapping[str, str]], none: str, *, notes: Sequence[str] = (), right: Collection[str] = ()
) -> None:
    """A column for each key; `none` where there is no row.

    notes   one for each row, "" for none: told below it, wrapped on a terminal, in one line everywhere else.
    right   the columns of numbers.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in table_lines(rows, notes=notes, right=right, width=width) if rows else [none]:
        typer.echo(line)


def table_lines(
    rows: Sequence[Mapping[str, str]],
    *,
    notes: Sequence[str] = (),
    right: Collection[str] = (),
    width: int | None = None,
) -> list[str]:
    """The lines of a table with at least one row; notes are wrapped to `width` characters, None: not at all.

    >>> table_lines([{"name": "PACS", "age": "9 s"}], notes=["no answer"], right={"age"})
    ['name  age', 'PACS  9 s', '    no answer']
    """
    headings = list(rows[0])
    widths = {heading: max(len(heading), *(len(row[heading]) for row in rows)) for heading in headings}

    def line(cells: Mapping[str, str]) -> str:
        shown = (
            cells[heading].rjust(widths[heading]) if heading in right else cells[heading].ljust(widths[heading])
            for heading in headings
        )
        return "  ".join(shown).rstrip()

    lines = [line({heading: heading for heading in headings})]
    for number, row in enumerate(rows):
        lines.append(line(row))
        if notes and notes[number]:
            lines += _wrapped(notes[number], width)
    return lines


def shown_duration(seconds: float) -> str:
    """In its largest unit.

    >>> shown_duration(7200), shown_duration(0.2)
    ('2 h', '0 s')
    """
    for name, length_s in UNITS:
        if seconds >= length_s:
            return f"{seconds / length_s:.0f} {name}"
    return "0 s"


def _wrapped(note: str, width: int | None) -> list[str]:
    """Words stay whole: what is copied from a terminal must be right."""
    if width is None:
        return [INDENT + note]
    room = max(width, LEAST_WIDTH) - 1
    return textwrap.wrap(
        note, room, initial_indent=INDENT, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False
    )
