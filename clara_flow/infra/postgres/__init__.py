"""The embedded PostgreSQL: a small starter around `initdb` and `postgres`, on a Unix socket in the data folder."""

from clara_flow.infra.postgres.address import embedded, records_url
from clara_flow.infra.postgres.server import DATABASES, EmbeddedPostgres

__all__ = ["DATABASES", "EmbeddedPostgres", "embedded", "records_url"]
