"""P13: every placeholder has a value, every argument a parameter, and every parameter a use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clara_flow.flows.definition.loader import NO_TEXT
from clara_flow.flows.definition.node import PLACEHOLDER_START, Text
from clara_flow.flows.definition.problem import Problem, Severity, Vocabulary, listed, problem_at, shown
from clara_flow.flows.definition.scope import MAX_SUBSTITUTED, PLACEHOLDER, Document, Scope, Use
from clara_flow.flows.definition.tree import Tree
from clara_flow.plan import BUILTINS

CODE = "P13"


def check(tree: Tree) -> Iterator[Problem]:
    """All documents: the definition and what it imports, each with its own parameters."""
    late = _resolved_when_running(tree)
    known: dict[int, _Known] = {}
    for document in tree.documents:
        yield from _check_arguments(document)
        yield from _check_defaults(document)
        for key in document.keys:
            yield problem_at(key, "placeholders are possible in values, not in keys", CODE)
        for use in document.uses:
            if id(use.scope) not in known:
                known[id(use.scope)] = _Known.of(use.scope)
            yield from _check_use(use, late, known[id(use.scope)])
        if document.outgrown is not None:
            message = f"parameters make this definition grow by more than {MAX_SUBSTITUTED // 2**20} MiB"
            yield problem_at(document.outgrown, message, CODE)
        for scope in document.scopes:
            for name, (key, _) in scope.declared.items():
                if name not in scope.used:
                    message = f"parameter {shown(name)} is not used"
                    yield problem_at(key, message, CODE, Severity.WARNING)


def _resolved_when_running(tree: Tree) -> set[int]:
    """The texts in which built-ins may stay: what a job puts together at the start of each container."""
    late: set[int] = set()
    for operator in tree.operators:
        if operator.container is not None:
            late.update(id(text) for text in operator.container.command)
            late.update(id(text) for _, text in operator.container.variables)
        late.update(id(text) for _, text in operator.variables)
    return late


def _check_arguments(document: Document) -> Iterator[Problem]:
    declared = {name: None for scope in document.scopes for name in scope.declared}
    vocabulary = Vocabulary(declared)
    for name, argument in document.arguments.items():
        place = argument.at or document.root
        if name not in declared:
            has = f"this document declares {listed(declared)}" if declared else "this document declares no parameters"
            message = f"argument {shown(name)} has no parameter; {has}{vocabulary.hint(name)}"
            yield problem_at(place, message, CODE)
        elif argument.at is None and (fault := _fault(argument.value)):
            yield problem_at(place, f"argument {shown(name)} {fault}", CODE)


def _check_defaults(document: Document) -> Iterator[Problem]:
    for scope in document.scopes:
        for name, (_, default) in scope.declared.items():
            if fault := _fault(default.value):
                yield problem_at(default, f"the default of parameter {shown(name)} {fault}", CODE)


def _fault(value: str) -> str:
    """Why a value cannot be put in: it may hold built-ins, but not ask for another parameter."""
    if NO_TEXT.search(value):
        return "holds a NUL or half a character, which no text may"
    rest = PLACEHOLDER.sub(lambda found: "" if found[1] in BUILTINS else found[0], value)
    if PLACEHOLDER_START not in rest:
        return ""
    found = PLACEHOLDER.search(rest)
    what = f"asks for {found[0]}" if found else f"holds {PLACEHOLDER_START}"
    return f"{what}; values of parameters are plain text or {listed(BUILTINS)}"


@dataclass(frozen=True, slots=True)
class _Known:
    """What a placeholder could have said in some scope."""

    declared: str
    vocabulary: Vocabulary

    @classmethod
    def of(cls, scope: Scope) -> _Known:
        names = scope.names()
        declared = f"declared are {listed(names)}" if names else "no `parameters` are declared"
        return cls(declared, Vocabulary([*names, *BUILTINS]))


def _check_use(use: Use, late: set[int], known: _Known) -> Iterator[Problem]:
    for name in dict.fromkeys(PLACEHOLDER.findall(use.written)):
        if use.scope.value_of(name) is not None:
            continue
        if name not in BUILTINS:
            hint = known.vocabulary.hint(name)
            yield problem_at(use.text, f"placeholder ${{{{{name}}}}} has no value; {known.declared}{hint}", CODE)
        elif id(use.text) not in late:
            yield _too_early(use.text, name)
    if PLACEHOLDER_START in PLACEHOLDER.sub("", use.written):
        message = f"a placeholder is ${{{{NAME}}}}; {shown(use.written)} has a {PLACEHOLDER_START} that is none"
        yield problem_at(use.text, message, CODE)
    elif use.text.value != use.written and id(use.text) not in late:
        left = [name for name in PLACEHOLDER.findall(use.text.value) if name in BUILTINS]
        if left and left[0] not in PLACEHOLDER.findall(use.written):
            yield _too_early(use.text, left[0])


def _too_early(text: Text, name: str) -> Problem:
    message = (
        f"{name} is known only when a job runs; it is possible in `command` and `variables` of an operator, not here"
    )
    return problem_at(text, message, CODE)
