"""The language reference is true: its examples do what it says, and it names every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from clara_flow.flows.compiler import compile_pipeline
from clara_flow.flows.definition import syntax
from clara_flow.flows.definition.grammar import VERSIONS, Part, keys_of
from clara_flow.plan import BUILTINS

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "pipeline-language.md").read_text("utf-8")
EXAMPLE = re.compile(r"^```yaml\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
EXAMPLES = [(found[1], found[2] or "") for found in EXAMPLE.finditer(PAGE)]


@pytest.mark.parametrize(("text", "told"), EXAMPLES)
def test_examples_do_what_the_page_says(text: str, told: str) -> None:
    result = compile_pipeline(text, source="example.yaml", root=Path(__file__).parent)
    assert "".join(f"{problem}\n" for problem in result.problems) == told


def test_every_rule_has_an_example() -> None:
    told = "".join(lines for _, lines in EXAMPLES)
    codes = [f"P{number:02}" for number in range(1, 18)]
    assert [code for code in codes if f"[{code}]" not in told] == []
    assert re.findall(r"^### (P\d\d):", PAGE, re.MULTILINE) == codes


def test_every_word_of_the_language_is_named() -> None:
    parts = [part for part in vars(syntax).values() if isinstance(part, type) and issubclass(part, Part)]
    words = {name for part in parts for name in keys_of(part)} | set(VERSIONS) | set(BUILTINS)
    missing = [word for word in sorted(words) if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", PAGE)]
    assert missing == []
