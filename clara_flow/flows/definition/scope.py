"""Parameters: `${{NAME}}` in a value becomes the argument of that name, else the default in `parameters`.

Substitution is one pass and silent; what it met is kept for rule P13 to judge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as AbstractMapping
from dataclasses import dataclass, field

from clara_flow.flows.definition.node import PLACEHOLDER_START, Mapping, Node, Sequence, Text

PLACEHOLDER = re.compile(r"\$\{\{[ \t]*([A-Za-z0-9_-]{1,255})[ \t]*\}\}")
MAX_SUBSTITUTED = 4 * 2**20


@dataclass(slots=True)
class Budget:
    """What one compilation may still produce: characters by substitution, nodes by imports."""

    characters: int = MAX_SUBSTITUTED
    nodes: int = 0


@dataclass(frozen=True, slots=True)
class Argument:
    """A value given from outside. `at` is its place in the importing file; None: the command line or a caller."""

    value: str
    at: Text | None = None


@dataclass(slots=True, eq=False)
class Scope:
    """The parameters visible at one place; `used` are the names that were asked for."""

    declared: dict[str, tuple[Text, Text]]
    arguments: AbstractMapping[str, Argument]
    outer: Scope | None = None
    used: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, node: Mapping, arguments: AbstractMapping[str, Argument], outer: Scope | None = None) -> Scope:
        """The scope that `parameters` of a document or an operator opens."""
        parameters = node.get("parameters")
        entries = parameters.entries if isinstance(parameters, Mapping) else {}
        return cls({n: (k, v) for n, (k, v) in entries.items() if isinstance(v, Text)}, arguments, outer)

    def value_of(self, name: str) -> str | None:
        """The text that takes the place of `${{name}}`; None when nobody declares it."""
        if name in self.declared:
            self.used.add(name)
            argument = self.arguments.get(name)
            return argument.value if argument is not None else self.declared[name][1].value
        return self.outer.value_of(name) if self.outer else None

    def names(self) -> list[str]:
        """All names that can be used here."""
        return [*self.declared, *(self.outer.names() if self.outer else [])]


@dataclass(frozen=True, slots=True)
class Use:
    """A text with placeholders, as it was written."""

    text: Text
    written: str
    scope: Scope


@dataclass(slots=True, eq=False)
class Document:
    """One file, or one use of an imported file: its root, its parameters and what substitution met."""

    root: Mapping
    arguments: AbstractMapping[str, Argument]
    scopes: list[Scope] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    keys: list[Text] = field(default_factory=list)
    outgrown: Text | None = None


def substitute(root: Mapping, arguments: AbstractMapping[str, Argument], budget: Budget) -> Document:
    """Replace placeholders in the values of a document, in place; those that nobody declares stay."""
    document = Document(root, arguments)
    outer = Scope.of(root, arguments)
    document.scopes.append(outer)
    for name, (key, value) in root.entries.items():
        _note_key(document, key)
        if name == "operators" and isinstance(value, Sequence):
            for operator in value.items:
                scope = outer
                if isinstance(operator, Mapping) and operator.get("parameters") is not None:
                    scope = Scope.of(operator, arguments, outer)
                    document.scopes.append(scope)
                _walk(operator, scope, document, budget, skipped="parameters")
        elif name != "parameters":
            _walk(value, outer, document, budget)
    return document


def _note_key(document: Document, key: Text) -> None:
    if PLACEHOLDER_START in key.value:
        document.keys.append(key)


def _walk(node: Node, scope: Scope, document: Document, budget: Budget, *, skipped: str = "") -> None:
    match node:
        case Text():
            if PLACEHOLDER_START in node.value:
                _replace(node, scope, document, budget)
        case Sequence():
            for item in node.items:
                _walk(item, scope, document, budget)
        case Mapping():
            for name, (key, value) in node.entries.items():
                _note_key(document, key)
                if name != skipped:
                    _walk(value, scope, document, budget)


def _replace(text: Text, scope: Scope, document: Document, budget: Budget) -> None:
    written = text.value

    def replacement(found: re.Match[str]) -> str:
        value = scope.value_of(found[1])
        if value is None:
            return found[0]
        budget.characters -= len(value)
        return value if budget.characters >= 0 else ""

    text.value = PLACEHOLDER.sub(replacement, written)
    document.uses.append(Use(text, written, scope))
    if budget.characters < 0 and document.outgrown is None:
        document.outgrown = text
