"""Storage commitment as its provider, where the peer did not wait (PS3.4 section J.3.3): its report is told on an
association that we open to it.

Where to: to the destination whose AE title is the one by which the peer asked. Some peers are no destination; what they
are owed is kept, with that reason, until `dicom_commitment_report_retention_s` is over.
"""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import sqlalchemy as sa
from pydicom.uid import UID

from clara_flow.records import commitment_reports as records
from clara_flow.records.commitment_reports import Owed
from clara_flow.records.dicom_models import CommitmentReport, Destination, DestinationKind
from clara_flow.services.dicom.commitment_check import reasons
from clara_flow.services.dicom.export.delivering import Desk
from clara_flow.services.dicom.export.link import Link
from clara_flow.services.dicom.export.proposals import Context, Node
from clara_flow.services.dicom.export.retry_policy import pause_s, verdict_of
from clara_flow.services.dicom.export.sender import DestinationFailed
from clara_flow.services.dicom.export.senders import node_of
from clara_flow.services.dicom.export.transcode import PLAIN
from clara_flow.services.dicom.journal import JournalReader
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.wire.command_set import N_EVENT_REPORT_RQ, is_success
from clara_flow.services.dicom.wire.commitment import (
    WELL_KNOWN_INSTANCE,
    CommitmentRequest,
    Reference,
    write_report,
)
from clara_flow.services.dicom.wire.contexts import STORAGE_COMMITMENT
from clara_flow.services.dicom.wire.sources import HostNames, is_host, parse_address

log = logging.getLogger(__name__)

Cutting = Callable[[Callable[[], None]], AbstractContextManager[None]]

FIRST_PAUSE_S = 10.0  # after a peer could not be told, at least
CLAIM_TIMEOUTS = 4  # connecting, negotiating, telling and hearing have their time each
NOBODY = "no destination has the AE title by which it asked: add one (clara-flow dicom destination add)"
SEVERAL = "several destinations have the AE title by which it asked, and none of them its address"


def destination_of(report: Owed, destinations: Collection[Destination], names: HostNames) -> tuple[str, str]:
    """The name of the destination that is the peer, and ""; or "", and why there is none."""
    titled = [row for row in destinations if row.ae_title == report.calling_ae and row.kind is DestinationKind.DIMSE]
    if not titled:
        return "", NOBODY
    if len(titled) > 1:
        peer = parse_address(report.peer)
        titled = [row for row in titled if peer is not None and is_host(row.host, peer, names)]
    return (titled[0].name, "") if titled else ("", SEVERAL)


class OwedReports:
    """What is owed, and to which destination. For one thread."""

    def __init__(self, engine: sa.Engine, retention_s: float) -> None:
        self._engine, self._retention_s = engine, retention_s
        self._names = HostNames()

    def look(self, destinations: Collection[Destination]) -> list[Owed]:
        """All of it, as the destinations are now. Raises ServiceError."""
        if not (owed := records.owed(self._engine)):
            return owed
        if dropped := records.drop(self._engine, self._retention_s):
            log.warning("%d reports of storage commitment were dropped: their peers could not be told", dropped)
        directed = []
        changed = []
        for report in owed:
            name, problem = destination_of(report, destinations, self._names)
            if name != report.destination or (problem and problem != report.message):
                changed.append((report.id, name, problem))
                report = replace(report, destination=name, message=problem)
                if problem:
                    log.warning("report %s of storage commitment cannot be told: %s", report.id, problem)
            directed.append(report)
        if changed:
            records.direct(self._engine, changed)
        return directed


def tell_next(desk: Desk, destination: Destination, cutting: Cutting) -> bool:
    """Tell this destination a report that is due; whether there was one.

    cutting     while inside, what it was given ends the wait for the peer, from any thread.

    Raises ServiceError, StorageError.
    """
    settings = desk.settings
    report = records.claim(desk.engine, destination.name, CLAIM_TIMEOUTS * settings.dicom_export_timeout_s)
    if report is None:
        return False
    references = [Reference(sop_class, uid) for sop_class, instances in report.asked for uid in instances]
    told = reasons(desk.engine, JournalReader(Places.of(settings).spool), references)
    try:
        node = replace(node_of(destination, settings), calling=report.called_ae)
        status = _tell(node, CommitmentRequest(report.transaction_uid, tuple(references)), told, cutting)
    except DestinationFailed as failure:
        _postpone(desk, report, str(failure), with_others=True)
    except Exception as error:  # noqa: BLE001 - a bug of ours must not end the destination's thread
        _postpone(desk, report, f"the exporter broke ({type(error).__name__})", with_others=False)
    else:
        if is_success(status):
            desk.persistently(records.acknowledged, report.id)
            log.info("report %s of storage commitment was told to %s", report.id, destination.name)
        else:
            why = verdict_of(status).reason
            _postpone(desk, report, f"the destination refused it: {why}", with_others=False)
    return True


def _postpone(desk: Desk, report: CommitmentReport, message: str, *, with_others: bool) -> None:
    """with_others: it is the destination's fault, so that its other reports wait, too."""
    first_s = max(FIRST_PAUSE_S, desk.settings.dicom_export_retry_delay_s)
    wait_s = pause_s(report.attempts - 1, first_s, random.random())  # noqa: S311 - jitter
    log.warning("report %s of storage commitment waits for %.0f s: %s", report.id, wait_s, message)
    desk.persistently(records.postpone, report, message, wait_s, with_others=with_others)


def _tell(node: Node, request: CommitmentRequest, told: Sequence[int], cutting: Cutting) -> int:
    """The peer's status. Raises DestinationFailed."""
    link = Link(node, [Context(STORAGE_COMMITMENT, (PLAIN[1], PLAIN[0]), is_provider=True)])
    try:
        with cutting(link.cut):
            link.open()
            if not link.contexts:
                raise DestinationFailed("protocol", "the destination takes no reports of storage commitment")
            ((context_id, (_, syntax)),) = link.contexts.items()
            event_type, information = write_report(request, told, syntax)
            command = {
                "AffectedSOPClassUID": UID(STORAGE_COMMITMENT),
                "CommandField": N_EVENT_REPORT_RQ,
                "AffectedSOPInstanceUID": UID(WELL_KNOWN_INSTANCE),
                "EventTypeID": event_type,
            }
            link.send(context_id, command, io.BytesIO(information))
            return link.status()
    finally:
        link.release()
