"""Storage Commitment Push Model (PS3.4 Annex J), both ways.

A peer asks whether what it sent is safe (N-ACTION) and is told so (N-EVENT-REPORT); or it tells what it keeps of what
we sent. Both are written down before they are answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from clara_flow.errors import StorageError
from clara_flow.services.dicom.wire.command_set import Command, Status
from clara_flow.services.dicom.wire.contexts import EXPLICIT_BIG, IMPLICIT_LITTLE, STORAGE_COMMITMENT
from clara_flow.services.dicom.wire.gathering import Gathered
from clara_flow.services.dicom.wire.negotiation import ContextAnswer, is_uid
from clara_flow.services.dicom.wire.references import MAXIMUM_BYTES, Content, Named, read_references
from clara_flow.services.dicom.wire.store import Operation, Outcome, Refused

WELL_KNOWN_INSTANCE = "1.2.840.10008.1.20.1.1"
REQUEST_ACTION = 1
ALL_SAFE, FAILURES_EXIST = 1, 2  # event types (PS3.4 section J.3.3.1)
SAFE = 0


@dataclass(frozen=True, slots=True)
class Reference:
    """An instance that a peer asks for."""

    sop_class: str
    sop_instance: str


@dataclass(frozen=True, slots=True)
class CommitmentRequest:
    """What a peer wants to be told of, under which transaction."""

    transaction: str
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class CommitmentReport:
    """What a peer says of a transaction of ours: SOP Instance UIDs that it keeps, and those that it does not with the
    Failure Reason (PS3.3 section C.14)."""

    transaction: str
    ok: frozenset[str]
    failed: Mapping[str, int]


class Ledger(Protocol):
    """Where one association's part in storage commitment is written down. Raises StorageError."""

    def asked(self, request: CommitmentRequest) -> UUID:
        """A report is owed to the peer from now on, durably. Its id."""

    def told(self, report: UUID) -> None:
        """The peer has acknowledged it."""

    def reported(self, report: CommitmentReport) -> None:
        """A peer has reported, durably."""


# For each reference SAFE, or a Failure Reason of PS3.3 section C.14: NO_SUCH_INSTANCE, CLASS_INSTANCE_CONFLICT, ...
CommitmentCheck = Callable[[Sequence[Reference]], Sequence[int]]


def begin_action(command: Command, context: ContextAnswer, ledger: Ledger) -> Operation:
    """What takes the data set of this N-ACTION."""
    refusal = _refusal(command, context, {REQUEST_ACTION}, Status.NO_SUCH_ACTION)
    return Refused(refusal) if refusal else CommitmentAction(context.transfer_syntax, ledger)


def begin_event(command: Command, context: ContextAnswer, ledger: Ledger) -> Operation:
    """What takes the data set of this N-EVENT-REPORT."""
    refusal = _refusal(command, context, {ALL_SAFE, FAILURES_EXIST}, Status.NO_SUCH_EVENT)
    return Refused(refusal) if refusal else _CommitmentEvent(context.transfer_syntax, ledger)


def _refusal(command: Command, context: ContextAnswer, kinds: set[int], unknown_kind: int) -> Outcome | None:
    if context.abstract_syntax != STORAGE_COMMITMENT or command.sop_class != STORAGE_COMMITMENT:
        return Outcome(Status.CLASS_NOT_SUPPORTED)
    if command.sop_instance != WELL_KNOWN_INSTANCE:
        return Outcome(Status.NO_SUCH_INSTANCE)
    if command.kind not in kinds:
        return Outcome(unknown_kind)
    if not command.has_data_set:
        return Outcome(Status.INVALID_ARGUMENT, "there is no data set")
    return None


class _Collecting:
    """Collects a data set up to a limit; then `_take` does what it says. Raises ValueError, StorageError there."""

    def __init__(self, transfer_syntax: str, ledger: Ledger) -> None:
        self._transfer_syntax, self._ledger = transfer_syntax, ledger
        self._gathered = Gathered(MAXIMUM_BYTES)

    def write(self, data: memoryview) -> None:
        """Keep it, up to a limit."""
        self._gathered.write(data)

    def finish(self) -> Outcome:
        """Success when it could be read and is written down."""
        if self._gathered.is_too_long:
            return Outcome(Status.RESOURCE_LIMITATION, "too many references at once")
        try:
            self._take(self._gathered.data)
        except ValueError as error:
            return Outcome(Status.INVALID_ARGUMENT, str(error))
        except StorageError as error:
            is_full = "free_bytes" in error.facts
            return Outcome(Status.RESOURCE_LIMITATION if is_full else Status.PROCESSING_FAILURE, "it cannot be kept")
        return Outcome(Status.SUCCESS)

    def abandon(self) -> None:
        """Forget it."""
        self._gathered.clear()

    def _take(self, data: bytes) -> None:
        raise NotImplementedError


class CommitmentAction(_Collecting):
    """A request. `request` and `report`, the id of what is owed to the peer, are there once it was answered."""

    request: CommitmentRequest | None = None
    report: UUID | None = None

    def _take(self, data: bytes) -> None:
        request = read_request(data, self._transfer_syntax)
        self.report = self._ledger.asked(request)
        self.request = request


class _CommitmentEvent(_Collecting):
    """A report."""

    def _take(self, data: bytes) -> None:
        self._ledger.reported(read_report(data, self._transfer_syntax))


def read_request(data: bytes, transfer_syntax: str) -> CommitmentRequest:
    """The action information (PS3.4 Table J.3-1). Raises ValueError."""
    content = _read(data, transfer_syntax)
    if not content.referenced:
        raise ValueError("no references")
    references = tuple(Reference(item.sop_class, item.sop_instance) for item in content.referenced)
    if not all(is_uid(each.sop_class) for each in references):
        raise ValueError("a reference without a SOP class")
    return CommitmentRequest(content.transaction, references)


def read_report(data: bytes, transfer_syntax: str) -> CommitmentReport:
    """The event information (PS3.4 Table J.3-2). What it calls both safe and failed has failed. Raises ValueError."""
    content = _read(data, transfer_syntax)
    if not content.referenced and not content.failed:
        raise ValueError("no references")
    failed = {item.sop_instance: item.reason for item in content.failed}
    ok = frozenset(item.sop_instance for item in content.referenced if item.sop_instance not in failed)
    return CommitmentReport(content.transaction, ok, failed)


def _read(data: bytes, transfer_syntax: str) -> Content:
    content = read_references(data, transfer_syntax)
    if not is_uid(content.transaction):
        raise ValueError("no transaction UID")
    named: Sequence[Named] = [*content.referenced, *content.failed]
    if not all(is_uid(item.sop_instance) for item in named):
        raise ValueError("a reference that is no UID")
    return content


def write_report(request: CommitmentRequest, reasons: Sequence[int], transfer_syntax: str) -> tuple[int, bytes]:
    """Event type and event information (PS3.4 Table J.3-2).

    reasons     for each reference, in order, SAFE or why it is not.
    """
    report = Dataset()
    _add_uid(report, "TransactionUID", request.transaction)
    safe, failed = [], []
    for reference, reason in zip(request.references, reasons, strict=True):
        item = Dataset()
        _add_uid(item, "ReferencedSOPClassUID", reference.sop_class)
        _add_uid(item, "ReferencedSOPInstanceUID", reference.sop_instance)
        if reason == SAFE:
            safe.append(item)
        else:
            item.FailureReason = reason
            failed.append(item)
    if safe:
        report.ReferencedSOPSequence = safe
    if failed:
        report.FailedSOPSequence = failed
    buffer = DicomBytesIO()
    buffer.is_implicit_VR = transfer_syntax == IMPLICIT_LITTLE
    buffer.is_little_endian = transfer_syntax != EXPLICIT_BIG
    write_dataset(buffer, report)
    return (FAILURES_EXIST if failed else ALL_SAFE), buffer.getvalue()


def _add_uid(dataset: Dataset, keyword: str, uid: str) -> None:
    """As the peer wrote it, be it a little wrong: it knows it by that."""
    dataset.add(DataElement(keyword, "UI", uid, validation_mode=IGNORE))
