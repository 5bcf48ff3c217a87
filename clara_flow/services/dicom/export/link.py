"""One association as its requestor, on a blocking socket of the thread that uses it (PS3.8 section 9).

Why not pynetdicom's Association: its two threads hand each PDU through queues, a data set waits in memory as a whole,
and a peer that stops reading, or sends half a PDU, holds its thread for ever. Here every answer and every PDU sent has
its time, memory is one PDU, and another thread can `cut`. PDUs and commands are encoded by pynetdicom and pydicom.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.dsutils import decode, encode

from clara_flow.services.dicom.export.dialing import dial, in_words
from clara_flow.services.dicom.export.proposals import MAXIMUM_PDU, Context, Node, answers_in, request_for
from clara_flow.services.dicom.export.refusals import abort_in_words, rejection_in_words
from clara_flow.services.dicom.export.sender import DestinationFailed
from clara_flow.services.dicom.wire.command_set import C_ECHO_RQ, C_STORE_RQ, NO_DATA_SET
from clara_flow.services.dicom.wire.contexts import ACCEPTED, VERIFICATION
from clara_flow.services.dicom.wire.pdu import (
    ABORT_BY_USER,
    COMMAND,
    HEADER,
    ITEM_HEADER,
    LAST,
    RELEASE_RP,
    SHORT_BODY,
    PduType,
)
from clara_flow.services.dicom.wire.references import MAXIMUM_BYTES

LONGEST_ANSWER = 1024 * 1024  # of a PDU that is no P-DATA-TF
SMALLEST_PDU = 64  # a peer that takes less takes nothing
RELEASE_RQ = HEADER.pack(PduType.RELEASE_RQ, SHORT_BODY) + bytes(SHORT_BODY)
RELEASE_S = 2.0  # a peer that does not confirm the end is left
WITH_DATA_SET = 0x0001


class Link:
    """An association, once it is open.

    contexts    the accepted ones: context ID -> (abstract syntax, transfer syntax).

    `cut` is for any thread, at any time; everything else for one. Everything else raises DestinationFailed when the
    peer does not do its part; the link is useless then, and closed.
    """

    def __init__(self, node: Node, contexts: Sequence[Context]) -> None:
        self.node, self.proposed = node, tuple(contexts)
        self.contexts: dict[int, tuple[str, str]] = {}
        self._maximum = MAXIMUM_PDU
        self._message_id = 0
        self._socket = socket.socket()  # until there is one that leads somewhere
        self._is_cut = False

    def open(self) -> Link:
        """Connect and negotiate; itself."""
        try:
            dial(self.node, lambda: self._is_cut, self._use)
            self._negotiate()
        except BaseException:
            self.close()
            raise
        return self

    def echo(self, context_id: int) -> int:
        """C-ECHO; the status."""
        self.send(context_id, {"AffectedSOPClassUID": UID(VERIFICATION), "CommandField": C_ECHO_RQ})
        return self.status()

    def store(self, context_id: int, sop_class: str, sop_instance: str, data_set: BinaryIO) -> int:
        """C-STORE of an encoded data set; the status. Raises OSError when it cannot be read."""
        command = {
            "AffectedSOPClassUID": UID(sop_class),
            "CommandField": C_STORE_RQ,
            "Priority": 0,
            "AffectedSOPInstanceUID": UID(sop_instance),
        }
        self.send(context_id, command, data_set)
        return self.status()

    def send(self, context_id: int, command: Mapping[str, object], data_set: BinaryIO | None = None) -> None:
        """Send a request; `command` by keyword, without its length, message ID and data set type."""
        self._message_id = self._message_id % 0xFFFF + 1
        kind = NO_DATA_SET if data_set is None else WITH_DATA_SET
        self._send_command(context_id, {**command, "MessageID": self._message_id, "CommandDataSetType": kind})
        if data_set is not None:
            self._stream(context_id, data_set)

    def answer(self, context_id: int, command: Mapping[str, object]) -> None:
        """Send a response without a data set; `command` by keyword, without its length and data set type."""
        self._send_command(context_id, {**command, "CommandDataSetType": NO_DATA_SET})

    def receive(self, timeout_s: float | None = None) -> tuple[int, Dataset, bytes]:
        """The next message: its context ID, its command set, its encoded data set.

        timeout_s   None: the node's.
        """
        deadline = time.monotonic() + (self.node.timeout_s if timeout_s is None else timeout_s)
        command: Dataset | None = None
        parts = bytearray()
        while True:
            body = self._read_data(deadline)
            while body:
                length, context_id, control = ITEM_HEADER.unpack_from(body)
                if not 2 <= length <= len(body) - 4:
                    raise self._broken("protocol", "sent an item that does not fit its PDU")
                parts += body[ITEM_HEADER.size : 4 + length]
                body = body[4 + length :]
                if len(parts) > MAXIMUM_BYTES:
                    raise self._broken("protocol", "answered with a message that is too long")
                if not control & LAST:
                    continue
                if not control & COMMAND:
                    if command is None:
                        raise self._broken("protocol", "sent a data set without a command")
                    return context_id, command, bytes(parts)
                command, parts = self._command(bytes(parts)), bytearray()
                if command.get("CommandDataSetType", NO_DATA_SET) == NO_DATA_SET:
                    return context_id, command, b""

    def wait(self, timeout_s: float) -> bool:
        """Whether there is something to receive, at latest after that time."""
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return True
        try:
            return bool(select.select([self._socket], [], [], timeout_s)[0])
        except (OSError, ValueError) as error:
            raise self._broken("lost", f"broke the connection ({in_words(error)})") from None

    @property
    def is_fresh(self) -> bool:
        """Whether it rests as it was left: a peer that has said something meanwhile wanted its end."""
        try:
            return not select.select([self._socket], [], [], 0)[0]
        except (OSError, ValueError):
            return False

    def release(self) -> None:
        """End it in good order, if the peer does so too; never raises."""
        with contextlib.suppress(OSError, ValueError, DestinationFailed, struct.error):
            self._send(RELEASE_RQ)
            deadline = time.monotonic() + min(RELEASE_S, self.node.timeout_s)
            while self._read_pdu(deadline)[0] not in {PduType.RELEASE_RP, PduType.ABORT}:
                pass
        self.close()

    def abort(self) -> None:
        """Break it off: A-ABORT where that can be sent at once; never raises."""
        with contextlib.suppress(OSError, ValueError):
            self._socket.settimeout(0.1)
            self._socket.sendall(ABORT_BY_USER)
        self.close()

    def cut(self) -> None:
        """End whatever another thread waits for; that thread closes the link. Never raises."""
        self._is_cut = True
        with contextlib.suppress(OSError, ValueError):
            # Of the socket itself, not of TLS: the other thread may be inside that.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the connection; may be repeated."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def status(self) -> int:
        """The peer's answer to what was sent last."""
        _, command, _ = self.receive()
        if command.get("MessageIDBeingRespondedTo") != self._message_id or "Status" not in command:
            raise self._broken("protocol", "answered something else than it was asked")
        return int(command.Status)

    def _use(self, connection: socket.socket) -> None:
        if connection is not self._socket:
            self.close()  # of TLS, the plain one is detached, and its end is none
        self._socket = connection

    def _negotiate(self) -> None:
        deadline = time.monotonic() + self.node.timeout_s
        self._send(request_for(self.node, self.proposed))
        kind, body = self._read_pdu(deadline)
        if kind == PduType.ASSOCIATE_RJ:
            raise self._broken("rejected", rejection_in_words(body))
        if kind != PduType.ASSOCIATE_AC:
            raise self._broken("protocol", f"answered the association request with a PDU of type {kind}")
        try:
            answers, maximum = answers_in(body)
        except (struct.error, UnicodeDecodeError, IndexError):
            raise self._broken("protocol", "accepted the association in a way that cannot be read") from None
        self._maximum = min(maximum or MAXIMUM_PDU, MAXIMUM_PDU)
        if self._maximum < SMALLEST_PDU:
            raise self._broken("protocol", f"takes PDUs of {maximum} bytes only")
        for number, context in enumerate(self.proposed):
            result, syntax = answers.get(2 * number + 1, (None, ""))
            if result == ACCEPTED and syntax in context.transfer_syntaxes:
                self.contexts[2 * number + 1] = context.abstract_syntax, syntax

    def _stream(self, context_id: int, data_set: BinaryIO) -> None:
        """One fragment stays behind until it is known whether it is the last."""
        room = self._maximum - ITEM_HEADER.size
        room -= room % 2
        piece = data_set.read(room)
        while True:
            following = data_set.read(room)
            self._send_fragment(context_id, piece, 0 if following else LAST)
            if not following:
                return
            piece = following

    def _send_command(self, context_id: int, facts: Mapping[str, object]) -> None:
        message = _command_set(facts)
        room = self._maximum - ITEM_HEADER.size
        for start in range(0, len(message), room):
            last = LAST if start + room >= len(message) else 0
            self._send_fragment(context_id, message[start : start + room], COMMAND | last)

    def _send_fragment(self, context_id: int, piece: bytes, control: int) -> None:
        head = HEADER.pack(PduType.DATA, ITEM_HEADER.size + len(piece))
        self._send(head + ITEM_HEADER.pack(2 + len(piece), context_id, control) + piece)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(self.node.timeout_s)
            self._socket.sendall(data)
        except TimeoutError:
            raise self._broken("silent", f"took nothing for {self.node.timeout_s:g} s") from None
        except (OSError, ValueError) as error:
            raise self._lost(error) from None

    def _read_data(self, deadline: float) -> memoryview:
        kind, body = self._read_pdu(deadline)
        if kind == PduType.RELEASE_RQ:
            with contextlib.suppress(OSError):
                self._socket.sendall(RELEASE_RP)
            raise self._broken("lost", "ended the association instead of answering")
        if kind != PduType.DATA:
            raise self._broken("protocol", f"sent a PDU of type {kind}")
        return memoryview(body)

    def _read_pdu(self, deadline: float) -> tuple[int, bytes]:
        kind, length = HEADER.unpack(self._read(HEADER.size, deadline))
        if length > (MAXIMUM_PDU if kind == PduType.DATA else LONGEST_ANSWER):
            raise self._broken("protocol", f"sent a PDU of {length} bytes")
        body = self._read(length, deadline)
        if kind == PduType.ABORT:
            raise self._broken("aborted", abort_in_words(body))
        return kind, body

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        try:
            while view:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._socket.settimeout(left)
                got = self._socket.recv_into(view)
                if not got:
                    raise self._broken("lost", "closed the connection")
                view = view[got:]
        except TimeoutError:
            raise self._broken("silent", f"did not answer within {self.node.timeout_s:g} s") from None
        except (OSError, ValueError) as error:
            raise self._broken("lost", f"broke the connection ({in_words(error)})") from None
        return bytes(data)

    def _command(self, encoded: bytes) -> Dataset:
        try:
            return decode(BytesIO(encoded), True, True)
        except Exception:  # noqa: BLE001 - whatever a peer can send
            raise self._broken("protocol", "answered with a command that cannot be read") from None

    def _lost(self, error: Exception) -> DestinationFailed:
        """Sending failed; a peer that aborts says so before it closes, and that may still be read."""
        with contextlib.suppress(OSError, ValueError, struct.error):
            try:
                self._read_pdu(time.monotonic() + 0.5)
            except DestinationFailed as failure:
                if failure.facts["kind"] == "aborted":
                    return failure
        return self._broken("lost", f"broke the connection ({in_words(error)})")

    def _broken(self, kind: str, what: str) -> DestinationFailed:
        """The error to raise; the connection is no use any more."""
        if kind in {"protocol", "silent"}:
            self.abort()
        self.close()
        return DestinationFailed(kind, f"the destination {what}")


def _command_set(facts: Mapping[str, object]) -> bytes:
    """Encoded, with its group length in front (PS3.7 section 6.3.1)."""
    command = Dataset()
    for keyword, value in facts.items():
        setattr(command, keyword, value)
    body = encode(command, True, True) or b""
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body
