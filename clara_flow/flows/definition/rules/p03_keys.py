"""P03: required keys are there, keys are known, and each holds the kind of value that it should.

An unknown key is a warning up to api-version 0.4.0 and an error from 0.5.0 on.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as AbstractSequence

from clara_flow.flows.definition.grammar import (
    TYPED_SINCE,
    Key,
    PairsShape,
    Part,
    PartShape,
    PartsShape,
    TextShape,
    TextsShape,
    is_before,
    is_typed,
    keys_of,
)
from clara_flow.flows.definition.node import Mapping, Node, Sequence, Text
from clara_flow.flows.definition.problem import Problem, Severity, Vocabulary, described, listed, problem_at, shown
from clara_flow.flows.definition.syntax import Import, Operator, Output, Pipeline, known_version
from clara_flow.flows.definition.tree import Tree

CODE = "P03"
VERSION_KEY = "api-version"  # its choices are rule P02's
BESIDE_IMPORT = ("import", "name")


def check(tree: Tree) -> Iterator[Problem]:
    """Walk the maps that were written against the table of keys."""
    version, hints = tree.pipeline.version, _Hints()
    yield from _check_part(tree.pipeline.node, Pipeline, version, "the pipeline", hints)
    for item in tree.imports:
        for name, (key, _) in item.entries.items():
            if name not in (*BESIDE_IMPORT, VERSION_KEY if item.own_file else "name"):
                message = f"{shown(name)} cannot stand beside `import`, which takes the whole document; only `name` can"
                yield problem_at(key, message, CODE)
        value = item.get("import")
        if isinstance(value, Mapping):
            yield from _check_part(value, Import, version, "`import`", hints)
        elif value is not None:
            yield problem_at(value, f"`import` must be a map with `path`, not {described(value)}", CODE)


class _Hints:
    """One vocabulary for each kind of map, for a whole check."""

    def __init__(self) -> None:
        self._of: dict[type[Part], Vocabulary] = {}

    def of(self, part: type[Part]) -> Vocabulary:
        if part not in self._of:
            self._of[part] = Vocabulary(keys_of(part))
        return self._of[part]


def _check_part(node: Mapping, part: type[Part], version: str | None, where: str, hints: _Hints) -> Iterator[Problem]:
    keys = keys_of(part)
    for name, (key, value) in node.entries.items():
        if name not in keys:
            if not key.is_open:
                yield _unknown_key(key, part, version, where, hints)
            continue
        entry = keys[name][1]
        if isinstance(value, Text) and value.is_null:
            continue
        if entry.refused:
            yield problem_at(key, f"`{name}` is not possible in {where}: {entry.refused}", CODE)
            continue
        yield from _usage(key, entry, version)
        yield from _check_value(value, entry, version, where, hints)
    for name, (_, entry) in keys.items():
        required = entry.is_required(version) or (entry.own_file and node.own_file)
        if required and node.get(name) is None:
            yield problem_at(node, f"`{name}` is required in {where}", CODE)


def _unknown_key(key: Text, part: type[Part], version: str | None, where: str, hints: _Hints) -> Problem:
    severity = Severity.WARNING if version is None or is_before(version, TYPED_SINCE) else Severity.ERROR
    ignored = "; it is ignored" if severity is Severity.WARNING else ""
    hint = hints.of(part).hint(key.value) or f"; possible are {listed(keys_of(part))}"
    if part is Pipeline and key.value == "container":
        hint = "; an operator's own file is checked through the pipeline that imports it"
    return problem_at(key, f"{where} has no key {shown(key.value)}{ignored}{hint}", CODE, severity)


def _usage(key: Text, entry: Key, version: str | None) -> Iterator[Problem]:
    """Warnings about keys that are older, newer or elsewhere than this document's version has them."""
    if is_before(version, entry.since):
        message = f"`{entry.name}` came with api-version {entry.since}, this is {version}; {entry.before}"
        yield problem_at(key, message, CODE, Severity.WARNING)
    elif entry.deprecated and version is not None and not is_before(version, entry.deprecated[0]):
        message = f"`{entry.name}` is deprecated since api-version {entry.deprecated[0]}; use `{entry.deprecated[1]}`"
        yield problem_at(key, message, CODE, Severity.WARNING)
    elif entry.advice:
        yield problem_at(key, f"`{entry.name}` here: {entry.advice}", CODE, Severity.WARNING)


def _check_value(value: Node, entry: Key, version: str | None, where: str, hints: _Hints) -> Iterator[Problem]:
    match entry.shape:
        case TextShape(choices, any_case):
            if not isinstance(value, Text):
                yield _wrong_kind(value, entry, "one value", where)
            elif choices and entry.name != VERSION_KEY:
                yield from _check_choice(value, choices, f"`{entry.name}` in {where}", any_case=any_case)
        case TextsShape(number, choices):
            what = "numbers" if number else "texts"
            if not isinstance(value, Sequence):
                yield _wrong_kind(value, entry, f"a list of {what}", where)
                return
            for item in value:
                if not isinstance(item, Text) or item.is_null:
                    message = f"each item of `{entry.name}` in {where} must be one value, not {described(item)}"
                    yield problem_at(item, message, CODE)
                elif choices:
                    yield from _check_choice(item, choices, f"an item of `{entry.name}` in {where}")
        case PairsShape():
            if not isinstance(value, Mapping):
                yield _wrong_kind(value, entry, "a map of names and values", where)
                return
            for key, item in value.entries.values():
                if not isinstance(item, Text):
                    message = (
                        f"{shown(key.value)} in `{entry.name}` of {where} must be one value, not {described(item)}"
                    )
                    yield problem_at(item, message, CODE)
        case PartShape(part):
            if isinstance(value, Mapping):
                yield from _check_part(value, part, version, f"`{entry.name}` of {where}", hints)
            else:
                yield _wrong_kind(value, entry, "a map", where)
        case PartsShape(part):
            if isinstance(value, Sequence):
                yield from _check_items(value, entry, part, version, where, hints)
            else:
                yield _wrong_kind(value, entry, "a list of maps", where)
        case _:
            if not isinstance(value, Text):
                yield _wrong_kind(value, entry, "a whole number", where)


def _check_choice(text: Text, choices: tuple[str, ...], what: str, *, any_case: bool = False) -> Iterator[Problem]:
    known = {choice.casefold() for choice in choices} if any_case else set(choices)
    if not text.is_open and (text.value.casefold() if any_case else text.value) not in known:
        hint = Vocabulary(choices).hint(text.value)
        message = f"{what} is {shown(text.value)}; possible are {listed(choices)}{hint}"
        yield problem_at(text, message, CODE)


def _check_items(
    items: Sequence, entry: Key, part: type[Part], version: str | None, where: str, hints: _Hints
) -> Iterator[Problem]:
    if entry.required and not items.items:
        yield problem_at(items, f"`{entry.name}` in {where} is empty; at least one is needed", CODE)
    for number, item in enumerate(items, 1):
        if not isinstance(item, Mapping):
            message = f"item {number} of `{entry.name}` in {where} must be a map, not {described(item)}"
            yield problem_at(item, message, CODE)
        elif not item.import_failed:
            inner = version
            if part is Operator:
                inner = known_version(item.text(VERSION_KEY)) or version
            yield from _check_part(item, part, inner, _item_label(item, entry, part, number, where), hints)
    if part is Output and is_typed(version) is False:
        yield from _unnamed_outputs(items.items, where)


def _item_label(item: Mapping, entry: Key, part: type[Part], number: int, where: str) -> str:
    if part is Operator:
        name = item.text("name")
        return f"operator {shown(name.value)}" if name is not None else f"operator number {number}"
    return f"`{entry.name}` number {number} of {where}"


def _unnamed_outputs(items: AbstractSequence[Node], where: str) -> Iterator[Problem]:
    if len(items) > 1:
        for item in items:
            if isinstance(item, Mapping) and item.get("name") is None:
                message = (
                    f"`name` is required: only an output that is alone may go without, and {where} has {len(items)}"
                )
                yield problem_at(item, message, CODE)


def _wrong_kind(value: Node, entry: Key, expected: str, where: str) -> Problem:
    return problem_at(value, f"`{entry.name}` in {where} must be {expected}, not {described(value)}", CODE)
