"""Fixtures of the exporter's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from dcmtk import Storescp
from postgres_fixture import database_url  # noqa: F401
from services.dicom.export.export_world import MakeWorld, World

from clara_flow.records.database import connect

TABLES = "deliveries, delivery_items, dicom_destinations, dicom_commitment_reports"


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:  # noqa: F811
    """An engine on a database without deliveries and destinations."""
    engine = connect(database_url, pool_size=20)
    with engine.begin() as connection:
        connection.execute(sa.text(f"TRUNCATE {TABLES}"))
    yield engine
    engine.dispose()


@pytest.fixture
def make_world(engine: sa.Engine, tmp_path: Path) -> MakeWorld:
    """A house with these settings."""

    def make(**settings: Any) -> World:
        return World(engine, tmp_path / "data", **settings)

    return make


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """A house."""
    return make_world()


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[Callable[..., Storescp]]:
    """Starts dcmtk's storescp with these options."""
    started: list[Storescp] = []

    def start(*options: str) -> Storescp:
        peer = Storescp(tmp_path / f"storescp-{len(started)}", *options)
        started.append(peer)
        peer.start()
        return peer

    yield start
    for peer in started:
        peer.kill()
