"""Regular expressions that cannot take long: those whose search could are refused before they are used.

Python's `re` tries ways to match one after the other, and some expressions have exponentially many, `(a+)+$` for one.
Here the ways are counted from the parsed expression before it is compiled: alternatives add, what follows one another
multiplies, a repeat sums the powers of what it repeats. The count is an upper bound, for texts of a bounded length.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

LONGEST_PATTERN = 200
LONGEST_SUBJECT = 128  # of the text that is searched; longer ones are cut by the caller
MOST_WAYS = 3 * 10**8  # about a second at worst; the bound is some ten times too high for what people write

# The parser behind `re`. It has had this name since Python 3.11; the tests ask all of it that is used here.
_parser: Any = importlib.import_module("re._parser")
_SIMPLE = {"LITERAL", "NOT_LITERAL", "ANY", "IN", "AT", "CATEGORY", "RANGE"}
_REPEATS = {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}


class RegularError(ValueError):
    """A regular expression cannot be used; the text says why."""


def compile_bounded(pattern: str) -> re.Pattern[str]:
    """The compiled expression. Raises RegularError when it is none, is too long, or might take long."""
    if len(pattern) > LONGEST_PATTERN:
        raise RegularError(f"a regular expression has {LONGEST_PATTERN} characters at most")
    try:
        tree = _parser.parse(pattern)
        compiled = re.compile(pattern)
    except re.error as error:
        where = f" at its character {error.pos + 1}" if error.pos is not None else ""
        raise RegularError(f"this is no regular expression: {error.msg}{where}") from None
    except (RecursionError, OverflowError, MemoryError):
        raise RegularError("this regular expression is too large") from None
    if _ways(tree) * LONGEST_SUBJECT > MOST_WAYS:
        raise RegularError("this regular expression may take very long; use fewer *, + and ?, and none inside another")
    return compiled


def _ways(nodes: Any) -> int:
    """Upper bound of the ways to match a sequence at one place; more than MOST_WAYS is not counted any further."""
    ways = 1
    for kind, argument in nodes:
        ways *= _ways_of(str(kind), argument)
        if ways > MOST_WAYS:
            return ways
    return ways


def _ways_of(kind: str, argument: Any) -> int:
    if kind in _SIMPLE:
        return 1
    if kind == "BRANCH":
        return sum(_ways(branch) for branch in argument[1])
    if kind == "SUBPATTERN":
        return _ways(argument[3])
    if kind == "ATOMIC_GROUP":
        return _ways(argument)
    if kind in {"ASSERT", "ASSERT_NOT"}:
        return _ways(argument[1])
    if kind in _REPEATS:
        least, most, repeated = argument
        return _repeated(int(least), min(int(most), LONGEST_SUBJECT), _ways(repeated))
    raise RegularError("references to groups are not for rules")


def _repeated(least: int, most: int, ways: int) -> int:
    total = 0
    for times in range(min(least, LONGEST_SUBJECT), most + 1):
        total += ways**times
        if total > MOST_WAYS:
            break
    return max(1, total)
