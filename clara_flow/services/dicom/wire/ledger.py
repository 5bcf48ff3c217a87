"""Storage commitment in the journal of the association that it came by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar
from uuid import UUID, uuid4

from clara_flow.services.dicom.journal import JournalDoubtful
from clara_flow.services.dicom.journal_entries import (
    CommitmentAsked,
    CommitmentReported,
    CommitmentTold,
    Entry,
    now,
)
from clara_flow.services.dicom.spool import SpoolWriter
from clara_flow.services.dicom.wire.commitment import CommitmentReport, CommitmentRequest

LINE_REFERENCES = 1000  # UIDs in one line: it has to fit a journal

Item = TypeVar("Item")


class JournalLedger:
    """See `wire.commitment.Ledger`.

    association     its id in the journal, which begins there when it is asked for.
    on_broken       is told that the journal takes nothing any more.
    """

    def __init__(self, writer: SpoolWriter, association: Callable[[], UUID], on_broken: Callable[[], None]) -> None:
        self._writer, self._association, self._on_broken = writer, association, on_broken

    def asked(self, request: CommitmentRequest) -> UUID:
        """See `Ledger`."""
        report, association = uuid4(), self._association()
        pieces = list(_pieces(request.references))
        for number, piece in enumerate(pieces, start=1):
            references: dict[str, list[str]] = {}
            for each in piece:
                references.setdefault(each.sop_class, []).append(each.sop_instance)
            is_last = number == len(pieces)
            self._note(
                CommitmentAsked(
                    association=association, at=now(), report=report, transaction=request.transaction,
                    references=references, is_last=is_last,
                ),
                durable=is_last,
            )  # fmt: skip
        return report

    def told(self, report: UUID) -> None:
        """See `Ledger`. Not durable: at worst the peer is told once more."""
        self._note(CommitmentTold(association=self._association(), at=now(), report=report), durable=False)

    def reported(self, report: CommitmentReport) -> None:
        """See `Ledger`."""
        association = self._association()
        told = [(uid, None) for uid in report.ok] + [(uid, reason) for uid, reason in report.failed.items()]
        pieces = list(_pieces(told))
        for number, piece in enumerate(pieces, start=1):
            self._note(
                CommitmentReported(
                    association=association, at=now(), transaction=report.transaction,
                    ok=[uid for uid, reason in piece if reason is None],
                    failed={uid: reason for uid, reason in piece if reason is not None},
                ),
                durable=number == len(pieces),
            )  # fmt: skip

    def _note(self, entry: Entry, *, durable: bool) -> None:
        try:
            self._writer.note(entry, durable=durable)
        except JournalDoubtful:
            self._on_broken()
            raise


def _pieces(items: Iterable[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    while piece := list(islice(rest, LINE_REFERENCES)):
        yield piece
