"""Fixtures of history's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
import sqlalchemy as sa
from job_rows_fixture import JobMaker
from postgres_fixture import database_url  # noqa: F401
from prefect_fixture import OwnPrefect, prefect  # noqa: F401

from clara_flow.infra.history.run_history import RunHistory
from clara_flow.records import database


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:  # noqa: F811
    """An engine on the tests' database."""
    engine = database.connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def make_job(engine: sa.Engine) -> JobMaker:
    """Makes jobs in the records."""
    return JobMaker(engine)


@pytest_asyncio.fixture
async def history(prefect: OwnPrefect) -> AsyncIterator[RunHistory]:  # noqa: F811
    """A runner's history."""
    history = RunHistory(prefect.api_url, patience_s=30)  # a busy machine
    await history.open()
    yield history
    await history.close()
