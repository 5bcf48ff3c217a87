"""How the language is described: a part is a dataclass, its fields are the keys.

From this one description come the reading of a tree (`read`), the checks of rule P03 and the JSON Schema.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from clara_flow.flows.definition.node import Mapping, Node, Sequence, Text

VERSIONS = ("0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0")
CLARA_ORCHESTRATOR_SINCE = "0.4.0"
TYPED_SINCE = "0.5.0"
MODELS_SINCE = "0.6.0"


def is_before(version: str | None, other: str) -> bool:
    """Whether a known version is older than `other`; an unknown one is not."""
    return version in VERSIONS and VERSIONS.index(version) < VERSIONS.index(other)


def is_typed(version: str | None) -> bool | None:
    """Whether inputs and outputs must have types; None when the version is unknown."""
    return None if version not in VERSIONS else not is_before(version, TYPED_SINCE)


WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,9}")


@dataclass(frozen=True, slots=True)
class TextShape:
    """A scalar. `choices`: the words that are possible, compared without case when `any_case`."""

    choices: tuple[str, ...] = ()
    any_case: bool = False


@dataclass(frozen=True, slots=True)
class FlagShape(TextShape):
    """`true` or `false`, quoted or not, in any case."""

    choices: tuple[str, ...] = ("true", "false")
    any_case: bool = True

    def parse(self, text: Text) -> bool:
        """The value of a text that rule P03 let through."""
        return text.value.casefold() == self.choices[0]


@dataclass(frozen=True, slots=True)
class NumberShape:
    """A whole number in a scalar, quoted or not."""

    minimum: int
    maximum: int

    def parse(self, text: Text) -> int | None:
        """The number; None when it is none or out of range."""
        if not WHOLE_NUMBER.fullmatch(text.value):
            return None
        number = int(text.value)
        return number if self.minimum <= number <= self.maximum else None


@dataclass(frozen=True, slots=True)
class TextsShape:
    """A list of scalars: whole numbers when `number` is given, only those words when `choices` are."""

    number: NumberShape | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PairsShape:
    """A map from names of the author's choice to scalars."""


@dataclass(frozen=True, slots=True)
class PartShape:
    """A map with known keys."""

    part: type[Part]


@dataclass(frozen=True, slots=True)
class PartsShape:
    """A list of maps with known keys."""

    part: type[Part]


Shape = TextShape | NumberShape | TextsShape | PairsShape | PartShape | PartsShape


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a part.

    name            as written in YAML.
    about           one sentence for the reference and for editors.
    required        always.
    required_typed / required_untyped   only from / before api-version 0.5.0.
    own_file        belongs to a document that lives in its own file (operators and services).
    since           the version that brought it; older documents get a warning that ends in `before`.
    deprecated      (version, what to use instead).
    refused         why this key is not possible here although one might expect it.
    advice          a warning whenever the key is used.
    """

    name: str
    shape: Shape
    about: str
    required: bool = False
    required_typed: bool = False
    required_untyped: bool = False
    own_file: bool = False
    since: str = VERSIONS[0]
    before: str = "it is read all the same"
    deprecated: tuple[str, str] | None = None
    refused: str = ""
    advice: str = ""

    def is_required(self, version: str | None) -> bool:
        """Whether a document of that version must have it."""
        typed = is_typed(version)
        return self.required or (self.required_typed and typed is True) or (self.required_untyped and typed is False)


@dataclass(slots=True, eq=False)
class Part:
    """A map of the definition. A field is empty where the key is absent or holds another kind of value."""

    node: Mapping = field(repr=False)


Pairs = tuple[tuple[Text, Text], ...]
P = TypeVar("P", bound=Part)

_KEYS: dict[type[Part], dict[str, tuple[str, Key]]] = {}
_EMPTY: dict[type, Callable[[], Any]] = {TextsShape: tuple, PairsShape: tuple, PartsShape: tuple}


def key(shape: Shape, about: str, *, name: str = "", **rules: Any) -> Any:
    """A dataclass field that is a key of the language; its YAML name is the field's with hyphens."""
    metadata = {"shape": shape, "about": about, "yaml": name, "rules": rules}
    empty = _EMPTY.get(type(shape))
    return field(default_factory=empty, metadata=metadata) if empty else field(default=None, metadata=metadata)


def keys_of(part: type[Part]) -> dict[str, tuple[str, Key]]:
    """YAML key -> (field name, Key) of a part, in the order of the reference."""
    if part in _KEYS:
        return _KEYS[part]
    found: dict[str, tuple[str, Key]] = {}
    for member in dataclasses.fields(part):
        if "shape" in member.metadata:
            yaml_name = member.metadata["yaml"] or member.name.replace("_", "-")
            rules = member.metadata["rules"]
            entry = Key(yaml_name, member.metadata["shape"], member.metadata["about"], **rules)
            found[yaml_name] = (member.name, entry)
    return _KEYS.setdefault(part, found)


def read(part: type[P], node: Mapping) -> P:
    """The part that a map spells; what does not fit is left empty, for rule P03 to tell."""
    values: dict[str, Any] = {}
    for yaml_name, (attribute, entry) in keys_of(part).items():
        value = node.get(yaml_name)
        if value is not None:
            content = _content(entry.shape, value)
            if content is not None:
                values[attribute] = content
    return part(node, **values)


def _content(shape: Shape, value: Node) -> Any:
    match shape, value:
        case ((TextShape() | NumberShape()), Text()):
            return value
        case TextsShape(), Sequence():
            return tuple(item for item in value.items if isinstance(item, Text))
        case PairsShape(), Mapping():
            return tuple((name, text) for name, text in value.entries.values() if isinstance(text, Text))
        case PartShape(part), Mapping():
            return read(part, value)
        case PartsShape(part), Sequence():
            return tuple(read(part, item) for item in value.items if isinstance(item, Mapping))
    return None
