"""The loader: places, limits, and the fall-back without libyaml."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clara_flow.flows.definition.loader import MAX_BYTES, MAX_DEPTH, load
from clara_flow.flows.definition.node import Mapping, Node, Sequence, Text

PLACES = """\
# comment
größe: 😀   # wide characters count as one
list:
- first
- {in: "x", "b/~": 1}
text: |
  two
  lines
"""


def loaded(text: str | bytes) -> Mapping:
    root, problems = load(text, "test.yaml")
    assert problems == []
    assert root is not None
    return root


def places(node: Node) -> dict[str, tuple[int, int, str]]:
    """pointer -> (line, column, text) of every scalar."""
    match node:
        case Text():
            return {node.pointer: (node.line, node.column, node.value)}
        case Sequence():
            children = list(node.items)
        case Mapping():
            children = [value for _, value in node.entries.values()]
    return {pointer: place for child in children for pointer, place in places(child).items()}


@pytest.fixture(params=["libyaml", "pure Python"])
def either_parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pure Python":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    elif not yaml.__with_libyaml__:
        pytest.skip("PyYAML was built without libyaml")
    return str(request.param)


@pytest.mark.usefixtures("either_parser")
def test_every_scalar_keeps_its_place() -> None:
    assert places(loaded(PLACES)) == {
        "/größe": (2, 8, "😀"),
        "/list/0": (4, 3, "first"),
        "/list/1/in": (5, 8, "x"),
        "/list/1/b~1~0": (5, 20, "1"),
        "/text": (6, 7, "two\nlines\n"),
    }


@pytest.mark.usefixtures("either_parser")
@pytest.mark.parametrize("written", ["18.04", "1.0", "0.4.0", "0x10", "010", "1e3", "yes", "2020-10-01", "=", "1_0"])
def test_scalars_stay_as_written(written: str) -> None:
    assert places(loaded(f"a: {written}"))["/a"][2] == written
    assert places(loaded(f"a: '{written}'"))["/a"][2] == written


def test_null_is_nothing_as_a_value_and_a_word_as_a_key_or_in_quotes() -> None:
    root = loaded("{a: , b: ~, c: null, d: 'null', null: x, e: !!str null}")
    assert [root.get(name) is None for name in "abcde"] == [True, True, True, False, False]
    assert root.text("null") is not None


def test_aliases_become_values_of_their_own() -> None:
    root = loaded("a: &x {b: 1}\nc: *x\n")
    assert places(root) == {"/a/b": (1, 11, "1"), "/c/b": (1, 11, "1")}
    assert root.get("a") is not root.get("c")


@pytest.mark.usefixtures("either_parser")
@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: 1\nb: [", (3, 1)),
        ("a: \ud800", (1, 4)),
        ('a: "\\ud800"', (1, 4)),
        ('a: "\\UFFFFFFFF"', (1, 1)),
        ("a: \x07", (1, 4)),
        ("%YAML 3.0\n---\na: 1", (1, 1)),
        (b"\xff\xfea\0", (1, 1)),
        (b"a: \xff", (1, 4)),
        ("just text", (1, 1)),
    ],
)
def test_what_cannot_be_read_is_one_problem(text: str | bytes, place: tuple[int, int]) -> None:
    root, problems = load(text, "test.yaml")
    assert root is None
    assert [problem.code for problem in problems] == ["P01"]
    line, _ = place
    assert problems[0].line in (line, line - 1)  # the two parsers put the end of a text into different lines


def test_limits() -> None:
    comment = "#" * (MAX_BYTES - len("a: 1\n"))
    assert loaded(f"a: 1\n{comment}")
    assert "larger than 1 MiB" in load(f"a: 1\n{comment}#", "test.yaml")[1][0].message
    deepest = "a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert loaded(deepest)
    assert "deeper than 32" in load("a: [" + deepest[3:] + "]", "test.yaml")[1][0].message
    assert "deeper than 32" in load(f"{deepest.replace('a: ', 'a: &x ')}\nb: [*x]", "test.yaml")[1][0].message
    assert "more than 250000 values" in load("a: [" + ",".join("x" * 300_000) + "]", "test.yaml")[1][0].message


def test_long_keys_are_refused() -> None:
    key = "k" * 400_000
    text = f"? {key}\n: [" + ", ".join(["{a: 1, a: 2}"] * 20_000) + "]"
    root, problems = load(text, "test.yaml")
    assert root is None
    assert [problem.message for problem in problems] == ["a key of more than 1024 characters"]


def test_bad_keys_are_counted() -> None:
    text = "a:\n" + "- {x: 1, x: 2}\n" * 2000
    root, problems = load(text, "test.yaml")
    assert root is None
    assert len(problems) == 1001
    assert problems[-1].message == "more than 1000 keys cannot be read; the rest is left out"


@given(st.text() | st.binary())
def test_any_text_is_a_tree_or_problems(text: str | bytes) -> None:
    root, problems = load(text, "test.yaml")
    assert root is not None or problems
    assert all(problem.code == "P01" and problem.line >= 1 and problem.column >= 1 for problem in problems)


SCALARS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8).filter(
    lambda text: text != "<<"
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3), max_leaves=12
)


def plain(node: Node) -> object:
    match node:
        case Text():
            return node.value
        case Sequence():
            return [plain(item) for item in node.items]
        case Mapping():
            return {key: plain(value) for key, (_, value) in node.entries.items()}


@given(st.dictionaries(SCALARS, TREES, max_size=4))
def test_what_is_printed_is_read_back(tree: dict[str, object]) -> None:
    assert plain(loaded(yaml.safe_dump(tree, allow_unicode=True, default_style='"'))) == tree
