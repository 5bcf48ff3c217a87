"""The JSON Schema of the language, for editors; generated from the same keys that rule P03 checks.

`python -m clara_flow.flows.definition.schema` prints it; docs/reference/pipeline-definition.schema.json holds it. It
says what keys there are and what they hold. What needs the whole definition (names, edges, types) stays with
`clara-flow check`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from clara_flow.flows.definition.grammar import (
    TYPED_SINCE,
    VERSIONS,
    FlagShape,
    Key,
    NumberShape,
    PairsShape,
    Part,
    PartShape,
    PartsShape,
    Shape,
    TextShape,
    TextsShape,
    is_before,
    keys_of,
)
from clara_flow.flows.definition.syntax import Input, Output, Pipeline

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TITLE = "clara-flow pipeline definition"
SCALAR = ["string", "number", "boolean"]
PLACEHOLDER_PATTERN = r"\$\{\{"
TYPED_VERSIONS = tuple(version for version in VERSIONS if not is_before(version, TYPED_SINCE))


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of a pipeline definition; `#/$defs/Operator` and `Service` are those of own files."""
    definitions: dict[str, Any] = {}
    root = _part_schema(Pipeline, definitions)
    entries = {
        plural: {"items": {"required": [n for n, (_, key) in keys_of(part).items() if key.required_typed]}}
        for plural, part in (("input", Input), ("output", Output))
    }
    return {
        "$schema": DIALECT,
        "title": TITLE,
        **root,
        "if": {"properties": {"api-version": {"enum": list(TYPED_VERSIONS)}}, "required": ["api-version"]},
        "then": {
            "properties": {
                "operators": {
                    "items": {"if": {"not": {"required": ["api-version"]}}, "then": {"properties": entries}},
                }
            }
        },
        "$defs": dict(sorted(definitions.items())),
    }


def _part_schema(part: type[Part], definitions: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required = []
    for name, (_, key) in keys_of(part).items():
        if key.refused:
            continue
        properties[name] = _key_schema(key, definitions)
        if key.required:
            required.append(name)
    schema: dict[str, Any] = {
        "description": (part.__doc__ or "").strip(),
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
    if "import" in properties:
        return schema | {"anyOf": [{"required": required}, {"required": ["import"]}]}
    return schema | ({"required": required} if required else {})


def _key_schema(key: Key, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = {"description": _description(key), **_shape_schema(key.shape, definitions)}
    if key.deprecated or key.advice:
        schema["deprecated"] = True
    if key.required and isinstance(key.shape, PartsShape):
        schema["minItems"] = 1
    return schema


def _description(key: Key) -> str:
    notes = []
    if key.since != VERSIONS[0]:
        notes.append(f"Since api-version {key.since}.")
    if key.deprecated:
        notes.append(f"Deprecated since api-version {key.deprecated[0]}: use `{key.deprecated[1]}`.")
    if key.advice:
        notes.append(f"Better not here: {key.advice}.")
    return " ".join([key.about, *notes])


def _shape_schema(shape: Shape, definitions: dict[str, Any]) -> dict[str, Any]:
    match shape:
        case FlagShape():
            spelled = _shape_schema(TextShape(shape.choices, any_case=True), definitions)
            return {"anyOf": [{"type": "boolean"}, *spelled["anyOf"]]}
        case TextShape(choices, any_case) if choices:
            cases = {case for word in choices for case in (word, word.lower(), word.upper())} if any_case else choices
            words = list(choices) + sorted(set(cases) - set(choices))
            return {"anyOf": [{"enum": words}, {"type": "string", "pattern": PLACEHOLDER_PATTERN}]}
        case TextShape():
            return {"type": [*SCALAR, "null"]}
        case NumberShape(minimum, maximum):
            number = {"type": "integer", "minimum": minimum, "maximum": maximum}
            return {"anyOf": [number, {"type": "string", "pattern": rf"^-?[0-9]+$|{PLACEHOLDER_PATTERN}"}]}
        case TextsShape(number, choices):
            item = number or (TextShape(choices) if choices else None)
            return {"type": "array", "items": _shape_schema(item, definitions) if item else {"type": SCALAR}}
        case PairsShape():
            return {"type": "object", "additionalProperties": {"type": [*SCALAR, "null"]}}
        case PartShape(part):
            return _reference(part, definitions)
        case PartsShape(part):
            return {"type": "array", "items": _reference(part, definitions)}


def _reference(part: type[Part], definitions: dict[str, Any]) -> dict[str, Any]:
    if part.__name__ not in definitions:
        definitions[part.__name__] = {}
        definitions[part.__name__] = _part_schema(part, definitions)
    return {"$ref": f"#/$defs/{part.__name__}"}


def schema_text() -> str:
    """The published file's text."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
