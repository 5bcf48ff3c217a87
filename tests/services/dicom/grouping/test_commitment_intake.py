"""Storage commitment on its way from journals: reports reach their deliveries, what is owed becomes rows, once."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from types import MappingProxyType

import pytest
import sqlalchemy as sa
from dicom_spool import HandMade
from waiting import eventually

from clara_flow.errors import StaleOwner
from clara_flow.records import commitment_reports, deliveries, dicom_ingest
from clara_flow.records.deliveries import ItemNews
from clara_flow.records.dicom_models import Delivery, DeliveryState, ItemState
from clara_flow.services.dicom.export.commitment import new_transaction
from clara_flow.services.dicom.grouping.grouper import Grouper
from clara_flow.services.dicom.grouping.intake import JournalIntake
from clara_flow.services.dicom.journal_entries import CommitmentAsked, CommitmentReported, CommitmentTold

MR = "1.2.840.10008.5.1.4.1.1.4"
Running = Callable[..., AbstractContextManager[Grouper]]


@pytest.fixture(autouse=True)
def _no_rows(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE deliveries, delivery_items, dicom_commitment_reports"))


@pytest.fixture
def delivery(engine: sa.Engine) -> Delivery:
    """Two files were sent, and wait to be committed: the SOP Instance UIDs 1.2.1 and 1.2.2."""
    [made] = deliveries.register(
        engine, job_id=uuid.uuid4(), payload_id=uuid.uuid4(), agent="ClaraSCU", parameters=json.dumps("PACS"),
        uris=["1.dcm", "2.dcm"], own_agents=("ClaraSCU",),
    )  # fmt: skip
    sent = [ItemNews(f"{n}.dcm", ItemState.SENT, sop_class_uid=MR, sop_instance_uid=f"1.2.{n}") for n in (1, 2)]
    deliveries.note_items(engine, made.id, sent)
    return made


def states(engine: sa.Engine, delivery: Delivery) -> list[ItemState]:
    return [item.state for item in deliveries.list_items(engine, delivery)]


def report(journal: HandMade, transaction: str, *ok: str, **failed: int) -> None:
    """A report on an association of its own."""
    association = journal.open(aetitle="", calling="PACS")
    refused = {uid.replace("_", "."): reason for uid, reason in failed.items()}
    journal.write(
        CommitmentReported(
            association=association, at=datetime.now(UTC), transaction=transaction, ok=list(ok), failed=refused
        )
    )
    journal.close(association)


def intake_of(engine: sa.Engine, journal: HandMade) -> JournalIntake:
    return JournalIntake(engine, journal.root, lambda names: MappingProxyType({}))


def test_a_report_reaches_its_delivery(
    engine: sa.Engine, journal: HandMade, running: Running, delivery: Delivery
) -> None:
    transaction = new_transaction(delivery.id)
    with running():
        report(journal, transaction, "1.2.1")
        eventually(lambda: states(engine, delivery) == [ItemState.COMMITTED, ItemState.SENT])
        report(journal, transaction, "1.2.1", "1.2.9", **{"1_2_2": 0x0112})
        eventually(lambda: states(engine, delivery) == [ItemState.COMMITTED, ItemState.FAILED])
    [_, item] = deliveries.list_items(engine, delivery)
    assert item.reason == "not committed: 0x0112 no such SOP instance"


def test_reports_of_strangers_are_passed_over(
    engine: sa.Engine, journal: HandMade, running: Running, delivery: Delivery
) -> None:
    with running():
        report(journal, "1.2.3", "1.2.1")
        report(journal, new_transaction(uuid.uuid4()), "1.2.1")
        report(journal, new_transaction(delivery.id), "1.2.2")
        eventually(lambda: states(engine, delivery) == [ItemState.SENT, ItemState.COMMITTED])


def test_a_report_after_the_end_of_waiting_still_counts(
    engine: sa.Engine, journal: HandMade, running: Running, delivery: Delivery
) -> None:
    deliveries.take(engine, "ClaraSCU", 1, 60)
    deliveries.fail(engine, delivery.id, False, "2 not confirmed by storage commitment")
    transaction = new_transaction(delivery.id)
    with running():
        report(journal, transaction, "1.2.1")
        eventually(lambda: states(engine, delivery) == [ItemState.COMMITTED, ItemState.SENT])
        assert deliveries.find_delivery(engine, delivery.id).state is DeliveryState.FAILED
        report(journal, transaction, "1.2.2")
        eventually(lambda: deliveries.find_delivery(engine, delivery.id).state is DeliveryState.PENDING)


def test_what_was_noted_before_a_crash_is_noted_once(
    engine: sa.Engine, journal: HandMade, delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends between the note and the journal's offset: the next one notes the same again."""
    report(journal, new_transaction(delivery.id), "1.2.1", "1.2.2")

    def crash(*arguments: object, **facts: object) -> None:
        raise StaleOwner("it ends here")

    with monkeypatch.context() as patch:
        patch.setattr(dicom_ingest, "ingest", crash)
        with pytest.raises(StaleOwner):
            intake_of(engine, journal).take()
    before = deliveries.list_items(engine, delivery)
    assert states(engine, delivery) == [ItemState.COMMITTED] * 2
    intake_of(engine, journal).take()
    assert deliveries.list_items(engine, delivery) == before
    assert dicom_ingest.offsets(engine)[journal.name] == journal.path.stat().st_size


@pytest.fixture
def asking(journal: HandMade) -> tuple[uuid.UUID, uuid.UUID, uuid.UUID]:
    """An association that asked twice: its id, and those of the reports."""
    association, first, second = journal.open(), uuid.uuid4(), uuid.uuid4()
    for number, asked in enumerate((first, second)):
        journal.write(
            CommitmentAsked(
                association=association, at=datetime.now(UTC), report=asked, transaction=f"1.2.{number}",
                references={MR: ["1.2.3"]}, is_last=True,
            )
        )  # fmt: skip
    return association, first, second


def test_what_is_owed_is_due_when_its_listener_is_killed(
    engine: sa.Engine, journal: HandMade, running: Running, asking: tuple[uuid.UUID, uuid.UUID, uuid.UUID]
) -> None:
    association, first, second = asking
    journal.write(CommitmentTold(association=association, at=datetime.now(UTC), report=first))
    with running():
        eventually(lambda: len(commitment_reports.list_reports(engine)) == 1)
        assert commitment_reports.owed(engine) == []
        journal.end()
        eventually(lambda: [owed.id for owed in commitment_reports.owed(engine)] == [second])
        eventually(lambda: not journal.path.exists())


def test_two_that_read_one_journal_make_one_row(
    engine: sa.Engine, journal: HandMade, asking: tuple[uuid.UUID, uuid.UUID, uuid.UUID]
) -> None:
    association, first, second = asking
    journal.close(association)
    go, losses = threading.Barrier(2), list[StaleOwner]()

    def read(intake: JournalIntake) -> None:
        go.wait(20)
        try:
            intake.take()
        except StaleOwner as error:
            losses.append(error)

    threads = [threading.Thread(target=read, args=(intake_of(engine, journal),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {owed.id for owed in commitment_reports.owed(engine)} == {first, second}
    assert len(losses) <= 1
