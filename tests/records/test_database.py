"""Engine, transactions and migrations against a real PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from clara_flow.errors import ServiceError, SettingsError
from clara_flow.records import database, dicom_models  # noqa: F401  its tables stand in METADATA, too
from clara_flow.records.models import METADATA, Payload

DICOM = {"dicom_aetitles", "dicom_sources", "dicom_destinations", "dicom_journals", "dicom_groups", "dicom_instances"}
MPPS = {"dicom_procedure_steps"}
DELIVERY = {"dicom_associations", "dicom_submissions", "deliveries", "delivery_items", "inference_requests"}
DELIVERY |= {"dicom_commitment_reports"}
TABLES = {"pipelines", "payloads", "jobs", "job_operators", "nodes", "leases", "quotas"} | DICOM | MPPS | DELIVERY


def tables(url: str) -> set[str]:
    engine = database.connect(url)
    try:
        return set(sa.inspect(engine).get_table_names()) - {"alembic_version"}
    finally:
        engine.dispose()


def test_migrations_make_what_the_models_say(empty_database_url: str) -> None:
    database.migrate(empty_database_url)
    engine = database.connect(empty_database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, METADATA) == []
        made = {
            constraint["name"] for table in TABLES for constraint in sa.inspect(connection).get_check_constraints(table)
        }
    engine.dispose()
    # alembic does not compare these
    assert made == {
        str(constraint.name)
        for table in METADATA.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, sa.CheckConstraint)
    }


def test_down_and_up_again(empty_database_url: str) -> None:
    database.migrate(empty_database_url)
    assert tables(empty_database_url) == TABLES
    database.unmigrate(empty_database_url)
    assert tables(empty_database_url) == set()
    database.migrate(empty_database_url)
    assert tables(empty_database_url) == TABLES


def test_many_may_migrate_at_once(empty_database_url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(database.migrate, [empty_database_url] * 6))
    assert tables(empty_database_url) == TABLES


def test_migrations_are_one_line_of_history_and_shipped() -> None:
    script = ScriptDirectory(str(database.MIGRATIONS))
    assert len(script.get_heads()) == 1
    assert len(script.get_bases()) == 1
    assert database.MIGRATIONS.is_relative_to(Path(database.__file__).parent)


def test_tables_of_a_newer_version_are_refused(empty_database_url: str) -> None:
    database.migrate(empty_database_url)
    engine = database.connect(empty_database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'of the future'"))
    engine.dispose()
    with pytest.raises(ServiceError, match="newer version"):
        database.migrate(empty_database_url)


def test_an_unreachable_database_is_named_without_its_password(tmp_path: Path) -> None:
    url = f"postgresql://me:s3cret@/clara_flow?host={tmp_path}"
    with pytest.raises(ServiceError, match=r"cannot be used: .*clara-flow up") as caught:
        database.migrate(url)
    assert "s3cret" not in str(caught.value)
    engine = database.connect(url)
    with pytest.raises(ServiceError, match="cannot be used"), database.transaction(engine) as session:
        session.execute(sa.text("SELECT 1"))
    engine.dispose()


@pytest.mark.parametrize("url", ["", "nonsense", "sqlite:///x.db", "mysql://me:s3cret@host/db", "postgresql//host"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="no PostgreSQL address") as caught:
        database.connect(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg"])
def test_the_driver_is_ours_to_choose(scheme: str) -> None:
    url = f"{scheme}://me:p%40ss@host:1234/db?sslmode=require"
    assert database.with_driver(url, "psycopg") == "postgresql+psycopg://me:p%40ss@host:1234/db?sslmode=require"
    assert database.with_driver(url, "asyncpg").startswith("postgresql+asyncpg://me:p%40ss@host:1234/db")


def test_a_transaction_is_all_or_nothing(engine: sa.Engine) -> None:
    def fail_late() -> None:
        with database.transaction(engine) as session:
            session.add(Payload(created=datetime.now(UTC)))
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_late()
    with database.transaction(engine) as session:
        payload = Payload(created=datetime.now(UTC))
        session.add(payload)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM payloads")).scalar() == 1
    assert payload.kind == "PIPELINE"  # usable after its session


def test_a_lost_connection_is_replaced_unseen(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        pid = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar()
    other = sa.create_engine(engine.url, isolation_level="AUTOCOMMIT")
    with other.connect() as connection:
        connection.execute(sa.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    other.dispose()
    with database.transaction(engine) as session:
        assert session.connection().execute(sa.text("SELECT pg_backend_pid()")).scalar() != pid


def test_times_come_back_as_utc(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        assert connection.execute(sa.text("SHOW timezone")).scalar() == "UTC"
