"""Reports of storage commitment that peers are owed: a row for each until it is settled, against a real PostgreSQL."""

from __future__ import annotations

import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from clara_flow.records import commitment_reports as reports
from clara_flow.records import dicom_ingest
from clara_flow.records.dicom_ingest import Closed, CommitmentAsked, CommitmentTold, GroupingRule, Line, Opened
from clara_flow.records.dicom_models import CommitmentReport
from clara_flow.records.doorbell import Doorbell

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
TABLES = "dicom_commitment_reports, dicom_associations, dicom_journals"


@pytest.fixture(autouse=True)
def _no_rows(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(f"TRUNCATE {TABLES} CASCADE"))


class Teller:
    """Tells the tables lines of one journal."""

    def __init__(self, engine: sa.Engine, journal: str = "j") -> None:
        self.engine, self.journal, self.offset = engine, journal, 0

    def tell(self, *lines: Line) -> None:
        offset, self.offset = self.offset, self.offset + len(lines)
        dicom_ingest.ingest(
            self.engine, self.journal, lines, offset=offset, new_offset=self.offset, rules={"": GroupingRule()}
        )

    def open(self, calling: str = "MODALITY") -> uuid.UUID:
        association = uuid.uuid4()
        self.tell(
            Opened(
                association=association, at=datetime.now(UTC), calling_ae=calling, called_ae="BRAIN", aetitle="",
                peer="192.0.2.7",
            )
        )  # fmt: skip
        return association

    def ask(
        self, association: uuid.UUID, transaction: str = "1.2.9", *, parts: int = 1, whole: bool = True
    ) -> uuid.UUID:
        report = uuid.uuid4()
        for part in range(1, parts + 1):
            self.tell(
                CommitmentAsked(
                    association=association, at=datetime.now(UTC), report=report, transaction_uid=transaction,
                    references={MR: [f"1.2.3.{part}"], CT: [f"1.2.4.{part}"]}, is_last=whole and part == parts,
                )
            )  # fmt: skip
        return report

    def told(self, association: uuid.UUID, report: uuid.UUID) -> None:
        self.tell(CommitmentTold(association=association, at=datetime.now(UTC), report=report))

    def close(self, association: uuid.UUID) -> None:
        self.tell(Closed(association=association, at=datetime.now(UTC), how="released"))


@pytest.fixture
def teller(engine: sa.Engine) -> Teller:
    return Teller(engine)


def owed_one(teller: Teller, transaction: str = "1.2.9", destination: str = "PACS") -> uuid.UUID:
    """A report that is due for a destination."""
    association = teller.open()
    report = teller.ask(association, transaction)
    teller.close(association)
    reports.direct(teller.engine, [(report, destination, "")])
    return report


def test_a_report_is_owed_once_the_association_is_over(engine: sa.Engine, teller: Teller) -> None:
    association = teller.open()
    report = teller.ask(association, parts=3)
    assert reports.owed(engine) == [], "it may still be told on the association"
    with closing(Doorbell(engine, [reports.CHANNEL])) as bell:
        bell.wait(0.2)  # it listens from now on
        teller.close(association)
        assert [channel for channel, _ in bell.wait(10)] == [reports.CHANNEL]
    [owed] = reports.owed(engine)
    assert (owed.id, owed.calling_ae, owed.peer, owed.destination, owed.is_due) == (
        report, "MODALITY", "192.0.2.7", "", True,
    )  # fmt: skip
    [row] = reports.list_reports(engine)
    assert (row.called_ae, row.transaction_uid, row.attempts) == ("BRAIN", "1.2.9", 0)
    assert row.asked == [pair for part in (1, 2, 3) for pair in ([MR, [f"1.2.3.{part}"]], [CT, [f"1.2.4.{part}"]])]


def test_what_was_acknowledged_is_not_owed(engine: sa.Engine, teller: Teller) -> None:
    association = teller.open()
    first, second = teller.ask(association, "1.2.8"), teller.ask(association, "1.2.9")
    teller.told(association, first)
    teller.close(association)
    assert [owed.id for owed in reports.owed(engine)] == [second]


def test_a_listener_that_dies_owes_what_it_answered(engine: sa.Engine, teller: Teller) -> None:
    association = teller.open()
    whole = teller.ask(association, "1.2.8")
    teller.ask(association, "1.2.9", parts=2, whole=False)  # it died before the last line: nothing was answered
    dicom_ingest.lose_journal(engine, teller.journal, offset=teller.offset)
    assert [owed.id for owed in reports.owed(engine)] == [whole]
    assert [row.id for row in reports.list_reports(engine)] == [whole]


def test_a_transaction_that_is_repeated_takes_the_place_of_the_first(engine: sa.Engine, teller: Teller) -> None:
    first = teller.open()
    earlier = teller.ask(first)
    teller.close(first)
    second, stranger = teller.open(), teller.open("OTHER")
    later, others = teller.ask(second), teller.ask(stranger)
    teller.told(second, earlier)  # a late word about the one that is gone
    for association in (second, stranger):
        teller.close(association)
    assert {owed.id for owed in reports.owed(engine)} == {later, others}


def test_one_who_claims_it_has_it_for_a_while(engine: sa.Engine, teller: Teller) -> None:
    first, second = owed_one(teller, "1.2.8"), owed_one(teller, "1.2.9")
    owed_one(teller, "1.2.10", "OTHER")
    claimed = [reports.claim(engine, "PACS", 60) for _ in range(3)]
    assert [row and (row.id, row.attempts) for row in claimed] == [(first, 1), (second, 1), None]
    assert {owed.id for owed in reports.owed(engine) if not owed.is_due} == {first, second}
    reports.acknowledged(engine, first)
    reports.acknowledged(engine, first)
    assert first not in {owed.id for owed in reports.owed(engine)}


def test_a_claim_ends_by_itself(engine: sa.Engine, teller: Teller) -> None:
    report = owed_one(teller)
    for attempts in (1, 2):
        row = reports.claim(engine, "PACS", 0)
        assert row is not None
        assert (row.id, row.attempts) == (report, attempts)


@pytest.mark.parametrize("with_others", [True, False])
def test_what_cannot_be_told_waits(engine: sa.Engine, teller: Teller, with_others: bool) -> None:
    first, second = owed_one(teller, "1.2.8"), owed_one(teller, "1.2.9")
    elsewhere = owed_one(teller, "1.2.10", "OTHER")
    row = reports.claim(engine, "PACS", 60)
    assert row is not None
    reports.postpone(engine, row, "it is away", 3600, with_others=with_others)
    due = {owed.id for owed in reports.owed(engine) if owed.is_due}
    assert due == ({elsewhere} if with_others else {second, elsewhere})
    [message] = [owed.message for owed in reports.owed(engine) if owed.id == first]
    assert message == "it is away"


def test_old_ones_are_dropped(engine: sa.Engine, teller: Teller) -> None:
    old, new = owed_one(teller, "1.2.8"), owed_one(teller, "1.2.9")
    with engine.begin() as connection:
        table = CommitmentReport.__table__  # type: ignore[attr-defined]
        ago = datetime.now(UTC) - timedelta(days=8)
        connection.execute(sa.update(table).where(table.c.id == old).values(created=ago))
    assert reports.drop(engine, 7 * 86_400) == 1
    assert [owed.id for owed in reports.owed(engine)] == [new]
