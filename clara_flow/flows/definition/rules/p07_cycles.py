"""P07: no operator waits for itself through others."""

from __future__ import annotations

from collections.abc import Iterator

from clara_flow.flows.definition.problem import Problem, problem_at, shown
from clara_flow.flows.definition.syntax import Input, Operator
from clara_flow.flows.definition.tree import Tree

CODE = "P07"
SHOWN_STEPS = 12


def check(tree: Tree) -> Iterator[Problem]:
    """One problem for each cycle found; others may show once these are mended.

    What Kahn's algorithm leaves over are cycles and what hangs below them. There every operator has an upstream that is
    left over too, so walking upstream from any of them ends in a cycle.
    """
    reads: dict[int, list[tuple[Input, Operator]]] = {}
    for operator in tree.operators:
        ends = [(entry, tree.upstream_of(entry)) for entry in operator.inputs]
        # who reads from itself is rule P05's
        reads[id(operator)] = [(e, up) for e, up in ends if up is not None and up is not operator]
    left = _left_over(tree, reads)
    walked: dict[int, int] = {}  # operator -> number of the walk that met it
    for number, start in enumerate(o for o in tree.operators if id(o) in left):
        path: list[tuple[Input, Operator]] = []
        operator = start
        while id(operator) not in walked:
            walked[id(operator)] = number
            entry, upstream = next((e, up) for e, up in reads[id(operator)] if id(up) in left)
            path.append((entry, operator))
            operator = upstream
        if walked[id(operator)] == number:
            first = next(index for index, (_, met) in enumerate(path) if met is operator)
            yield _cycle(tree, path[first:])


def _left_over(tree: Tree, reads: dict[int, list[tuple[Input, Operator]]]) -> set[int]:
    waits = {key: len(found) for key, found in reads.items()}
    readers: dict[int, list[int]] = {key: [] for key in reads}
    for key, found in reads.items():
        for _, upstream in found:
            readers[id(upstream)].append(key)
    ready = [key for key, count in waits.items() if count == 0]
    while ready:
        for reader in readers[ready.pop()]:
            waits[reader] -= 1
            if waits[reader] == 0:
                ready.append(reader)
    return {key for key, count in waits.items() if count > 0}


def _cycle(tree: Tree, path: list[tuple[Input, Operator]]) -> Problem:
    """`path` goes against the data; the message goes with it, from the operator that stands first in the file."""
    order = {id(operator): index for index, operator in enumerate(tree.operators)}
    path = path[::-1]
    first = min(range(len(path)), key=lambda index: order[id(path[index][1])])
    path = path[first:] + path[:first]
    names = [shown(operator.name.value)[1:-1] if operator.name is not None else "?" for _, operator in path]
    if len(names) > SHOWN_STEPS:
        names[SHOWN_STEPS // 2 : -(SHOWN_STEPS // 2)] = ["…"]
    upstream = path[0][0].upstream
    assert upstream is not None  # noqa: S101 - an edge has one
    return problem_at(upstream, f"operators wait for each other: {' -> '.join([*names, names[0]])}", CODE)
