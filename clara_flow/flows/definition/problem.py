"""What the checker says about a definition: one line per problem, with its place."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum
from typing import NamedTuple

from clara_flow.flows.definition.node import Mapping, Node, Sequence, Text

SHOWN_CHARACTERS = 60
SHOWN_NAMES = 8


class Severity(StrEnum):
    """An error forbids the plan, a warning is told every time, an info only when asked for."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Problem(NamedTuple):
    """One finding. Problems sort by file, then place.

    source      the file, as the user named it.
    line        counts from 1.
    column      counts from 1, in characters.
    message     what was found and what was possible.
    code        the rule, `P01` to `P17`.
    pointer     JSON pointer (RFC 6901) of the value inside its file.
    """

    source: str
    line: int
    column: int
    message: str
    code: str
    severity: Severity = Severity.ERROR
    pointer: str = ""

    def __str__(self) -> str:
        kind = "" if self.severity is Severity.ERROR else f"{self.severity}: "
        return f"{self.source}:{self.line}:{self.column}: {kind}{self.message} [{self.code}]"


def problem_at(node: Node, message: str, code: str, severity: Severity = Severity.ERROR) -> Problem:
    """A problem at the place of `node`."""
    return Problem(node.source, node.line, node.column, message, code, severity, node.pointer)


def shown(text: str) -> str:
    """`text` as a message shows it: quoted, on one line, cut when long."""
    if len(text) > SHOWN_CHARACTERS:
        text = text[: SHOWN_CHARACTERS - 1] + "…"
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text) + '"'


def described(node: Node | None) -> str:
    """What kind of value this is, for messages: `a list`, `"abc"`, `nothing`."""
    match node:
        case Mapping():
            return "a map"
        case Sequence():
            return "a list"
        case Text(is_null=False):
            return shown(node.value)
    return "nothing"


def listed(names: Iterable[str], *, none: str = "none") -> str:
    """Names for a message, in the given order, the first few by name."""
    names = list(names)
    if not names:
        return none
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(shown(name)[1:-1] for name in names[:SHOWN_NAMES]) + more


class Vocabulary:
    """The words that were possible at some place, for "did you mean".

    Comparing every wrong word with every possible one is quadratic, so an instance compares at most
    `COMPARISONS` times and stays silent afterwards.
    """

    COMPARISONS = 100_000
    LONGEST = 64

    def __init__(self, words: Iterable[str]) -> None:
        self._words = {word.casefold(): word for word in words if len(word) <= self.LONGEST}
        self._left = self.COMPARISONS

    def hint(self, wrong: str) -> str:
        """`; did you mean "reader"?` or nothing."""
        if len(wrong) > self.LONGEST or self._left < len(self._words):
            return ""
        self._left -= len(self._words)
        close = get_close_matches(wrong.casefold(), self._words, n=1)
        return f"; did you mean {shown(self._words[close[0]])}?" if close else ""
