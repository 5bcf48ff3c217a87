"""One delivery from its files to its settlement: what is sent once is never sent again, and each file is told of."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from clara_flow.errors import StaleOwner
from clara_flow.records import deliveries
from clara_flow.records.database import persistently
from clara_flow.records.deliveries import ItemNews
from clara_flow.records.delivery_states import SENT
from clara_flow.records.dicom_models import Delivery, Destination, DestinationKind, ItemState
from clara_flow.records.payload_store import PayloadStore
from clara_flow.services.dicom.export import commitment
from clara_flow.services.dicom.export.files import Outgoing, Unsendable, outgoing
from clara_flow.services.dicom.export.leases import BrokenOff, Hold
from clara_flow.services.dicom.export.retry_policy import Course, Settlement, Verdict, settle
from clara_flow.services.dicom.export.sender import DestinationFailed, Sender
from clara_flow.services.dicom.export.senders import node_of
from clara_flow.services.dicom.wire.commitment import CommitmentReport
from clara_flow.settings import Settings

log = logging.getLogger(__name__)

TOLD_FILES, TOLD_S = 50, 0.25  # so much may be sent again after a crash
DONE = SENT | {ItemState.POISON}
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Desk:
    """What delivering needs of the house."""

    settings: Settings
    engine: sa.Engine
    store: PayloadStore

    def persistently(self, call: Callable[..., Result], *arguments: Any, **facts: Any) -> Result:
        """`call(engine, ...)` of the records, patiently while the database is away."""
        patience_s = self.settings.database_patience_s
        return persistently(call, self.engine, *arguments, patience_s=patience_s, **facts)


class Notes:
    """Writes down what became of a delivery's files, some at a time; what is not written is not known to have been."""

    def __init__(self, desk: Desk, delivery: Delivery, hold: Hold) -> None:
        self._desk, self._delivery, self._hold = desk, delivery, hold
        self._unwritten: list[ItemNews] = []
        self._written = time.monotonic()
        self.verdicts: dict[str, Verdict] = {}

    def tell(self, file: Outgoing, verdict: Verdict) -> None:
        """Of a file that could be looked at."""
        self.note(file.uri, verdict, file)

    def note(self, uri: str, verdict: Verdict, file: Outgoing | None = None) -> None:
        """Of any file. Raises BrokenOff when the delivery is not ours any more."""
        self.verdicts[uri] = verdict
        uids = (file.sop_class, file.sop_instance) if file is not None else ("", "")
        self._unwritten.append(ItemNews(uri, verdict.state, verdict.reason, *uids))
        if len(self._unwritten) >= TOLD_FILES or time.monotonic() - self._written >= TOLD_S:
            self.write()

    def write(self) -> None:
        """All that was told. Raises BrokenOff as `note` does."""
        if self._unwritten:
            try:
                self._desk.persistently(
                    deliveries.note_items, self._delivery.id, self._unwritten, lease=self._hold.lease
                )
            except StaleOwner:
                raise BrokenOff("its lease is lost", is_ours=False) from None
            self._unwritten = []
        self._written = time.monotonic()


def deliver(
    desk: Desk, delivery: Delivery, destination: Destination, sender: Sender, hold: Hold
) -> tuple[Settlement, DestinationFailed | None]:
    """Send what of a delivery was not sent; what to report, and how the destination failed as a whole, if it did.

    Raises BrokenOff, ServiceError when the database stays away.
    """
    notes = Notes(desk, delivery, hold)
    failure: DestinationFailed | None = None
    try:
        files = _remaining(desk, delivery, notes)
        try:
            if files:
                sender.send(files, notes.tell, hold)
        except DestinationFailed as error:
            failure = error
        for file in files:
            if failure is not None and file.uri not in notes.verdicts:
                notes.tell(file, Verdict(ItemState.PENDING, str(failure)))
    finally:
        notes.write()
    wants_commitment = destination.storage_commitment and destination.kind is DestinationKind.DIMSE
    trouble = str(failure) if failure is not None else ""
    if wants_commitment and failure is None:
        trouble = _commit(desk, delivery, destination, hold)
    verdicts = [Verdict(item.state, item.reason) for item in desk.persistently(deliveries.list_items, delivery)]
    settlement = settle(
        verdicts,
        retries=delivery.retries,
        maximum_retries=desk.settings.dicom_export_retries,
        commitment=wants_commitment,
        trouble=trouble,
    )
    if settlement.course is Course.FAIL and failure is not None:
        for file in files:
            if notes.verdicts[file.uri].state is ItemState.PENDING:
                notes.tell(file, Verdict(ItemState.FAILED, str(failure)))
        notes.write()
    return settlement, failure


def _remaining(desk: Desk, delivery: Delivery, notes: Notes) -> list[Outgoing]:
    """The files that are to be sent, those that were tried the least first: one that makes the destination break off
    does not keep the others from it. Of those that cannot be sent it is told at once."""
    items = desk.persistently(deliveries.list_items, delivery)
    try:
        folder = desk.store.folder(uuid.UUID(delivery.payload_id))
    except ValueError:
        for item in items:
            notes.note(item.uri, Verdict(ItemState.POISON, "its payload is unknown"))
        return []
    files = []
    for item in sorted(items, key=lambda item: item.attempts):
        if item.state in DONE:
            continue
        try:
            files.append(outgoing(folder, item.uri))
        except Unsendable as reason:
            notes.note(item.uri, Verdict(ItemState.POISON, str(reason)))
        except OSError as error:
            why = (error.strerror or "error").lower()
            notes.note(item.uri, Verdict(ItemState.FAILED, f"it cannot be read: {why}"))
    return files


def _commit(desk: Desk, delivery: Delivery, destination: Destination, hold: Hold) -> str:
    """Ask for storage commitment of what is sent and not committed; what was in the way, "" if nothing."""

    def unconfirmed() -> list[tuple[str, str]]:
        items = desk.persistently(deliveries.list_items, delivery)
        return [(item.sop_class_uid, item.sop_instance_uid) for item in items if item.state is ItemState.SENT]

    def note(report: CommitmentReport) -> None:
        if report.transaction == transaction:
            desk.persistently(commitment.note_report, report.transaction, report.ok, report.failed)

    references = unconfirmed()
    if not references:
        return ""
    transaction = commitment.new_transaction(delivery.id)
    try:
        node = node_of(destination, desk.settings)
        commitment.ask(
            node, transaction, _distinct(references), hold=hold, note=note, is_settled=lambda: not unconfirmed()
        )
    except DestinationFailed as failure:
        hold.check()
        return str(failure)
    return ""


def _distinct(references: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(references))
