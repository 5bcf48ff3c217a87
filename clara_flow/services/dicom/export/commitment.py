"""Storage commitment as its requestor (PS3.4 Annex J): the destination confirms that it keeps what it took.

It reports on the association of the request or, at any time later, on one that it opens to our listener. The
transaction UID carries the delivery's id, so that a report finds its delivery in whatever process it arrives, also when
the one that asked is gone.
"""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress

import sqlalchemy as sa
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.dsutils import encode

from clara_flow.errors import Conflict, NotFound
from clara_flow.records import deliveries
from clara_flow.records.deliveries import ItemNews
from clara_flow.records.dicom_models import DeliveryItem, DeliveryState, ItemState
from clara_flow.services.dicom.export.leases import Hold
from clara_flow.services.dicom.export.link import Link
from clara_flow.services.dicom.export.proposals import Context, Node
from clara_flow.services.dicom.export.retry_policy import verdict_of
from clara_flow.services.dicom.export.sender import DestinationFailed
from clara_flow.services.dicom.export.transcode import PLAIN
from clara_flow.services.dicom.wire.command_set import N_ACTION_RQ, N_EVENT_REPORT_RQ, N_EVENT_REPORT_RSP, RESPONSE
from clara_flow.services.dicom.wire.commitment import (
    REQUEST_ACTION,
    WELL_KNOWN_INSTANCE,
    CommitmentReport,
    read_report,
)
from clara_flow.services.dicom.wire.contexts import STORAGE_COMMITMENT

WAIT_S = 10.0  # for a report on the association of the request
LOOK_S = 0.5
UUID_ROOT = "2.25."  # PS3.5 Annex B.2


def new_transaction(delivery_id: uuid.UUID) -> str:
    """A transaction UID, unique for each request, that leads back to the delivery."""
    return f"{UUID_ROOT}{delivery_id.int}.{time.time_ns() // 1_000_000}"


def delivery_of(transaction_uid: str) -> uuid.UUID | None:
    """The delivery that it was made for; None when it is none of ours."""
    if not transaction_uid.startswith(UUID_ROOT):
        return None
    number, dot, moment = transaction_uid.removeprefix(UUID_ROOT).partition(".")
    if not (dot and number.isascii() and number.isdigit() and moment.isdigit()) or int(number) >= 1 << 128:
        return None
    return uuid.UUID(int=int(number))


def note_report(engine: sa.Engine, transaction_uid: str, ok: Collection[str], failed: Mapping[str, int]) -> bool:
    """Write a report down, wherever it arrived: items become COMMITTED, or FAILED, to be sent again.

    ok, failed  SOP Instance UIDs; of the failed with the failure reason (PS3.3 C.14.1.1).

    Returns whether it belongs to a delivery of ours. One that waits for nothing else is offered to the exporter at
    once, also when it was given up waiting and has come true now. Raises ServiceError as the records do.
    """
    delivery_id = delivery_of(transaction_uid)
    if delivery_id is None:
        return False
    try:
        delivery = deliveries.find_delivery(engine, delivery_id)
        news = list(_news(deliveries.list_items(engine, delivery), ok, failed))
        if news:
            deliveries.note_items(engine, delivery_id, news)
        delivery = deliveries.find_delivery(engine, delivery_id)
        states = {item.state for item in deliveries.list_items(engine, delivery)}
        is_pending = delivery.state is DeliveryState.PENDING and ItemState.SENT not in states
        is_late = delivery.state is DeliveryState.FAILED and not delivery.discarded and states == {ItemState.COMMITTED}
        if is_pending or is_late:
            with suppress(Conflict):  # an agent has taken it meanwhile, or its files are removed
                deliveries.retry(engine, delivery_id)
    except NotFound:
        return False
    return True


def _news(items: Iterable[DeliveryItem], ok: Collection[str], failed: Mapping[str, int]) -> Iterable[ItemNews]:
    for item in items:
        if item.state is not ItemState.SENT:
            continue  # what was not sent cannot be kept; what is committed stays so
        if (reason := failed.get(item.sop_instance_uid)) is not None:
            yield ItemNews(item.uri, ItemState.FAILED, f"not committed: {verdict_of(reason).reason}")
        elif item.sop_instance_uid in ok:
            yield ItemNews(item.uri, ItemState.COMMITTED)


def ask(
    node: Node,
    transaction_uid: str,
    references: Collection[tuple[str, str]],
    *,
    hold: Hold,
    note: Callable[[CommitmentReport], None],
    is_settled: Callable[[], bool],
) -> None:
    """Ask the destination to commit itself, and wait a while for its report on the same association.

    references  (SOP class, SOP instance) of what it has.
    note        called with a report that comes.
    is_settled  whether one has come another way: then the waiting ends.

    Raises DestinationFailed when it does not take the request, BrokenOff.
    """
    link = Link(node, [Context(STORAGE_COMMITMENT, (PLAIN[1], PLAIN[0]))])
    try:
        with hold.cutting(link.cut):
            link.open()
            if not link.contexts:
                raise DestinationFailed("protocol", "the destination takes no requests for storage commitment")
            ((context_id, (_, syntax)),) = link.contexts.items()
            _request(link, context_id, syntax, transaction_uid, references)
            _await_report(link, node, syntax, hold, note, is_settled)
    finally:
        link.release()


def _request(
    link: Link, context_id: int, syntax: str, transaction_uid: str, references: Collection[tuple[str, str]]
) -> None:
    information = Dataset()
    information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = [_reference(*pair) for pair in references]
    command = {
        "RequestedSOPClassUID": UID(STORAGE_COMMITMENT),
        "RequestedSOPInstanceUID": UID(WELL_KNOWN_INSTANCE),
        "CommandField": N_ACTION_RQ,
        "ActionTypeID": REQUEST_ACTION,
    }
    content = encode(information, UID(syntax).is_implicit_VR, True) or b""
    link.send(context_id, command, io.BytesIO(content))


def _reference(sop_class: str, sop_instance: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
    return item


def _await_report(
    link: Link,
    node: Node,
    syntax: str,
    hold: Hold,
    note: Callable[[CommitmentReport], None],
    is_settled: Callable[[], bool],
) -> None:
    """The answer to the request has its time; then the report has some. They may come in either order."""
    is_taken = is_reported = False
    deadline = time.monotonic() + node.timeout_s
    while not (is_taken and (is_reported or is_settled())) and time.monotonic() < deadline:
        hold.check()
        try:
            if not link.wait(LOOK_S):
                continue
            context_id, command, content = link.receive()
        except DestinationFailed:
            hold.check()
            if is_taken:
                return  # it will report on an association of its own
            raise
        if command.get("CommandField") == N_ACTION_RQ | RESPONSE:
            if command.get("Status") != 0:
                why = verdict_of(int(command.get("Status", 0x0110))).reason
                raise DestinationFailed("protocol", f"the destination refused the request for commitment: {why}")
            is_taken = True
            deadline = min(deadline, time.monotonic() + WAIT_S)
        elif command.get("CommandField") == N_EVENT_REPORT_RQ:
            try:
                note(read_report(content, syntax))
            except ValueError as error:
                raise DestinationFailed(
                    "protocol", f"the destination's report of commitment cannot be read: {error}"
                ) from None
            is_reported = True
            _confirm(link, context_id, command)
    if not is_taken:
        raise DestinationFailed("silent", "the destination did not answer the request for commitment")


def _confirm(link: Link, context_id: int, command: Dataset) -> None:
    answer = {
        "AffectedSOPClassUID": UID(STORAGE_COMMITMENT),
        "CommandField": N_EVENT_REPORT_RSP,
        "MessageIDBeingRespondedTo": command.get("MessageID", 0),
        "Status": 0,
        "AffectedSOPInstanceUID": UID(WELL_KNOWN_INSTANCE),
        "EventTypeID": command.get("EventTypeID", 1),
    }
    link.answer(context_id, answer)
