"""P16: outputs that nobody reads, of operators whose other outputs are read (infos)."""

from __future__ import annotations

from collections.abc import Iterator

from clara_flow.flows.definition.problem import Problem, Severity, problem_at, shown
from clara_flow.flows.definition.tree import Tree, label

CODE = "P16"


def check(tree: Tree) -> Iterator[Problem]:
    """An operator that nobody reads from is an end of the pipeline, and all its outputs are results."""
    read: set[int] = set()
    whole: set[int] = set()
    read_from: set[int] = set()
    for operator in tree.operators:
        for entry in operator.inputs:
            upstream = tree.upstream_of(entry)
            if upstream is not None:
                read_from.add(id(upstream))
                output = tree.output_of(upstream, entry)
                if output is not None:
                    read.add(id(output))
                elif entry.name is None:
                    whole.add(id(upstream))
    for operator in tree.operators:
        if id(operator) in read_from and id(operator) not in whole:
            for output in operator.outputs:
                if id(output) not in read and output.name is not None:
                    message = f"nobody reads output {shown(output.name.value)} of {label(operator)}"
                    yield problem_at(output.node, message, CODE, Severity.INFO)
