"""PostgreSQL for tests: one embedded server per test session, as many databases as wanted.

A conftest that needs them imports the fixtures: `from postgres_fixture import database_url  # noqa: F401`.
"""

from __future__ import annotations

import uuid

import psycopg
import pytest

from clara_flow.infra.postgres import EmbeddedPostgres
from clara_flow.records import database

SERVER = pytest.StashKey[EmbeddedPostgres]()


def session_server(config: pytest.Config, factory: pytest.TempPathFactory) -> EmbeddedPostgres:
    """The server of this test session, started when first asked for. Kept in the session, since a fixture that two
    conftests import would be made twice."""
    if SERVER not in config.stash:
        folder = factory.mktemp("postgres")
        # Nothing here has to survive a power cut.
        server = EmbeddedPostgres(folder, log_path=folder / "postgres.log", options={"fsync": "off"})
        server.start()
        config.add_cleanup(server.stop)
        config.stash[SERVER] = server
    return config.stash[SERVER]


def new_database(server: EmbeddedPostgres) -> str:
    """Address of a new, empty database."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return server.url(name)


@pytest.fixture(scope="session")
def database_url(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a database with our tables, made once."""
    url = new_database(session_server(pytestconfig, tmp_path_factory))
    database.migrate(url)
    return url


@pytest.fixture
def empty_database_url(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a database without tables, new for each test."""
    return new_database(session_server(pytestconfig, tmp_path_factory))
