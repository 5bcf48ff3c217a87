"""The published reference of operators is what their operator.yaml files say."""

from __future__ import annotations

from pathlib import Path

from clara_flow.infra.images.catalog import bundled
from clara_flow.infra.images.reference import reference

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "operators.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(bundled()), "run `make docs`"


def test_every_operator_is_on_it() -> None:
    page = reference(bundled())
    assert all(f"(`{name}` " in page for name in bundled().operators)
