"""P06: the `name` of an input is an output of the operator that it reads from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clara_flow.flows.definition.problem import Problem, Severity, Vocabulary, listed, problem_at, shown
from clara_flow.flows.definition.syntax import Input, Operator
from clara_flow.flows.definition.tree import Tree, label

CODE = "P06"


def check(tree: Tree) -> Iterator[Problem]:
    """Every input with a `from`."""
    known: dict[int, _Outputs] = {}
    for operator in tree.operators:
        for entry in operator.inputs:
            upstream = tree.upstream_of(entry)
            if upstream is None or upstream is operator or upstream.node.import_failed:
                continue
            outputs = known.get(id(upstream)) or known.setdefault(id(upstream), _Outputs.of(upstream))
            if not outputs.some_open and not (entry.name is not None and entry.name.is_open):
                yield from _check_input(tree, entry, upstream, outputs)


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Names of an operator's outputs. `some_open`: one of them cannot be known."""

    names: list[str]
    some_open: bool
    vocabulary: Vocabulary

    @classmethod
    def of(cls, operator: Operator) -> _Outputs:
        names = [output.name.value for output in operator.outputs if output.name is not None]
        some_open = any(output.name is not None and output.name.is_open for output in operator.outputs)
        return cls(names, some_open, Vocabulary(names))


def _check_input(tree: Tree, entry: Input, upstream: Operator, outputs: _Outputs) -> Iterator[Problem]:
    assert entry.upstream is not None  # noqa: S101 - it has an upstream operator
    names = outputs.names
    if not upstream.outputs:
        yield problem_at(entry.upstream, f"{label(upstream)} has no outputs to read", CODE)
    elif entry.name is not None and tree.output_of(upstream, entry) is None:
        has = f"its outputs are {listed(names)}" if names else "its only output has no name, so leave `name` out"
        hint = outputs.vocabulary.hint(entry.name.value)
        yield problem_at(entry.name, f"{label(upstream)} has no output {shown(entry.name.value)}; {has}{hint}", CODE)
    elif entry.name is None and names and not tree.pipeline.is_typed(upstream):
        message = (
            f"no `name`: the whole folder of {label(upstream)} is read, with one sub-folder for each of {listed(names)}"
        )
        yield problem_at(entry.upstream, message, CODE, Severity.WARNING)
