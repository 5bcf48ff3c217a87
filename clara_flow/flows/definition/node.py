"""The tree that a YAML text becomes: every value keeps its place and its text as written.

There are no numbers and no booleans here: `tag: 18.04` and `tag: "18.04"` are the same text (Clara's rule).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

PLACEHOLDER_START = "${{"


@dataclass(slots=True, eq=False)
class Node:
    """A value and its place. `line` and `column` count from 1; `step` is its key or index in `parent`."""

    source: str
    line: int
    column: int
    parent: Node | None = field(default=None, repr=False, kw_only=True)
    step: str = field(default="", kw_only=True)

    @property
    def pointer(self) -> str:
        """JSON pointer (RFC 6901) inside the node's own file."""
        steps: list[str] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            steps.append(node.step.replace("~", "~0").replace("/", "~1"))
            node = node.parent
        return "".join(f"/{step}" for step in reversed(steps))


@dataclass(slots=True, eq=False)
class Text(Node):
    """A scalar.

    value       its text, parameters substituted.
    is_null     nothing was written (`name:`, `name: null`, `name: ~`): a key counts as absent, a variable is empty.
    """

    value: str = ""
    is_null: bool = False

    @property
    def is_open(self) -> bool:
        """A placeholder is left in it: its value is not known, so only rule P13 judges it."""
        return PLACEHOLDER_START in self.value


@dataclass(slots=True, eq=False)
class Mapping(Node):
    """A map, in the order of the file; keys are unique.

    own_file        the root of an imported document.
    import_failed   stands for an imported document that could not be read: its contents are unknown.
    """

    entries: dict[str, tuple[Text, Node]] = field(default_factory=dict)
    own_file: bool = False
    import_failed: bool = False

    def get(self, key: str) -> Node | None:
        """The value of `key`; None when it is absent or null."""
        entry = self.entries.get(key)
        if entry is None or (isinstance(entry[1], Text) and entry[1].is_null):
            return None
        return entry[1]

    def text(self, key: str) -> Text | None:
        """The value of `key` when it is a scalar."""
        value = self.get(key)
        return value if isinstance(value, Text) else None


@dataclass(slots=True, eq=False)
class Sequence(Node):
    """A list."""

    items: list[Node] = field(default_factory=list)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.items)


def size(node: Node) -> int:
    """Number of nodes of a subtree, itself included."""
    count, waiting = 0, [node]
    while waiting:
        current = waiting.pop()
        count += 1
        if isinstance(current, Mapping):
            waiting.extend(value for _, value in current.entries.values())
            count += len(current.entries)
        elif isinstance(current, Sequence):
            waiting.extend(current.items)
    return count


def copy(node: Node) -> Node:
    """A deep copy without a parent. The loader limits the depth, so recursion is safe."""
    match node:
        case Text():
            return Text(node.source, node.line, node.column, value=node.value, is_null=node.is_null)
        case Sequence():
            twin = Sequence(node.source, node.line, node.column)
            for index, item in enumerate(node.items):
                child = copy(item)
                child.parent, child.step = twin, str(index)
                twin.items.append(child)
            return twin
        case Mapping():
            return _copy_mapping(node)
    raise TypeError(type(node).__name__)


def _copy_mapping(node: Mapping) -> Mapping:
    twin = Mapping(node.source, node.line, node.column)
    for step, (key, value) in node.entries.items():
        child = copy(value)
        child.parent, child.step = twin, step
        twin.entries[step] = (key, child)
    return twin
