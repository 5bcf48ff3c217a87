"""Fixtures of the gateway's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from postgres_fixture import database_url  # noqa: F401
from services.gateway.serving import client, house_on, served

from clara_flow.deployments.trigger import House
from clara_flow.services.gateway import create_app


@pytest.fixture
def house(database_url: str, tmp_path: Path) -> Iterator[House]:  # noqa: F811
    """A platform without processes."""
    with house_on(database_url, tmp_path) as made:
        yield made


@pytest.fixture
def gateway(house: House) -> Iterator[httpx.Client]:
    """A client of a gateway of that house."""
    with served(create_app(house), house.settings.gateway_port) as url, client(url) as asking:
        yield asking
