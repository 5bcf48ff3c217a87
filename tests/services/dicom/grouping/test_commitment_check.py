"""Storage commitment: what the tables say of instances that a peer asks for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import sqlalchemy as sa
from dicom_spool import HandMade
from pydicom.uid import CTImageStorage, MRImageStorage
from sqlmodel import col
from waiting import eventually

from clara_flow.records import dicom_groups
from clara_flow.records.dicom_models import AeTitle, Group, Instance
from clara_flow.services.dicom import commitment_check
from clara_flow.services.dicom.grouping.grouper import Grouper
from clara_flow.services.dicom.journal import JournalReader
from clara_flow.services.dicom.wire.command_set import Status
from clara_flow.services.dicom.wire.commitment import SAFE, Reference
from clara_flow.settings import load_settings


def test_it_answers_for_what_groups_have(
    engine: sa.Engine,
    journal: HandMade,
    add_aetitle: Callable[..., AeTitle],
    running: Callable[..., AbstractContextManager[Grouper]],
) -> None:
    add_aetitle(timeout="600")
    association = journal.open()
    uid = journal.store(association)
    journal.close(association)
    mine, other_class, unknown = (
        Reference(CTImageStorage, uid),
        Reference(MRImageStorage, uid),
        Reference(CTImageStorage, "1.2.3.4"),
    )

    def is_taken_in() -> bool:
        with engine.connect() as connection:
            return bool(connection.execute(sa.select(sa.func.count(col(Instance.id)))).scalar())

    with running():
        eventually(is_taken_in)
    told = commitment_check.reasons(engine, JournalReader(journal.root), [mine, other_class, unknown])
    assert told == [SAFE, Status.CLASS_INSTANCE_CONFLICT, Status.NO_SUCH_INSTANCE]
    with engine.connect() as connection:
        group_id = connection.execute(sa.select(col(Group.id))).scalar_one()
    dicom_groups.discard(engine, group_id)
    assert commitment_check.reasons(engine, JournalReader(journal.root), [mine]) == [Status.NO_SUCH_INSTANCE]


def test_what_is_still_being_taken_in_is_safe(engine: sa.Engine, journal: HandMade) -> None:
    """No grouper runs: the tables know nothing yet."""
    association = journal.open()
    uid = journal.store(association)
    journals = JournalReader(journal.root)
    references = [Reference(CTImageStorage, uid), Reference(MRImageStorage, uid), Reference(CTImageStorage, "1.2.3.4")]
    expected = [SAFE, Status.CLASS_INSTANCE_CONFLICT, Status.NO_SUCH_INSTANCE]
    assert commitment_check.reasons(engine, journals, references) == expected


def test_many_references_are_one_question(engine: sa.Engine, journal: HandMade) -> None:
    """More than a statement of PostgreSQL has parameters."""
    references = [Reference(CTImageStorage, f"1.2.3.{number}") for number in range(70_000)]
    told = commitment_check.reasons(engine, JournalReader(journal.root), references)
    assert set(told) == {Status.NO_SUCH_INSTANCE}


def test_nothing_is_promised_while_the_database_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = load_settings(data_dir=tmp_path, database_url="postgresql://nobody@/records?host=/nowhere")
    check = commitment_check.asking_the_records(settings)
    references = [Reference(CTImageStorage, "1.2.3"), Reference(CTImageStorage, "1.2.4")]
    assert check(references) == [Status.PROCESSING_FAILURE] * 2
    assert "1.2.3" not in caplog.text
