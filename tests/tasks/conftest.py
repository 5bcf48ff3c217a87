"""Fixtures of the tasks' tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from job_fixture import Bench
from postgres_fixture import database_url  # noqa: F401

from clara_flow.infra.launchers.process import ProcessLauncher
from clara_flow.records import database


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:  # noqa: F811
    """An engine on a migrated database."""
    engine = database.connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def bench(tmp_path: Path, engine: sa.Engine) -> Iterator[Bench]:
    """Jobs of local processes. Whatever was granted must be given back, and nothing be left running."""
    bench = Bench(tmp_path, engine, ProcessLauncher(tmp_path / "state"))
    yield bench
    assert bench.desk.is_whole()
    assert not bench.launcher.state_dir.exists() or list(bench.launcher.state_dir.iterdir()) == []  # type: ignore[attr-defined]
