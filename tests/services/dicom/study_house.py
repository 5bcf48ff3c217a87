"""A house with one AE title, and one study that comes by a hand-made journal."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from dicom_spool import HandMade
from tiny.pipelines import scripted, tiny_catalog, write_definition
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.records import dicom_config, jobs
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records.dicom_models import AeTitle, GroupState
from clara_flow.services.dicom.grouping.grouper import Grouper
from clara_flow.settings import load_settings


class Study:
    """A house with one AE title, and a study that comes instance by instance."""

    def __init__(self, engine: sa.Engine, folder: Path) -> None:
        self.engine = engine
        settings = load_settings(data_dir=folder / "data", storage_limit_percent=100)
        self.house = House(settings=settings, engine=engine, catalog=tiny_catalog())
        self.spool = settings.data_dir / "spool"
        self.spool.mkdir(parents=True)
        self.journal = HandMade(self.spool)
        self.definition = write_definition(folder / "tiny.yaml", scripted("a"))

    def add_aetitle(self, pipeline: Path | None = None, deidentify: str = "", **settings: str) -> None:
        """The only one."""
        facts = {"pipeline-a": str(pipeline or self.definition), **settings}
        row = AeTitle(name="BRAIN", ae_title="BRAIN", processor_settings=facts, deidentify=deidentify)
        dicom_config.add_aetitle(self.engine, row)

    @contextmanager
    def grouping(self) -> Iterator[None]:
        """A grouper works."""
        stop = threading.Event()
        thread = threading.Thread(target=Grouper(self.house, self.spool).run, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()

    def send(self, content: bytes = b"instance") -> None:
        """One more instance, on an association of its own."""
        association = self.journal.open()
        self.journal.store(association, study="1.2", content=content)
        self.journal.close(association)

    def send_and_wait(self) -> None:
        """One more instance, and until it is in the tables."""
        before = self.instances()
        self.send()
        eventually(lambda: self.instances() == before + 1)

    def instances(self) -> int:
        """In all groups."""
        return sum(group.instances for group in queries.list_groups(self.engine))

    def states(self) -> list[GroupState]:
        """Of all groups."""
        return [group.state for group in queries.list_groups(self.engine)]

    def is_done(self) -> bool:
        """Whether the whole study is one job."""
        return self.states() == [GroupState.SUBMITTED] and len(jobs.list_jobs(self.engine)) == 1
