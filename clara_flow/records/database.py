"""The way to the database: engine, transactions, migrations. PostgreSQL through psycopg 3, nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlmodel import Session

from clara_flow.errors import ServiceError, SettingsError

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 0x636C617261  # advisory lock number, "clara" in ASCII


def with_driver(url: str, driver: Literal["psycopg", "asyncpg"]) -> str:
    """A PostgreSQL address as SQLAlchemy takes it for `driver`, whatever driver it named before.

    Raises SettingsError when it is no PostgreSQL address (the password is not repeated).
    """
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise SettingsError(
            "CLARA_FLOW_DATABASE_URL is no PostgreSQL address; write postgresql://user:password@host/database"
        )
    return parsed.set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)


def connect(url: str, *, pool_size: int = 5) -> sa.Engine:
    """The engine for `url` (`postgresql://...`); it connects when it is first used and may be shared by threads.

    A connection that the server closed meanwhile is replaced unseen. Dispose of it when done. Raises SettingsError.
    """
    return sa.create_engine(
        with_driver(url, "psycopg"),
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=True,
        connect_args={"connect_timeout": 10, "application_name": "clara-flow", "options": "-c timezone=UTC"},
    )


@contextlib.contextmanager
def transaction(engine: sa.Engine) -> Iterator[Session]:
    """One transaction: committed at the end, rolled back on any error. Objects stay usable after it.

    Raises ServiceError when the database cannot be reached or has no room.
    """
    with naming_connection_problems(engine), Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


@contextlib.contextmanager
def naming_connection_problems(engine: sa.Engine) -> Iterator[None]:
    """Turn the database's operational errors into ServiceError; the address is named without its password."""
    try:
        yield
    except OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0] if error.orig else "no answer"
        raise ServiceError(
            "PostgreSQL",
            f"{engine.url.render_as_string()} cannot be used: {reason}",
            remedy="Is it started (`clara-flow up`), and is CLARA_FLOW_DATABASE_URL right?",
        ) from None


def migrate(url: str) -> None:
    """Bring the tables up to date. All or nothing, and one process at a time; nothing happens when they are.

    Raises ServiceError when the database cannot be reached or was made by a newer clara-flow, SettingsError when
    `url` is no address.
    """
    from alembic import command

    with migration(url) as config:
        command.upgrade(config, "head")


def unmigrate(url: str, revision: str = "base") -> None:
    """Take the tables back to an earlier revision ("base": none left). Raises as `migrate` does."""
    from alembic import command

    with migration(url) as config:
        command.downgrade(config, revision)


@contextlib.contextmanager
def migration(url: str) -> Iterator[Config]:
    """Alembic's configuration with a connection inside a transaction that holds the migration lock."""
    from alembic.config import Config
    from alembic.util import CommandError

    engine = connect(url, pool_size=1)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with naming_connection_problems(engine), engine.begin() as connection:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:number)"), {"number": MIGRATION_LOCK})
            config.attributes["connection"] = connection
            yield config
    except CommandError as error:
        raise ServiceError(
            "PostgreSQL",
            f"the tables of {engine.url.render_as_string()} do not fit this clara-flow: {error}",
            remedy="They were made by a newer version: install that one.",
        ) from None
    finally:
        engine.dispose()
