"""Rule P01: a text becomes one tree within limits, or problems; nothing in it can raise or run away.

YAML's events are read and composed here, not by PyYAML's composer, because that one resolves numbers, expands aliases
without a limit and recurses without one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from clara_flow.flows.definition.node import PLACEHOLDER_START, Mapping, Node, Sequence, Text, copy, size
from clara_flow.flows.definition.problem import Problem, problem_at, shown

CODE = "P01"
MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_NODES = 250_000
MAX_KEY_LENGTH = 1024  # as YAML itself limits keys that no `?` marks
MAX_BAD_KEYS = 1000
NULL_WORDS = frozenset({"", "~", "null", "Null", "NULL"})
NO_TEXT = re.compile(r"[\0\ud800-\udfff]")
TEXT_TAG = "tag:yaml.org,2002:str"


class _Refused(Exception):
    """The text cannot be read further."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(message)
        self.line, self.column, self.message = line, column, message


def load(text: str | bytes, source: str) -> tuple[Mapping | None, list[Problem]]:
    """The tree of one YAML document and its P01 problems; no tree when the text cannot be read at all.

    Bytes are read as UTF-8. Raises nothing, whatever the text holds.
    """
    problems: list[Problem] = []
    try:
        decoded = _decode(text)
        composer = _Composer(source, problems)
        root = composer.compose(_events(decoded))
    except _Refused as refused:
        problems.append(Problem(source, refused.line, refused.column, refused.message, CODE))
        return None, problems
    if not isinstance(root, Mapping):
        message = "a definition is a map of keys such as `api-version: 0.6.0`, but this is a list or a single value"
        return None, [*problems, problem_at(root, message, CODE)]
    return root, problems


def _decode(text: str | bytes) -> str:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if len(raw) > MAX_BYTES:
        raise _Refused(1, 1, f"the file is larger than {MAX_BYTES // 2**20} MiB, the most that a definition may have")
    try:
        decoded = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        start = raw.rfind(b"\n", 0, error.start) + 1
        column = len(raw[start : error.start].decode("utf-8", "replace")) + 1
        hint = "; this looks like UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise _Refused(line, column, f"not text in UTF-8: byte 0x{raw[error.start]:02x}{hint}") from None
    if "\0" in decoded:
        before = decoded[: decoded.index("\0")]
        line_start = before.rfind("\n") + 1
        raise _Refused(before.count("\n") + 1, len(before) - line_start + 1, "a NUL character; is this a binary file?")
    return decoded.removeprefix("\ufeff")


def _events(text: str) -> Iterator[yaml.Event]:
    """YAML events, libyaml's where PyYAML was built with it."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        yield from yaml.parse(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        context = f" {error.context}" if error.context else ""
        raise _Refused(line, column, f"not YAML: {error.problem}{context}{_quote_hint(text, line)}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a character or an escape that YAML forbids
        position = getattr(error, "position", 0)
        before = text[:position] if isinstance(position, int) else ""
        column = len(before) - before.rfind("\n")
        reason = getattr(error, "reason", "") or "a character escape out of range"
        raise _Refused(before.count("\n") + 1, column, f"not YAML: {reason}") from None


def _quote_hint(text: str, line: int) -> str:
    """Inside [ ] and { } a bare `${{NAME}}` ends at its first brace: the most common slip with placeholders."""
    lines = text.splitlines()
    found = lines[min(line, len(lines)) - 1] if lines else ""
    return '; inside [ ] and { } write placeholders in quotes, "${{NAME}}"' if PLACEHOLDER_START in found else ""


@dataclass(slots=True)
class _Open:
    """A map or list whose end has not been read. `key` is the key that waits for its value."""

    node: Mapping | Sequence
    key: Text | None = None
    skips_value: bool = False


@dataclass(slots=True)
class _Composer:
    source: str
    problems: list[Problem]
    stack: list[_Open] = field(default_factory=list)
    anchors: dict[str, Node] = field(default_factory=dict)
    nodes: int = 0
    root: Node | None = None
    documents: int = 0

    def compose(self, events: Iterator[yaml.Event]) -> Node:
        """The document's root. Raises _Refused when it cannot be read."""
        for event in events:
            mark = event.start_mark
            line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
            match event:
                case yaml.DocumentStartEvent():
                    self.documents += 1
                    if self.documents > 1:
                        raise _Refused(line, column, "a file holds one document; a second one starts here")
                case yaml.ScalarEvent():
                    self._count(1, line, column)
                    self._check_tag(event.tag, line, column)
                    is_null = event.style in (None, "") and event.tag is None and event.value in NULL_WORDS
                    text = Text(self.source, line, column, value=event.value, is_null=is_null)
                    if NO_TEXT.search(event.value):
                        raise _Refused(line, column, "this value holds a NUL or half a character, which no text may")
                    self._anchor(event.anchor, text)
                    self._place(text)
                case yaml.MappingStartEvent():
                    self._start(Mapping(self.source, line, column), event)
                case yaml.SequenceStartEvent():
                    self._start(Sequence(self.source, line, column), event)
                case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                    self.stack.pop()
                case yaml.AliasEvent():
                    self._place(self._copy_of(event.anchor or "", line, column))
        if self.root is None:
            raise _Refused(1, 1, "the file is empty; a definition starts with `api-version:` and `name:`")
        return self.root

    def _start(self, node: Mapping | Sequence, event: yaml.CollectionStartEvent) -> None:
        self._count(1, node.line, node.column)
        self._check_tag(event.tag, node.line, node.column)
        if len(self.stack) >= MAX_DEPTH:
            raise _Refused(node.line, node.column, f"nested deeper than {MAX_DEPTH} levels")
        self._anchor(event.anchor, node)
        self._place(node)
        self.stack.append(_Open(node))

    def _count(self, nodes: int, line: int, column: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise _Refused(line, column, f"more than {MAX_NODES} values, aliases expanded")

    def _check_tag(self, tag: str | None, line: int, column: int) -> None:
        if tag is not None and tag != TEXT_TAG:
            raise _Refused(line, column, f"the YAML tag {shown(tag)} is not part of the language; only !!str is")

    def _anchor(self, name: str | None, node: Node) -> None:
        if name is not None:
            self.anchors[name] = node

    def _copy_of(self, name: str, line: int, column: int) -> Node:
        """What an alias stands for, as nodes of its own: their places are those of the anchor."""
        node = self.anchors.get(name)
        if node is None:
            raise _Refused(line, column, f"alias *{shown(name)[1:-1]} has no anchor &{shown(name)[1:-1]} before it")
        if any(entry.node is node for entry in self.stack):
            raise _Refused(line, column, f"alias *{shown(name)[1:-1]} stands inside its own anchor")
        self._count(size(node), line, column)
        if len(self.stack) + _height(node) > MAX_DEPTH:
            raise _Refused(line, column, f"nested deeper than {MAX_DEPTH} levels")
        return copy(node)

    def _place(self, node: Node) -> None:
        """Put a complete or just opened node where it belongs."""
        top = self.stack[-1] if self.stack else None
        if isinstance(node, Text) and node.is_null and (top is None or top.key is not None):
            node.value = ""
        if top is None:
            self.root = node
        elif isinstance(top.node, Sequence):
            node.parent, node.step = top.node, str(len(top.node.items))
            top.node.items.append(node)
        elif top.key is None and not top.skips_value:
            self._take_key(top, node)
        else:
            if top.key is not None:
                node.parent, node.step = top.node, top.key.value
                top.node.entries[top.key.value] = (top.key, node)
            top.key, top.skips_value = None, False

    def _take_key(self, top: _Open, node: Node) -> None:
        assert isinstance(top.node, Mapping)  # noqa: S101 - a sequence has no keys
        node.parent = top.node
        top.skips_value = True
        if len(self.problems) >= MAX_BAD_KEYS:
            raise _Refused(
                node.line, node.column, f"more than {MAX_BAD_KEYS} keys cannot be read; the rest is left out"
            )
        if not isinstance(node, Text):
            self.problems.append(problem_at(node, "a key must be text, not a map or a list", CODE))
            return
        if len(node.value) > MAX_KEY_LENGTH:
            raise _Refused(node.line, node.column, f"a key of more than {MAX_KEY_LENGTH} characters")
        node.step = node.value
        if node.value == "<<":
            self.problems.append(problem_at(node, "merge keys (<<) are not part of the language", CODE))
        elif node.value in top.node.entries:
            first = top.node.entries[node.value][0]
            message = f"key {shown(node.value)} is given twice; first in line {first.line}"
            self.problems.append(problem_at(node, message, CODE))
        else:
            top.key, top.skips_value = node, False


def _height(node: Node) -> int:
    if isinstance(node, Mapping):
        return 1 + max((_height(value) for _, value in node.entries.values()), default=0)
    if isinstance(node, Sequence):
        return 1 + max((_height(item) for item in node.items), default=0)
    return 0
