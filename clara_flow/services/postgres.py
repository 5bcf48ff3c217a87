"""PostgreSQL as a service: the embedded one with our tables, or an external one by its address."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

from clara_flow.errors import ClaraFlowError, ServiceError
from clara_flow.infra.postgres import embedded, records_url
from clara_flow.services.service import Service
from clara_flow.settings import Settings

if TYPE_CHECKING:
    import sqlalchemy as sa

NAME = "postgresql"
PATIENCE_S = 30.0  # with a server that recovers from the crash of one of its processes
SECRET_PARAMETERS = {"password", "sslpassword"}


def prefect_url(settings: Settings) -> str:
    """Address (SQLAlchemy, asyncpg) of the database of our own Prefect server."""
    import sqlalchemy as sa

    from clara_flow.records.database import with_driver

    if settings.prefect_database_url is not None:
        url = settings.prefect_database_url.get_secret_value()
    elif settings.database_url is not None:
        beside = sa.make_url(settings.database_url.get_secret_value()).set(database="prefect")
        url = beside.render_as_string(hide_password=False)
    else:
        url = embedded(settings).url("prefect")
    parsed = sa.make_url(with_driver(url, "asyncpg"))
    if mode := parsed.query.get("sslmode"):  # libpq's name for what asyncpg calls ssl
        parsed = parsed.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})
    return parsed.render_as_string(hide_password=False)


def public_address(url: str) -> str:
    """An address without its password, fit for people and files."""
    parts = urlsplit(url)
    account, at, place = parts.netloc.rpartition("@")
    kept = [(name, value) for name, value in parse_qsl(parts.query) if name not in SECRET_PARAMETERS]
    public = parts._replace(netloc=f"{account.partition(':')[0]}{at}{place}", query=urlencode(kept, safe="/"))
    return public.geturl()


def service_of(settings: Settings) -> Service:
    """The one that the settings ask for."""
    return EmbeddedService(settings) if settings.database_url is None else ExternalService(settings)


class EmbeddedService(Service):
    """Our own server. It outlives its supervisor, and the next one takes it over as it runs."""

    name, title = NAME, "PostgreSQL"

    def __init__(self, settings: Settings) -> None:
        self.server = embedded(settings)
        self.address = self.server.url()
        self.log_path = self.server.log_path

    @property
    def pid(self) -> int | None:
        """Process id of the main process."""
        return self.server.pid

    def start(self) -> None:
        """Start it where it does not run, wait until it answers, bring our tables up to date."""
        from clara_flow.records.database import migrate, persistently

        self.server.start()
        persistently(migrate, self.address, patience_s=PATIENCE_S)

    def is_alive(self) -> bool:
        """Whether its main process runs."""
        return self.server.is_running()

    def problem(self) -> str:
        """Nothing: `start` waits until it answers, and the server heals what happens to its own processes."""
        return ""

    def end(self) -> bool:
        """Stop it, whoever started it."""
        return self.server.stop()


class ExternalService(Service):
    """A hospital's server: reached, not started. Our tables are made in the database that its address names."""

    name, title = NAME, "PostgreSQL"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.address = public_address(records_url(settings))
        self._engine: sa.Engine | None = None

    def start(self) -> None:
        """Reach it, bring our tables up to date, see that Prefect's database is there where ours uses it."""
        from sqlalchemy.exc import DBAPIError

        from clara_flow.records.database import migrate

        try:
            migrate(records_url(self.settings))
        except DBAPIError as error:
            raise ServiceError(
                self.title,
                f"our tables cannot be made in {self.address}: {str(error.orig).strip().splitlines()[0]}",
                remedy="Let the account own the database (ALTER DATABASE ... OWNER TO ...).",
            ) from None
        if self.settings.prefect_api_url is None:
            self._require_prefect_database()

    def is_alive(self) -> bool:
        """Always: its start is not ours."""
        return True

    def problem(self) -> str:
        """Why it does not answer `SELECT 1`."""
        import sqlalchemy as sa

        from clara_flow.records.database import connect, naming_connection_problems

        self._engine = self._engine or connect(records_url(self.settings), pool_size=1)
        try:
            with naming_connection_problems(self._engine), self._engine.connect() as connection:
                connection.execute(sa.text("SELECT 1"))
        except ClaraFlowError as error:
            return str(error)
        return ""

    def end(self) -> bool:
        """Let go of the connection; the server runs on."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None
        return False

    def _require_prefect_database(self) -> None:
        import sqlalchemy as sa

        from clara_flow.records.database import connect, naming_connection_problems

        url = sa.make_url(prefect_url(self.settings))
        if mode := url.query.get("ssl"):
            url = url.difference_update_query(["ssl"]).update_query_dict({"sslmode": mode})
        engine = connect(url.render_as_string(hide_password=False), pool_size=1)
        try:
            with naming_connection_problems(engine), engine.connect():
                pass
        except ServiceError as error:
            raise ServiceError(
                "PostgreSQL",
                f"the database of the Prefect server cannot be used: {error.reason}",
                remedy=f'Make it (CREATE DATABASE "{url.database}" OWNER "{url.username}"), or name another one with '
                "CLARA_FLOW_PREFECT_DATABASE_URL.",
            ) from None
        finally:
            engine.dispose()
