"""A database whose clock can be set while everybody works."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

# An explicit place of pg_catalog in the path: what stands before it hides PostgreSQL's own functions.
MAKE = """
CREATE SCHEMA settable;
CREATE TABLE settable.shift (by interval NOT NULL);
INSERT INTO settable.shift VALUES ('0');
CREATE FUNCTION settable.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
    'SELECT pg_catalog.clock_timestamp() + by FROM settable.shift';
CREATE FUNCTION settable.now() RETURNS timestamptz LANGUAGE sql VOLATILE AS
    'SELECT pg_catalog.now() + by FROM settable.shift';
DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET search_path = public, settable, pg_catalog', current_database());
END $$;
"""


def make_settable(engine: sa.Engine) -> None:
    """Let `set_clock` set the clock of this database, for all connections that are made from now on."""
    with engine.begin() as connection:
        connection.execute(sa.text(MAKE))
    engine.dispose()


def set_clock(engine: sa.Engine, by: timedelta) -> None:
    """Somebody sets it so much forward, or back; from the true time, not from what it was set to before."""
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE settable.shift SET by = :by"), {"by": by})
