"""P09: from api-version 0.5.0 on types are complete, and the two ends of an edge have types that fit."""

from __future__ import annotations

from collections.abc import Iterator

from clara_flow.flows.definition.node import Text
from clara_flow.flows.definition.problem import Problem, Vocabulary, problem_at, shown
from clara_flow.flows.definition.syntax import DIMENSION, Entry, Input
from clara_flow.flows.definition.tree import Tree, label
from clara_flow.flows.definition.types import MAX_RANK, PRIMITIVES, STREAM_WORD, TYPES, misfit, plan_type, spelled
from clara_flow.plan import Medium

CODE = "P09"


def check(tree: Tree) -> Iterator[Problem]:
    """Each typed entry by itself, then each edge, and the payload's inputs."""
    types, primitives = Vocabulary(TYPES), Vocabulary(PRIMITIVES)
    for operator in tree.operators:
        if not tree.pipeline.is_typed(operator):
            continue
        where = label(operator)
        for entry in (*operator.inputs, *operator.outputs):
            yield from _check_entry(entry, where, types, primitives)
        for source in operator.inputs:
            kind = plan_type(source)
            if source.upstream is None and source.type is not None and kind and kind.medium is Medium.MEMORY:
                found = source.type.value
                message = (
                    f"an input without `from` reads the payload, which is files: `type` must be stream, not {found}"
                )
                yield problem_at(source.type, message, CODE)
    for operator in tree.operators:
        for entry in operator.inputs:
            yield from _check_edge(tree, entry, label(operator), typed=bool(tree.pipeline.is_typed(operator)))


def _check_entry(entry: Entry, where: str, types: Vocabulary, primitives: Vocabulary) -> Iterator[Problem]:
    if entry.type is None or entry.type.is_open:
        return
    name = entry.type.value
    if name not in TYPES:
        known = "stream, array, string or a primitive such as uint8, int16, float32"
        hint = types.hint(name)
        yield problem_at(entry.type, f"{shown(name)} is not a type; possible are {known}{hint}", CODE)
        return
    element = entry.element_type or entry.format
    if name == "stream":
        yield from _forbidden(entry, ("shape",), name, where)
        yield from _needed(entry, "path", name, where, present=entry.path is not None)
        yield from _needed(entry, "element-type", name, where, present=element is not None)
        if element is not None and not element.is_open and not STREAM_WORD.fullmatch(element.value):
            message = f"`element-type` of a stream is one word such as dicom or nifti, not {shown(element.value)}"
            yield problem_at(element, message, CODE)
    elif name == "array":
        yield from _forbidden(entry, ("path",), name, where)
        yield from _needed(entry, "shape", name, where, present=entry.node.get("shape") is not None)
        yield from _needed(entry, "element-type", name, where, present=element is not None)
        if element is not None and not element.is_open and element.value not in PRIMITIVES:
            hint = primitives.hint(element.value)
            message = (
                f"`element-type` of an array is a primitive such as uint8 or float32, not {shown(element.value)}{hint}"
            )
            yield problem_at(element, message, CODE)
        yield from _check_shape(entry)
    else:
        yield from _forbidden(entry, ("path", "element-type", "format", "shape"), name, where)


def _check_shape(entry: Entry) -> Iterator[Problem]:
    node = entry.node.get("shape")
    if node is not None and not isinstance(node, Text) and not 1 <= len(entry.shape) <= MAX_RANK:
        yield problem_at(node, f"`shape` has {len(entry.shape)} dimensions; 1 to {MAX_RANK} are possible", CODE)
    for dimension in entry.shape:
        if not dimension.is_open and DIMENSION.parse(dimension) is None:
            message = f"{shown(dimension.value)} is not a dimension; a positive whole number is, or -1 for any"
            yield problem_at(dimension, message, CODE)


def _forbidden(entry: Entry, keys: tuple[str, ...], name: str, where: str) -> Iterator[Problem]:
    for key in keys:
        if entry.node.get(key) is not None:
            yield problem_at(entry.node.entries[key][0], f"type {name} has no `{key}` (in {where})", CODE)


def _needed(entry: Entry, key: str, name: str, where: str, *, present: bool) -> Iterator[Problem]:
    if not present and entry.type is not None:
        yield problem_at(entry.type, f"type {name} needs `{key}` (in {where})", CODE)


def _check_edge(tree: Tree, entry: Input, where: str, *, typed: bool) -> Iterator[Problem]:
    upstream = tree.upstream_of(entry)
    output = tree.output_of(upstream, entry) if upstream is not None else None
    if upstream is None or output is None or entry.upstream is None:
        return
    produced = plan_type(output) if tree.pipeline.is_typed(upstream) else None
    consumed = plan_type(entry) if typed else None
    if produced is not None and consumed is not None:
        reason = misfit(produced, consumed)
    else:  # an untyped end is files of any kind
        ends = (produced, consumed)
        reason = "untyped inputs and outputs are files" if any(e and e.medium is Medium.MEMORY for e in ends) else ""
    if reason:
        has, takes = (spelled(kind) if kind else "files without a type" for kind in (produced, consumed))
        message = f"{where} takes {takes}, but {label(upstream)} gives {has}: {reason}"
        yield problem_at(entry.type if typed and entry.type else entry.upstream, message, CODE)
