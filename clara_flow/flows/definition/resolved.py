"""The resolved definition: one document, imports put in, parameters substituted, ready to be printed as YAML."""

from __future__ import annotations

from typing import Any

from clara_flow.flows.definition.grammar import (
    FlagShape,
    Key,
    NumberShape,
    PairsShape,
    Part,
    PartShape,
    PartsShape,
    TextsShape,
    keys_of,
)
from clara_flow.flows.definition.syntax import Entry, Pipeline

DROPPED = frozenset({"parameters", "import"})


def resolved_definition(pipeline: Pipeline) -> dict[str, Any]:
    """Plain values that spell a checked pipeline; they compile to the same plan.

    Unnamed inputs and outputs get `name: null`, as Clara's own compiler printed them. Keys that a warning called
    ignored are left out. An operator from a file of another api-version keeps its own.
    """
    return _part(pipeline)


def _part(part: Part) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, (attribute, key) in keys_of(type(part)).items():
        if name in DROPPED:
            continue
        value = getattr(part, attribute)
        if part.node.get(name) is not None:
            plain[name] = _plain(key, value)
        elif name == "name" and isinstance(part, Entry):
            plain[name] = None
    return plain


def _plain(key: Key, value: Any) -> Any:
    match key.shape:
        case NumberShape():
            return int(value.value)
        case FlagShape():
            return key.shape.parse(value)
        case TextsShape(None):
            return [text.value for text in value]
        case TextsShape():
            return [int(text.value) for text in value]
        case PairsShape():
            return {name.value: text.value for name, text in value}
        case PartShape():
            return _part(value)
        case PartsShape():
            return [_part(item) for item in value]
    return value.value
