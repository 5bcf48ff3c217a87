"""P15: something reads the payload, unless the pipeline says that it makes its data itself (warnings)."""

from __future__ import annotations

from collections.abc import Iterator

from clara_flow.flows.definition.node import Sequence
from clara_flow.flows.definition.problem import Problem, Severity, problem_at
from clara_flow.flows.definition.tree import Tree, label

CODE = "P15"
SOURCE_MARK = ("source", "true")  # `metadata: {source: true}`


def check(tree: Tree) -> Iterator[Problem]:
    """Operators without inputs, and a pipeline that never reads its payload."""
    if any((name.value, text.value.casefold()) == SOURCE_MARK for name, text in tree.pipeline.metadata):
        return
    for operator in tree.operators:
        if operator.node.import_failed:
            return
        if not operator.inputs and operator.node.get("input") is None:
            message = f"{label(operator)} has no `input`; it reads nothing and starts at once"
            yield problem_at(operator.node, message, CODE, Severity.WARNING)
    readable = all(isinstance(o.node.get("input"), Sequence | None) for o in tree.operators)
    if tree.operators and readable and not any(e.upstream is None for o in tree.operators for e in o.inputs):
        message = (
            "no operator reads the payload (an input without `from`); "
            "if the pipeline makes its own data, say so by `metadata: {source: true}`"
        )
        yield problem_at(tree.operators[0].node, message, CODE, Severity.WARNING)
