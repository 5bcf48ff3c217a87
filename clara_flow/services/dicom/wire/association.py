"""One association, from its request to its end, in one thread: states Sta3 to Sta13 of PS3.8 section 9.2."""

from __future__ import annotations

import hashlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from uuid import UUID, uuid4

from clara_flow.errors import StorageError
from clara_flow.services.dicom.journal_entries import How, Stepped, now
from clara_flow.services.dicom.listener_config import ListenerConfig
from clara_flow.services.dicom.privacy import hashed
from clara_flow.services.dicom.procedure_steps import ProcedureSteps
from clara_flow.services.dicom.spool import SpoolWriter
from clara_flow.services.dicom.wire.admission import Admitted, Policy, admit
from clara_flow.services.dicom.wire.command_set import CommandError
from clara_flow.services.dicom.wire.commitment import CommitmentCheck
from clara_flow.services.dicom.wire.conversation import Conversation
from clara_flow.services.dicom.wire.counters import Counters, Progress
from clara_flow.services.dicom.wire.ledger import JournalLedger
from clara_flow.services.dicom.wire.lobby import Arrival
from clara_flow.services.dicom.wire.negotiation import AssociateRequest, decode_request, encode_accept
from clara_flow.services.dicom.wire.pace import Pace, TooSlow
from clara_flow.services.dicom.wire.pdu import (
    ABORT_BY_USER,
    RELEASE_RP,
    AbortReason,
    Fragment,
    PduError,
    PduStream,
    Rejection,
    ReleaseRequest,
    abort_by_provider,
)
from clara_flow.services.dicom.wire.procedure_step import StepDesk
from clara_flow.services.dicom.wire.sources import parse_address
from clara_flow.services.dicom.wire.store import Reception

log = logging.getLogger(__name__)

BUFFER_BYTES = 256 * 1024
LAST_WORD_S = 2.0
REMEMBERED_INSTANCES = 100_000  # of one association, for storage commitment


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """What the associations of one listener share.

    config          what the configuration says at this moment.
    check           asks our records for instances that another association stored.
    farewell        takes a connection to which everything was said.
    on_broken       is told that the journal takes nothing any more.
    """

    config: Callable[[], ListenerConfig]
    policy: Policy
    writer: SpoolWriter
    steps: ProcedureSteps
    counters: Counters
    check: CommitmentCheck
    farewell: Callable[[socket.socket], None]
    on_broken: Callable[[], None]
    maximum_pdu_bytes: int
    idle_timeout_s: float


@dataclass(frozen=True, slots=True)
class End:
    """How an association ended, None where there was none; and what the peer is told last."""

    how: How | None
    parting: bytes = b""


class Association:
    """Serves a peer that asked for an association."""

    def __init__(self, arrival: Arrival, station: Station, holds: ExitStack) -> None:
        """holds: what the association holds as long as it lives."""
        self._arrival = arrival
        self._socket = arrival.socket
        self._station = station
        self._holds = holds
        self._progress = Progress(str(uuid4()), time.monotonic())
        self._spool_id: UUID | None = None  # there is none until something is written down
        self._stored: set[bytes] = set()
        self._conversation: Conversation | None = None
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End it once the instance that is arriving was answered; at once when none is. For any thread."""
        self._stopping.set()
        conversation = self._conversation
        if conversation is None or not conversation.is_busy:
            self.break_off()

    def break_off(self) -> None:
        """End it now. For any thread."""
        with suppress(OSError):  # not TLS's own shutdown, which is another thing
            socket.socket.shutdown(self._socket, socket.SHUT_RD)  # its thread wakes up and finds nothing more to read

    def run(self) -> None:
        """Until the association is over and its connection was given away."""
        end = End("lost")
        try:
            end = self._serve()
        except PduError as error:
            end = self._broken(abort_by_provider(error.reason), str(error))
        except CommandError as error:
            end = self._broken(ABORT_BY_USER, str(error))
        except TooSlow as error:
            end = self._broken(abort_by_provider(AbortReason.NOT_SPECIFIED), str(error))
        except TimeoutError:
            end = self._broken(abort_by_provider(AbortReason.NOT_SPECIFIED), "it was silent for too long")
        except OSError:
            log.info("association %s: the connection broke", self._progress.association)
        except Exception as error:  # noqa: BLE001  no peer ends the listener; a traceback might hold what it sent
            self._station.counters.add("faults")
            end = self._broken(ABORT_BY_USER, f"a fault of ours, {type(error).__name__}")
        finally:
            self._close(end)

    def _broken(self, parting: bytes, why: str) -> End:
        log.warning("association %s aborted: %s", self._progress.association, why)
        return End("aborted", parting)

    def _serve(self) -> End:
        self._socket.settimeout(self._station.idle_timeout_s)
        request = decode_request(self._arrival.request)
        peer = parse_address(self._arrival.peer)
        if peer is None:
            return End("lost")
        decision = admit(request, peer, self._station.config(), self._station.policy, self._holds)
        if isinstance(decision, Rejection):
            self._station.counters.reject(decision.name)
            log.info("association rejected: %s (calling AE title %s)", decision.name, hashed(request.calling))
            return End(None, decision.encode())
        self._station.counters.enter(self._progress)
        self._conversation = self._converse_with(request, decision)
        self._socket.sendall(
            encode_accept(
                request,
                decision.answers,
                maximum_length=self._station.maximum_pdu_bytes,
                roles=decision.roles,
                identity_response=decision.identity_response,
            )
        )
        return self._receive(self._conversation)

    def _receive(self, conversation: Conversation) -> End:
        """State Sta6: messages, until one side ends it."""
        stream, pace = PduStream(self._station.maximum_pdu_bytes), Pace(self._station.idle_timeout_s)
        buffer = memoryview(bytearray(BUFFER_BYTES))
        while conversation.is_busy or not self._stopping.is_set():
            began = time.monotonic()
            size = self._socket.recv_into(buffer)
            if not size:
                break
            messages = conversation.messages
            pace.note(time.monotonic() - began, size)
            self._progress.received_bytes += size
            for item in stream.cut(buffer[:size]):
                if isinstance(item, Fragment):
                    conversation.take(item)
                elif isinstance(item, ReleaseRequest):
                    return End("released", RELEASE_RP)
                else:
                    log.info("association %s: aborted by its peer", self._progress.association)
                    return End("aborted")
            if conversation.messages != messages:
                pace.rest()
        if self._stopping.is_set():
            return self._broken(ABORT_BY_USER, "the listener stops")
        return End("lost")

    def _converse_with(self, request: AssociateRequest, admitted: Admitted) -> Conversation:
        def spool_id() -> UUID:
            if self._spool_id is None:
                self._spool_id = self._station.writer.open_association(
                    request.calling,
                    request.called,
                    admitted.rule.name,
                    self._arrival.peer,
                    admitted.rule.require_release,
                )
                self._progress.association = str(self._spool_id)
            return self._spool_id

        reception = Reception(
            called=request.called,
            calling=request.calling,
            config=self._station.config,
            is_space_short=self._station.policy.is_space_short,
            begin=lambda: self._station.writer.begin(spool_id()),
            on_stored=self._note_stored,
            on_broken=self._station.on_broken,
        )
        return Conversation(
            admitted.contexts,
            reception,
            StepDesk(
                steps=self._station.steps,
                is_space_short=self._station.policy.is_space_short,
                note=lambda path: self._station.writer.note(Stepped(association=spool_id(), at=now(), path=path)),
                on_told=lambda: self._station.counters.add("procedure_steps"),
                on_broken=self._station.on_broken,
            ),
            is_stored=lambda sop_class, sop_instance: _digest(sop_class, sop_instance) in self._stored,
            check=self._station.check,
            ledger=JournalLedger(self._station.writer, spool_id, self._station.on_broken),
            counters=self._station.counters,
            send=self._socket.sendall,
            peer_maximum=request.maximum_length,
        )

    def _note_stored(self, sop_class: str, sop_instance: str) -> None:
        self._progress.instances += 1
        self._station.counters.add("instances")
        if len(self._stored) < REMEMBERED_INSTANCES:
            self._stored.add(_digest(sop_class, sop_instance))

    def _close(self, end: End) -> None:
        """The journal says how it ended before the peer is told; and its slots are free by then."""
        try:
            if self._conversation is not None:
                self._conversation.abandon()
                if owed := self._conversation.unacknowledged_reports:
                    log.info("association %s: %d commitment reports stay owed", self._progress.association, owed)
            if self._spool_id is not None and end.how is not None:
                self._station.writer.close_association(self._spool_id, end.how)
        except StorageError as error:
            log.error("the end of association %s is not in the journal: %s", self._progress.association, error)
        finally:
            if end.how is not None and self._progress in self._station.counters.open:
                self._station.counters.leave(self._progress, end.how)
                self._station.counters.add("bytes", self._progress.received_bytes)
            self._holds.close()
            if end.parting:
                with suppress(OSError):
                    self._socket.settimeout(LAST_WORD_S)
                    self._socket.sendall(end.parting)
            self._station.farewell(self._socket)


def _digest(sop_class: str, sop_instance: str) -> bytes:
    """What stands for an instance in memory."""
    return hashlib.blake2b(f"{sop_class} {sop_instance}".encode(), digest_size=12).digest()
