"""Storage Commitment Push Model (PS3.4 Annex J): a peer asks whether what it sent is safe, and is told so."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from clara_flow.services.dicom.wire.command_set import Command, Status
from clara_flow.services.dicom.wire.contexts import EXPLICIT_BIG, IMPLICIT_LITTLE, STORAGE_COMMITMENT
from clara_flow.services.dicom.wire.negotiation import ContextAnswer, is_uid
from clara_flow.services.dicom.wire.store import Operation, Outcome, Refused

WELL_KNOWN_INSTANCE = "1.2.840.10008.1.20.1.1"
REQUEST_ACTION = 1
ALL_SAFE, FAILURES_EXIST = 1, 2  # event types (PS3.4 section J.3.3.1)
SAFE = 0
MAXIMUM_BYTES = 4 * 1024 * 1024  # some 30,000 references


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


# For each reference SAFE, or a Failure Reason of PS3.3 section C.14: NO_SUCH_INSTANCE, CLASS_INSTANCE_CONFLICT, ...
CommitmentCheck = Callable[[Sequence[Reference]], Sequence[int]]


def begin_action(command: Command, context: ContextAnswer) -> Operation:
    """What takes the data set of this N-ACTION."""
    if context.abstract_syntax != STORAGE_COMMITMENT or command.sop_class != STORAGE_COMMITMENT:
        return Refused(Outcome(Status.CLASS_NOT_SUPPORTED))
    if command.sop_instance != WELL_KNOWN_INSTANCE:
        return Refused(Outcome(Status.NO_SUCH_INSTANCE))
    if command.kind != REQUEST_ACTION:
        return Refused(Outcome(Status.NO_SUCH_ACTION))
    if not command.has_data_set:
        return Refused(Outcome(Status.INVALID_ARGUMENT, "there is no data set"))
    return CommitmentAction(context.transfer_syntax)


class CommitmentAction:
    """Collects a request. `request` is there once it was answered with success."""

    def __init__(self, transfer_syntax: str) -> None:
        self._transfer_syntax = transfer_syntax
        self._data = bytearray()
        self._is_too_long = False
        self.request: CommitmentRequest | None = None

    def write(self, data: memoryview) -> None:
        """Keep it, up to a limit."""
        self._is_too_long = self._is_too_long or len(self._data) + len(data) > MAXIMUM_BYTES
        if self._is_too_long:
            self._data.clear()
        else:
            self._data += data

    def finish(self) -> Outcome:
        """Success when it could be read."""
        if self._is_too_long:
            return Outcome(Status.RESOURCE_LIMITATION, "too many references at once")
        try:
            self.request = read_request(bytes(self._data), self._transfer_syntax)
        except ValueError as error:
            return Outcome(Status.INVALID_ARGUMENT, str(error))
        return Outcome(Status.SUCCESS)

    def abandon(self) -> None:
        """Forget it."""
        self._data.clear()


def read_request(data: bytes, transfer_syntax: str) -> CommitmentRequest:
    """The action information (PS3.4 Table J.3-1). Raises ValueError."""
    try:
        dataset = read_dataset(
            io.BytesIO(data),
            is_implicit_VR=transfer_syntax == IMPLICIT_LITTLE,
            is_little_endian=transfer_syntax != EXPLICIT_BIG,
        )
        transaction = str(dataset.TransactionUID)
        references = tuple(
            Reference(str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
            for item in dataset.ReferencedSOPSequence
        )
    except Exception as error:
        raise ValueError("the request cannot be read") from error
    if not is_uid(transaction) or not references:
        raise ValueError("no transaction or no references")
    if not all(is_uid(each.sop_class) and is_uid(each.sop_instance) for each in references):
        raise ValueError("a reference that is no UID")
    return CommitmentRequest(transaction, references)


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
