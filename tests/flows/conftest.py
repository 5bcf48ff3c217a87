"""Options of the flows' tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the .out files of tests/flows/definition anew, to be reviewed as text (give tests/flows as path)",
    )
