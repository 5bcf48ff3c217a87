"""P04: names are legal, and unique without regard to case."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from clara_flow.flows.definition.node import Text
from clara_flow.flows.definition.problem import Problem, problem_at, shown
from clara_flow.flows.definition.tree import Tree, label
from clara_flow.plan import TENANT_LABEL

CODE = "P04"
NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")


def check(tree: Tree) -> Iterator[Problem]:
    """Names of the pipeline, its tenant, its operators, their inputs, outputs, services and models, of parameters."""
    yield from _legal([tree.pipeline.name])
    yield from _legal(text for key, text in tree.pipeline.metadata if key.value == TENANT_LABEL and not text.is_null)
    yield from _unique(((o.name, "") for o in tree.operators), "operator", "the pipeline")
    for operator in tree.operators:
        where = label(operator)
        named = ((entry.name, entry.upstream.value if entry.upstream else "") for entry in operator.inputs)
        yield from _unique(named, "input", where)
        yield from _unique(((output.name, "") for output in operator.outputs), "output", where)
        yield from _unique(((service.name, "") for service in operator.services), "service", where)
        yield from _unique(((model.name, "") for model in operator.models), "model", where)
    for document in tree.documents:
        for scope in document.scopes:
            yield from _legal(key for key, _ in scope.declared.values())


def _legal(names: Iterable[Text | None]) -> Iterator[Problem]:
    for name in names:
        if name is not None and not name.is_open and not NAME.fullmatch(name.value):
            message = f"{shown(name.value)} is not a name; names have 1 to 255 of the characters A-Z a-z 0-9 - _"
            yield problem_at(name, message, CODE)


def _unique(names: Iterable[tuple[Text | None, str]], what: str, where: str) -> Iterator[Problem]:
    """`names` come with what else tells them apart: inputs of one name may read from different operators."""
    first: dict[tuple[str, str], Text] = {}
    for name, apart in names:
        if name is None or name.is_open:
            continue
        yield from _legal([name])
        earlier = first.setdefault((name.value.casefold(), apart.casefold()), name)
        if earlier is not name:
            place = f"line {earlier.line}" if earlier.source == name.source else f"{earlier.source}:{earlier.line}"
            message = f"{what} {shown(name.value)} is given twice in {where} (case does not matter); first in {place}"
            yield problem_at(name, message, CODE)
