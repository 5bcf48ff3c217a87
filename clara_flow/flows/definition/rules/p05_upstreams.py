"""P05: `from` names an operator of the pipeline, and not the reader itself."""

from __future__ import annotations

from collections.abc import Iterator

from clara_flow.flows.definition.problem import Problem, Vocabulary, listed, problem_at, shown
from clara_flow.flows.definition.tree import Tree, label

CODE = "P05"


def check(tree: Tree) -> Iterator[Problem]:
    """Every `from` of every input."""
    names = [operator.name.value for operator in tree.operators if operator.name is not None]
    vocabulary = Vocabulary(names)
    for operator in tree.operators:
        for entry in operator.inputs:
            if entry.upstream is None or entry.upstream.is_open:
                continue
            wanted = entry.upstream.value
            upstream = tree.upstream_of(entry)
            if upstream is operator:
                yield problem_at(entry.upstream, f"{label(operator)} reads from itself", CODE)
            elif upstream is None and not tree.has_unknown_names:
                hint = vocabulary.hint(wanted) or f"; the pipeline has {listed(names)}"
                yield problem_at(
                    entry.upstream, f"{label(operator)} reads from {shown(wanted)}, which does not exist{hint}", CODE
                )
