"""Rules: small expressions over attributes, for instance `Modality == "MR" and StudyDescription ~ "(?i)brain"`.

Names are the attributes that listeners keep (by keyword) and `CallingAE`, `CalledAE`, `AETitle`, `SOPClassUID`.
There are `==`, `!=`, `<`, `<=`, `>`, `>=` (of numbers where both sides are), `in` and `not in` a list, `~` (the regular
expression is found in it), `and`, `or`, `not` and parentheses. Texts are raw: a backslash is a backslash. An attribute
that an instance lacks is "". A rule holds for a group when it holds for at least one of its instances.

Nothing is executed: Python's parser makes a tree of the text, whatever is not named here is refused with its column,
and what is left is walked. A regular expression is refused when it could take long on any text.
"""

from __future__ import annotations

import ast
import difflib
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clara_flow.errors import SettingsError
from clara_flow.services.dicom.grouping.regular import LONGEST_SUBJECT, RegularError, compile_bounded
from clara_flow.services.dicom.header import RULE_ATTRIBUTES

LONGEST_RULE = 2_000
LARGEST = 10**12
OUR_NAMES = ("CallingAE", "CalledAE", "AETitle", "SOPClassUID")
NAMES = (*OUR_NAMES, *RULE_ATTRIBUTES)

QUOTES = ('"', "'")
# A text in quotes; else one of the signs that Python's parser must not see, or that mean something else to it.
LEXEME = re.compile(r"""\"[^\"\r\n\0]*\"|'[^'\r\n\0]*'|[~@#\\\"'\x00-\x08\x0a-\x1f]|[^\x00-\x7f]""")

Values = Mapping[str, str]
Check = Callable[[Values], Any]

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many,
}


class RuleInvalid(SettingsError):
    """A rule cannot be read; `column` counts from 1."""

    def __init__(self, message: str, *, column: int) -> None:
        super().__init__(f"column {column}: {message}", column=column)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that was read; `names` are those that it asks for, sorted."""

    text: str
    names: tuple[str, ...]
    check: Check = field(repr=False)

    def holds(self, values: Values) -> bool:
        """For one instance with these values by name."""
        return bool(self.check(values))

    def holds_for_any(self, many: Iterable[Values]) -> bool:
        """For at least one of many instances; those that look alike to the rule are asked once."""
        looks = {tuple(values.get(name, "") for name in self.names) for values in many}
        return any(self.holds(dict(zip(self.names, look, strict=True))) for look in looks)


def read_rule(text: str) -> Rule:
    """The rule that `text` says. Raises RuleInvalid naming the column."""
    if len(text) > LONGEST_RULE:
        raise RuleInvalid(f"a rule has {LONGEST_RULE} characters at most", column=LONGEST_RULE + 1)
    try:
        reader = _Reader(text)
        check = reader.read()
    except (RecursionError, MemoryError):
        raise RuleInvalid("it is nested too deeply", column=1) from None
    return Rule(text, tuple(sorted(reader.names)), check)


class _Reader:
    """Makes a check of a rule's text; `names` are those that it met."""

    def __init__(self, text: str) -> None:
        self.names: set[str] = set()
        self._indent = len(text) - len(text.lstrip())
        self._texts: dict[int, str] = {}  # what stands in quotes, by where it begins
        self._python = LEXEME.sub(self._for_python, text)[self._indent :]

    def read(self) -> Check:
        """Raises RuleInvalid."""
        try:
            return self._check(ast.parse(self._python, mode="eval").body)
        except SyntaxError as error:
            at = error.offset or len(self._python) + 1  # 0: it ends too early
            raise RuleInvalid(f"this is no rule: {error.msg}", column=self._indent + at) from None

    def _for_python(self, lexeme: re.Match[str]) -> str:
        """What Python's parser shall see of it, as wide as it is: what stands in quotes is none of its business."""
        text, at = lexeme.group(), lexeme.start()
        if text == "~":
            return "@"  # an operator between two things, that binds closer than a comparison
        if len(text) >= 2:
            self._texts[at] = text[1:-1]
            return f'"{"x" * (len(text) - 2)}"'
        raise RuleInvalid("a quote is not closed" if text in QUOTES else f"{text!r} has no place here", column=at + 1)

    def _check(self, node: ast.expr) -> Check:
        """Something that is true or false of an instance."""
        if isinstance(node, ast.BoolOp):
            checks = [self._check(value) for value in node.values]
            every = all if isinstance(node.op, ast.And) else any
            return lambda values: every(check(values) for check in checks)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            check = self._check(node.operand)
            return lambda values: not check(values)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            return self._search(node)
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        if isinstance(node, ast.Name):
            return self._value(node)
        raise self._invalid('expected a comparison such as Modality == "MR"', node)

    def _search(self, node: ast.BinOp) -> Check:
        subject, pattern = self._value(node.left), node.right
        if not isinstance(pattern, ast.Constant) or not isinstance(pattern.value, str):
            raise self._invalid('after ~ stands a regular expression in "quotes"', pattern)
        try:
            found = compile_bounded(self._text(pattern)).search
        except RegularError as error:
            raise self._invalid(str(error), pattern) from None
        return lambda values: found(str(subject(values))[:LONGEST_SUBJECT]) is not None

    def _comparison(self, node: ast.Compare) -> Check:
        steps, left = [], self._value(node.left)
        for sign, right in zip(node.ops, node.comparators, strict=True):
            compare = COMPARISONS.get(type(sign))
            if compare is None:
                raise self._invalid("this comparison is not for rules", right)
            is_member = isinstance(sign, ast.In | ast.NotIn)
            steps.append((left, compare, self._list(right) if is_member else self._value(right)))
            left = steps[-1][2]
        return lambda values: all(_compared(one(values), compare, other(values)) for one, compare, other in steps)

    def _list(self, node: ast.expr) -> Check:
        if not isinstance(node, ast.Tuple | ast.List | ast.Set):
            raise self._invalid('after in stands a list such as ["MR", "CT"]', node)
        items = tuple(self._constant(item) for item in node.elts)
        return lambda values: items

    def _value(self, node: ast.expr) -> Check:
        if not isinstance(node, ast.Name):
            constant = self._constant(node)
            return lambda values: constant
        name = node.id
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.5) or NAMES
            raise self._invalid(f"there is no attribute {name}; there is {', '.join(near)}", node)
        self.names.add(name)
        return lambda values: values.get(name, "")

    def _constant(self, node: ast.expr) -> str | int | float:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self._text(node)
        is_negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        number = node.operand if isinstance(node, ast.UnaryOp) and is_negative else node
        if isinstance(number, ast.Constant) and type(number.value) in {int, float}:
            if abs(number.value) > LARGEST:  # type: ignore[arg-type]
                raise self._invalid("this number is too large", number)
            value = float(number.value)  # type: ignore[arg-type]
            return -value if is_negative else value
        raise self._invalid('expected an attribute, a number or a text in "quotes"', node)

    def _text(self, node: ast.Constant) -> str:
        text = self._texts.get(node.col_offset + self._indent)
        if text is None or node.end_col_offset != node.col_offset + len(text) + 2:
            raise self._invalid('a text is written in one pair of "quotes"', node)
        return text

    def _invalid(self, message: str, node: ast.expr) -> RuleInvalid:
        return RuleInvalid(message, column=node.col_offset + self._indent + 1)


def _compared(one: Any, compare: Callable[[Any, Any], bool], other: Any) -> bool:
    """Numbers are compared where both sides are, or one is and the other says one; texts else."""
    if isinstance(other, tuple):
        return compare(str(one), tuple(map(_shown, other)))
    if isinstance(one, float) or isinstance(other, float):
        left, right = _number(one), _number(other)
        # What says no number is no number's equal, nor more or less than one.
        return compare is operator.ne if left is None or right is None else compare(left, right)
    if compare not in {operator.eq, operator.ne} and None not in (_number(one), _number(other)):
        return compare(_number(one), _number(other))
    return compare(str(one), str(other))


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _shown(item: str | float) -> str:
    return f"{item:g}" if isinstance(item, float) else item
