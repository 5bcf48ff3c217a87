"""The messages of an association (PS3.7): put together from fragments, done, answered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from uuid import UUID

from pydicom.uid import generate_uid

from clara_flow.errors import StorageError
from clara_flow.services.dicom.privacy import hashed
from clara_flow.services.dicom.wire import command_set
from clara_flow.services.dicom.wire.command_set import Command, Status
from clara_flow.services.dicom.wire.commitment import (
    SAFE,
    WELL_KNOWN_INSTANCE,
    CommitmentAction,
    CommitmentCheck,
    CommitmentRequest,
    Ledger,
    Reference,
    begin_action,
    begin_event,
    write_report,
)
from clara_flow.services.dicom.wire.contexts import STORAGE_COMMITMENT, VERIFICATION
from clara_flow.services.dicom.wire.counters import Counters
from clara_flow.services.dicom.wire.negotiation import ContextAnswer
from clara_flow.services.dicom.wire.pdu import AbortReason, Fragment, PduError, data_pdus
from clara_flow.services.dicom.wire.procedure_step import StepDesk, begin_word
from clara_flow.services.dicom.wire.store import Operation, Outcome, Reception, Refused, begin_store

log = logging.getLogger(__name__)


# What a request is about, for the log.
NOUNS = {
    command_set.C_STORE_RQ: "instance",
    command_set.N_CREATE_RQ: "procedure step",
    command_set.N_SET_RQ: "word of a procedure step",
}


@dataclass(frozen=True, slots=True)
class _Pending:
    command: Command
    operation: Operation


class Conversation:
    """Takes fragments, does what they ask for, sends what is to be answered. One thread's.

    contexts        the accepted ones by their ID.
    steps           takes what the peer says of procedure steps.
    is_stored       whether this association itself has stored that instance (SOP class, SOP instance).
    check           asks our records for the others.
    ledger          where storage commitment is written down.
    send            puts bytes on the wire.
    peer_maximum    the longest P-DATA-TF that the peer takes, in bytes; 0: no limit.
    messages        so many were whole.
    """

    def __init__(
        self,
        contexts: Mapping[int, ContextAnswer],
        reception: Reception,
        steps: StepDesk,
        *,
        is_stored: Callable[[str, str], bool],
        check: CommitmentCheck,
        ledger: Ledger,
        counters: Counters,
        send: Callable[[bytes], None],
        peer_maximum: int,
    ) -> None:
        self._contexts = contexts
        self._reception = reception
        self._steps = steps
        self._is_stored = is_stored
        self._check = check
        self._ledger = ledger
        self._counters = counters
        self._send = send
        self._peer_maximum = peer_maximum
        self.messages = 0
        self._command = bytearray()
        self._context_id = 0
        self._pending: _Pending | None = None
        self._reports = 0  # so many were told to the peer
        self._unacknowledged: dict[int, UUID] = {}  # of these, by their message ID

    @property
    def is_busy(self) -> bool:
        """Whether a message has begun that is not whole."""
        return self._pending is not None or bool(self._command)

    @property
    def unacknowledged_reports(self) -> int:
        """Storage commitment reports that the peer has not answered."""
        return len(self._unacknowledged)

    def take(self, fragment: Fragment) -> None:
        """The next piece of a message. Raises PduError, CommandError, and OSError when the answer cannot be sent."""
        if self.is_busy and fragment.context_id != self._context_id:
            raise PduError(AbortReason.INVALID_PARAMETER, "a message on two presentation contexts")
        if fragment.is_command:
            self._take_command(fragment)
            return
        if self._pending is None:
            raise PduError(AbortReason.UNEXPECTED_PARAMETER, "a data set without a command")
        self._pending.operation.write(fragment.data)
        if fragment.is_last:
            self._finish(self._pending)

    def abandon(self) -> None:
        """Nothing more will come."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.operation.abandon()

    def _take_command(self, fragment: Fragment) -> None:
        if self._pending is not None:
            raise PduError(AbortReason.UNEXPECTED_PARAMETER, "a command inside a data set")
        if fragment.context_id not in self._contexts:
            raise PduError(AbortReason.INVALID_PARAMETER, "a presentation context that was not accepted")
        if len(self._command) + len(fragment.data) > command_set.MAXIMUM_BYTES:
            raise PduError(AbortReason.INVALID_PARAMETER, "a command set of more than 64 KiB")
        self._context_id = fragment.context_id
        self._command += fragment.data
        if fragment.is_last:
            command = command_set.decode(bytes(self._command))
            self._command.clear()
            self._begin(command)

    def _begin(self, command: Command) -> None:
        context = self._contexts[self._context_id]
        if command.field == command_set.C_STORE_RQ:
            operation = begin_store(command, context, self._reception)
        elif command.field == command_set.N_ACTION_RQ:
            operation = begin_action(command, context, self._ledger)
        elif command.field == command_set.N_EVENT_REPORT_RQ:
            operation = begin_event(command, context, self._ledger)
        elif command.field in {command_set.N_CREATE_RQ, command_set.N_SET_RQ}:
            if command.field == command_set.N_CREATE_RQ and not command.sop_instance:  # then it is for us to find one
                command = replace(command, sop_instance=generate_uid(prefix=None))
            operation = begin_word(command, context, self._steps)
        elif command.field == command_set.C_ECHO_RQ:
            is_known = context.abstract_syntax == VERIFICATION
            operation = Refused(Outcome(Status.SUCCESS if is_known else Status.CLASS_NOT_SUPPORTED))
        else:
            operation = Refused(Outcome(Status.UNRECOGNISED_OPERATION))
        self._pending = _Pending(command, operation)
        if not command.has_data_set:
            self._finish(self._pending)

    def _finish(self, pending: _Pending) -> None:
        """The message is whole. An error below leaves it pending, to be abandoned."""
        command = pending.command
        outcome = pending.operation.finish()
        self._pending = None
        self.messages += 1
        if command.field & command_set.RESPONSE:
            if command.field == command_set.N_EVENT_REPORT_RSP:
                self._note_told(command)
            return  # nobody answers an answer
        if command.field == command_set.C_CANCEL_RQ:
            return  # there is nothing to cancel, and no answer to it (PS3.7 section 9.3.2.3)
        if command.field == command_set.C_STORE_RQ:
            self._counters.answer(outcome.status)
        if command.field in NOUNS:
            self._note(command, outcome)
        self._say(command_set.response(command, outcome.status, outcome.comment, outcome.error_id))
        if isinstance(pending.operation, CommitmentAction) and outcome.status == Status.SUCCESS:
            self._report(pending.operation)

    def _note(self, command: Command, outcome: Outcome) -> None:
        if outcome.status != Status.SUCCESS:
            name, what = hashed(command.sop_instance), NOUNS[command.field]
            log.warning("%s %s refused: 0x%04X %s", what, name, outcome.status, outcome.comment)

    def _report(self, action: CommitmentAction) -> None:
        """Tell the peer what is safe, on this association (PS3.4 section J.3.3); what it does not take stays owed."""
        assert action.request is not None and action.report is not None  # noqa: S101, PT018 - for the type checker
        syntax = self._contexts[self._context_id].transfer_syntax
        event_type, data = write_report(action.request, self._judge(action.request), syntax)
        self._reports += 1
        message_id = self._reports & 0xFFFF
        self._unacknowledged[message_id] = action.report
        self._say(command_set.event_report(message_id, STORAGE_COMMITMENT, WELL_KNOWN_INSTANCE, event_type), data)

    def _note_told(self, command: Command) -> None:
        report = self._unacknowledged.get(command.message_id)
        if report is None:
            return
        if not command_set.is_success(command.status):
            log.warning("a report of storage commitment was refused: 0x%04X; it is sent again later", command.status)
            return
        try:
            self._ledger.told(report)
            del self._unacknowledged[command.message_id]
        except StorageError as error:  # the peer will be told once more
            log.warning("that a report of storage commitment was taken is not in the journal: %s", error)

    def _judge(self, request: CommitmentRequest) -> list[int]:
        """For each reference, whether it is safe: what was stored here needs no asking."""
        unsure = [each for each in request.references if not self._is_stored(each.sop_class, each.sop_instance)]
        reasons: dict[Reference, int] = dict(zip(unsure, self._check(unsure) if unsure else (), strict=True))
        return [reasons.get(each, SAFE) for each in request.references]

    def _say(self, command: bytes, data: bytes | None = None) -> None:
        pdus = data_pdus(self._context_id, command, is_command=True, peer_maximum=self._peer_maximum)
        if data is not None:
            pdus += data_pdus(self._context_id, data, is_command=False, peer_maximum=self._peer_maximum)
        self._send(pdus)
