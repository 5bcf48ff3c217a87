"""A house without a pool: jobs are made, and wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from dicom_spool import HandMade
from postgres_fixture import database_url  # noqa: F401
from tiny.pipelines import scripted, tiny_catalog, write_definition

from clara_flow.deployments.trigger import House
from clara_flow.records import database, dicom_config
from clara_flow.records.dicom_models import AeTitle
from clara_flow.services.dicom.grouping.grouper import Grouper
from clara_flow.settings import load_settings

TABLES = (
    "dicom_groups, dicom_instances, dicom_submissions, dicom_associations, dicom_journals, dicom_aetitles, "
    "dicom_destinations, dicom_procedure_steps, leases, nodes, quotas, job_operators, jobs, pipelines, payloads"
)


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:  # noqa: F811
    """An engine on a migrated database without rows."""
    engine = database.connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"TRUNCATE {TABLES} CASCADE"))
    yield engine
    engine.dispose()


@pytest.fixture
def lone_house(engine: sa.Engine, tmp_path: Path) -> House:
    """Settings of its own, and the scripted operator."""
    settings = load_settings(data_dir=tmp_path / "data", dicom_submit_retry_delay_s=0.1, storage_limit_percent=100)
    return House(settings=settings, engine=engine, catalog=tiny_catalog())


@pytest.fixture
def spool(lone_house: House) -> Path:
    root = lone_house.settings.data_dir / "spool"
    root.mkdir(parents=True)
    return root


@pytest.fixture
def journal(spool: Path) -> HandMade:
    return HandMade(spool)


@pytest.fixture
def pipeline(tmp_path: Path) -> str:
    """The path of a definition with one operator."""
    return str(write_definition(tmp_path / "tiny.yaml", scripted("a")))


@pytest.fixture
def add_aetitle(engine: sa.Engine, pipeline: str) -> Callable[..., AeTitle]:
    def add(name: str = "BRAIN", *, overwrite: bool = False, **settings: str) -> AeTitle:
        now = datetime.now(UTC)
        plain = {key.replace("_", "-"): value for key, value in settings.items()}
        if not any(key.startswith("pipeline-") for key in plain):
            plain["pipeline-seg"] = pipeline
        row = AeTitle(
            name=name, ae_title=name, processor_settings=plain, overwrite_same_instance=overwrite,
            created=now, updated=now,
        )  # fmt: skip
        return dicom_config.add_aetitle(engine, row)

    return add


Running = Callable[..., AbstractContextManager[Grouper]]


@pytest.fixture
def running(lone_house: House, spool: Path) -> Running:
    """Runs a grouper in a thread, for as long as the context lasts."""

    @contextmanager
    def run(house: House = lone_house, **facts: Any) -> Iterator[Grouper]:
        grouper, stop, problems = Grouper(house, spool, **facts), threading.Event(), list[BaseException]()

        def work() -> None:
            try:
                grouper.run(stop)
            except BaseException as error:  # noqa: BLE001  told to the test
                problems.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield grouper
        finally:
            stop.set()
            thread.join(30)
        assert not thread.is_alive()
        assert problems == []

    return run
