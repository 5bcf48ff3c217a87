"""Fixtures of the configuration's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from postgres_fixture import database_url  # noqa: F401
from services.gateway.serving import house_on

from clara_flow.deployments.trigger import House


@pytest.fixture
def house(database_url: str, tmp_path: Path) -> Iterator[House]:  # noqa: F811
    """A platform without processes and rows."""
    with house_on(database_url, tmp_path) as made:
        yield made


@pytest.fixture
def engine(house: House) -> sa.Engine:
    """Its database."""
    with house.engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE dicom_associations"))
    return house.engine
