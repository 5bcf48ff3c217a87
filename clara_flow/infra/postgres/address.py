"""Where the databases are: of the embedded server in the data folder, or of the one that the settings name."""

from __future__ import annotations

from clara_flow.infra.postgres.server import EmbeddedPostgres
from clara_flow.settings import Settings


def embedded(settings: Settings) -> EmbeddedPostgres:
    """The embedded server of that data folder."""
    return EmbeddedPostgres(
        settings.data_dir / "postgres",
        bin_dir=settings.postgres_bin_dir,
        log_path=settings.data_dir / "logs" / "postgresql.log",
        timeout_s=settings.service_start_timeout_s,
    )


def records_url(settings: Settings) -> str:
    """Address of the records' database, with its password where it has one."""
    return settings.database_url.get_secret_value() if settings.database_url else embedded(settings).url()
