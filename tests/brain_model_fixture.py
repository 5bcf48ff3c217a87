"""The brain extraction model for tests: made once, kept between sessions."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def brain_model() -> Path:
    """Folder of the brain extraction model, made once and kept; skips where the package deepbet cannot be fetched."""
    from clara_flow.operators.brain_extraction.prepare_model import PrepareError, prepare

    folder = Path(__file__).parents[1] / ".cache" / "models" / "brain_extraction_deepbet"
    try:
        prepare(folder, progress=lambda share, message: None)
    except PrepareError as problem:
        if "cannot be fetched" not in str(problem):
            raise
        pytest.skip(str(problem))
    return folder
