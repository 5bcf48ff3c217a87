"""P10: shared memory needs the Clara orchestrator."""

from __future__ import annotations

from collections.abc import Iterator

from clara_flow.flows.definition.problem import Problem, problem_at
from clara_flow.flows.definition.tree import Tree, label
from clara_flow.flows.definition.types import is_memory

CODE = "P10"


def check(tree: Tree) -> Iterator[Problem]:
    """Memory types of a pipeline that asks for Argo."""
    orchestrator = tree.pipeline.orchestrator
    if orchestrator is None or orchestrator.value.casefold() != "argo":
        return
    for operator in tree.operators:
        if not tree.pipeline.is_typed(operator):
            continue
        for entry in (*operator.inputs, *operator.outputs):
            if entry.type is not None and is_memory(entry.type.value):
                message = (
                    f'type "{entry.type.value}" in {label(operator)} lives in shared memory, which only '
                    "`orchestrator: Clara` has; use that, or `type: stream`"
                )
                yield problem_at(entry.type, message, CODE)
