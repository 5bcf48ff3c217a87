"""Fixtures of the records' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from postgres_fixture import database_url, empty_database_url  # noqa: F401

from clara_flow.records import database


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:  # noqa: F811
    """An engine on a migrated database without rows."""
    engine = database.connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE leases, nodes, quotas, job_operators, jobs, pipelines, payloads"))
    yield engine
    engine.dispose()
