"""The page of differences from Clara names tests for all that it claims, and these are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "reference" / "differences-from-clara.md"
ROWS = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| Clara's")]
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def names_in(name: str) -> set[str]:
    """The tests of the files of that name."""
    return {
        node.name
        for path in (ROOT / "tests").rglob(name)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:60])
def test_each_difference_is_shown(row: str) -> None:
    shown = NAMED.findall(row.split("|")[3])
    assert shown
    for file, test in shown:
        assert test in names_in(file), f"{file} has no {test}"


def test_the_page_is_found() -> None:
    assert len(ROWS) > 40
    assert f"reference/{PAGE.name}" in (ROOT / "docs" / "README.md").read_text()
