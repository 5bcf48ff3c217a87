"""The way to the database: engine, transactions, patience, migrations. PostgreSQL through psycopg 3, nothing else."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError, ProgrammingError
from sqlmodel import Session

from clara_flow.errors import ServiceError, SettingsError

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 0x636C617261  # advisory lock number, "clara" in ASCII

# A silent machine is noticed within half a minute (over TCP; a Unix socket has no such options).
CONNECT_ARGUMENTS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "application_name": "clara-flow",
    "options": "-c timezone=UTC",
}

# SQLSTATEs. A failed attempt to connect has none: only its text tells who will never be let in.
CONFLICTS = {"40001", "40P01"}  # serialization_failure, deadlock_detected
AWAY = {
    "53300",
    "57P01",
    "57P02",
    "57P03",
    "57P05",
}  # too_many_connections; shut down, crashed, starting, idle too long
OTHER_TABLES = {"42P01", "42703"}  # undefined_table, undefined_column
REFUSED = re.compile(
    r"authentication failed|does not exist|no pg_hba\.conf entry|not permitted|permission denied", re.I
)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0

Result = TypeVar("Result")


class DatabaseAway(ServiceError):
    """The database is lost, starting or out of reach: the same call may succeed later."""


class TransactionConflict(ServiceError):
    """The transaction was rolled back for another one's sake: the same call will succeed at once."""


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


def connect(url: str, *, pool_size: int = 5, max_overflow: int | None = None, pre_ping: bool = True) -> sa.Engine:
    """The engine for `url` (`postgresql://...`); it connects when it is first used and may be shared by threads.

    max_overflow    connections beyond `pool_size` that are closed after use; None: as many again.
    pre_ping        replace a connection that the server closed meanwhile, unseen.

    Dispose of it when done. Raises SettingsError.
    """
    return sa.create_engine(
        with_driver(url, "psycopg"),
        pool_size=pool_size,
        max_overflow=pool_size if max_overflow is None else max_overflow,
        pool_pre_ping=pre_ping,
        connect_args=CONNECT_ARGUMENTS,
        hide_parameters=True,  # else errors quote what was to be written
    )


@contextlib.contextmanager
def transaction(engine: sa.Engine) -> Iterator[Session]:
    """One transaction: committed at the end, rolled back on any error. Objects stay usable after it.

    Raises ServiceError when the database cannot be reached or has no room.
    """
    with naming_connection_problems(engine), Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


@contextlib.contextmanager
def reading(engine: sa.Engine) -> Iterator[Session]:
    """A session for a query: without the round trips of begin and commit. Objects stay usable after it.

    Raises ServiceError as `transaction` does.
    """
    with statements(engine) as connection, Session(connection, expire_on_commit=False) as session:
        yield session


@contextlib.contextmanager
def statements(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection on which each statement is a transaction of its own, without the round trips of begin and commit.

    Raises ServiceError as `transaction` does.
    """
    with naming_connection_problems(engine), engine.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")


@contextlib.contextmanager
def naming_connection_problems(engine: sa.Engine) -> Iterator[None]:
    """Turn the database's operational errors into ServiceError (DatabaseAway, TransactionConflict where that is so).

    So are tables and columns that are not there: another version made them, and no command is to blame for it.

    The address is named without its password.
    """
    try:
        yield
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) not in OTHER_TABLES:
            raise
        raise ServiceError(
            "PostgreSQL",
            f"the tables of {without_password(engine.url)} are those of another version of clara-flow",
            remedy="Start the platform anew with this version: `clara-flow down`, then `clara-flow up`.",
        ) from None
    except (OperationalError, InterfaceError) as error:
        reason = str(error.orig).strip().splitlines()[0] if error.orig else "no answer"
        state = getattr(error.orig, "sqlstate", None)
        if state in CONFLICTS:
            kind: type[ServiceError] = TransactionConflict
        elif error.connection_invalidated or state in AWAY or (state is None and not REFUSED.search(reason)):
            kind = DatabaseAway
        else:
            kind = ServiceError
        raise kind(
            "PostgreSQL",
            f"{without_password(engine.url)} cannot be used: {reason}",
            remedy="Is it started (`clara-flow up`), and is CLARA_FLOW_DATABASE_URL right?",
        ) from None


def without_password(url: sa.URL) -> str:
    """The address as it may be shown: libpq takes passwords among the parameters too."""
    secrets = {name: "***" for name in ("password", "sslpassword") if name in url.query}
    return url.update_query_dict(secrets).render_as_string().replace("=%2A%2A%2A", "=***")


def persistently(
    call: Callable[..., Result],
    *arguments: Any,
    patience_s: float,
    on_wait: Callable[[ServiceError], None] = lambda error: None,
    **keys: Any,
) -> Result:
    """`call(*arguments, **keys)`, again and again while the database is away, for as long as `patience_s`.

    A call whose answer was lost on the way is repeated too, although it was committed: it must be idempotent.

    on_wait     called with the error before each pause; what it raises ends the waiting.

    Raises what `call` raises; its last ServiceError when the patience is over.
    """
    deadline = time.monotonic() + patience_s
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return call(*arguments, **keys)
        except (DatabaseAway, TransactionConflict) as error:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise
            if isinstance(error, DatabaseAway):
                on_wait(error)
                time.sleep(min(pause_s, left_s))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


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
            f"the tables of {without_password(engine.url)} do not fit this clara-flow: {error}",
            remedy="They were made by a newer version: install that one.",
        ) from None
    finally:
        engine.dispose()
