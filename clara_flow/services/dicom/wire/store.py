"""C-STORE (PS3.7 section 9.3.1): a data set on its way from the wire to the spool, and the status that it gets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from clara_flow.errors import StorageError
from clara_flow.services.dicom.file_meta import file_head
from clara_flow.services.dicom.header import HeaderScanner
from clara_flow.services.dicom.journal import JournalDoubtful
from clara_flow.services.dicom.listener_config import ListenerConfig
from clara_flow.services.dicom.spool import Incoming, InstanceFacts
from clara_flow.services.dicom.wire.command_set import Command, Status
from clara_flow.services.dicom.wire.contexts import is_storage
from clara_flow.services.dicom.wire.negotiation import ContextAnswer, is_uid

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is answered: see `command_set.response`. `comment` is for the peer: never a patient's attribute."""

    status: int
    comment: str = ""
    error_id: int | None = None


UNREADABLE = Outcome(Status.CANNOT_UNDERSTAND, "the data set cannot be read")


class Operation(Protocol):
    """A request whose data set is arriving."""

    def write(self, data: memoryview) -> None:
        """The next bytes of it, valid during this call."""

    def finish(self) -> Outcome:
        """It is whole: what is answered."""

    def abandon(self) -> None:
        """It will never be whole."""


class Refused:
    """Reads a data set away and answers what was clear before."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def write(self, data: memoryview) -> None:
        """Forget it."""

    def finish(self) -> Outcome:
        """As was decided."""
        return self._outcome

    def abandon(self) -> None:
        """There is nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reception:
    """What all instances of one association share.

    begin           a new file of the spool for this association.
    on_stored       is told each instance that is durable: SOP class and instance.
    on_broken       is told that the journal takes nothing any more.
    """

    called: str
    calling: str
    config: Callable[[], ListenerConfig]
    is_space_short: Callable[[], bool]
    begin: Callable[[], Incoming]
    on_stored: Callable[[str, str], None]
    on_broken: Callable[[], None]


def begin_store(command: Command, context: ContextAnswer, reception: Reception) -> Operation:
    """What takes the data set of this C-STORE."""
    config = reception.config()
    refusal = _refusal(command, context, reception, config)
    if refusal is not None:
        return Refused(refusal)
    try:
        return _Store(command, context, reception, config)
    except StorageError as error:
        return Refused(storage_outcome(error))


def _refusal(command: Command, context: ContextAnswer, reception: Reception, config: ListenerConfig) -> Outcome | None:
    """What is answered to an instance that is not written; None: it is."""
    if not command.has_data_set:
        return Outcome(Status.CANNOT_UNDERSTAND, "there is no data set")
    if not command.sop_class or not command.sop_instance:
        return Outcome(Status.DOES_NOT_MATCH, "a SOP class or instance UID is missing")
    if command.sop_class != context.abstract_syntax or not is_storage(command.sop_class):
        return Outcome(Status.CLASS_NOT_SUPPORTED, "not the SOP class of its presentation context")
    if not is_uid(command.sop_instance):
        return Outcome(Status.INVALID_INSTANCE, "the SOP instance UID is no UID")
    rule = config.aetitles.get(reception.called)
    if rule is None:
        return Outcome(Status.PROCESSING_FAILURE, "the called AE title was removed")
    if command.sop_class in rule.ignored_sop_classes:
        return Outcome(Status.SUCCESS)
    if reception.is_space_short():
        return Outcome(Status.OUT_OF_RESOURCES, "the disk is nearly full")
    return None


class _Store:
    """Bytes go to the file as they come; the header scanner sees them until it has what it looks for."""

    def __init__(self, command: Command, context: ContextAnswer, reception: Reception, config: ListenerConfig) -> None:
        self._command = command
        self._reception = reception
        self._scanner = HeaderScanner(context.transfer_syntax, config.group_tags)
        self._scanned = False
        self._failure: Outcome | None = None
        self._incoming = reception.begin()
        head = file_head(command.sop_class, command.sop_instance, context.transfer_syntax, reception.calling)
        self._to_file(head)

    def write(self, data: memoryview) -> None:
        """Take some of the data set."""
        if self._failure is not None:
            return
        if not self._scanned:
            try:
                self._scanned = self._scanner.feed(data)
            except ValueError:
                self._fail(UNREADABLE)
                return
        self._to_file(data)

    def finish(self) -> Outcome:
        """Success only when the instance is durable."""
        if self._failure is None:
            self._commit()
        return self._failure or Outcome(Status.SUCCESS)

    def abandon(self) -> None:
        """Nothing is left of it."""
        if self._failure is None:
            self._fail(Outcome(Status.PROCESSING_FAILURE))

    def _commit(self) -> None:
        try:
            self._scanner.finish()
        except ValueError:
            self._fail(UNREADABLE)
            return
        facts = self._scanner.facts
        mismatch = self._mismatch(facts)
        if mismatch:
            self._fail(Outcome(Status.DOES_NOT_MATCH, mismatch))
            return
        try:
            self._incoming.commit(facts)
        except StorageError as error:
            if isinstance(error, JournalDoubtful):
                self._reception.on_broken()
            self._fail(storage_outcome(error))
            return
        self._reception.on_stored(facts.sop_class, facts.sop_instance)

    def _mismatch(self, facts: InstanceFacts) -> str:
        if not facts.study or not facts.series:
            return "no Study or Series Instance UID"
        if facts.sop_class != self._command.sop_class:
            return "SOP Class UID differs from that of the command"
        if facts.sop_instance != self._command.sop_instance:
            return "SOP Instance UID differs from that of the command"
        return ""

    def _to_file(self, data: bytes | memoryview) -> None:
        try:
            self._incoming.write(data)
        except StorageError as error:
            self._fail(storage_outcome(error))

    def _fail(self, outcome: Outcome) -> None:
        self._failure = outcome
        with suppress(StorageError):
            self._incoming.abandon()


def storage_outcome(error: StorageError) -> Outcome:
    """A full disk is for the peer to try again later, other trouble is ours."""
    log.error("an instance could not be stored: %s", error)
    if "free_bytes" in error.facts:
        return Outcome(Status.OUT_OF_RESOURCES, "the disk is full")
    return Outcome(Status.PROCESSING_FAILURE, "the instance could not be stored")
