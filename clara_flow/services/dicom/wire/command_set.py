"""Command sets of PS3.7 (Implicit VR Little Endian, group 0000): read, and answers written."""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAXIMUM_BYTES = 64 * 1024
ELEMENT = struct.Struct("<HHI")
NO_DATA_SET = 0x0101

GROUP_LENGTH = 0x0000
AFFECTED_SOP_CLASS = 0x0002
REQUESTED_SOP_CLASS = 0x0003
COMMAND_FIELD = 0x0100
MESSAGE_ID = 0x0110
MESSAGE_ID_RESPONDED = 0x0120
DATA_SET_TYPE = 0x0800
STATUS = 0x0900
ERROR_COMMENT = 0x0902
ERROR_ID = 0x0903
AFFECTED_SOP_INSTANCE = 0x1000
REQUESTED_SOP_INSTANCE = 0x1001
EVENT_TYPE = 0x1002
ACTION_TYPE = 0x1008

C_STORE_RQ = 0x0001
C_ECHO_RQ = 0x0030
C_CANCEL_RQ = 0x0FFF
N_EVENT_REPORT_RQ = 0x0100
N_SET_RQ = 0x0120
N_ACTION_RQ = 0x0130
N_CREATE_RQ = 0x0140
RESPONSE = 0x8000  # added to the command field of a request
N_EVENT_REPORT_RSP = N_EVENT_REPORT_RQ | RESPONSE

COMMENT_CHARACTERS = 64


class Status:
    """Statuses that we answer (PS3.7 Annex C, PS3.4 Table B.2-1)."""

    SUCCESS = 0x0000
    INVALID_ATTRIBUTE_VALUE = 0x0106
    PROCESSING_FAILURE = 0x0110
    DUPLICATE_INSTANCE = 0x0111
    NO_SUCH_INSTANCE = 0x0112
    NO_SUCH_EVENT = 0x0113
    INVALID_ARGUMENT = 0x0115
    INVALID_INSTANCE = 0x0117
    CLASS_INSTANCE_CONFLICT = 0x0119
    MISSING_ATTRIBUTE = 0x0120
    MISSING_ATTRIBUTE_VALUE = 0x0121
    CLASS_NOT_SUPPORTED = 0x0122
    NO_SUCH_ACTION = 0x0123
    UNRECOGNISED_OPERATION = 0x0211
    RESOURCE_LIMITATION = 0x0213
    OUT_OF_RESOURCES = 0xA700
    DOES_NOT_MATCH = 0xA900
    CANNOT_UNDERSTAND = 0xC000


def is_success(status: int | None) -> bool:
    """Whether an answer says so, be it with a warning (PS3.7 Annex C)."""
    return status in {Status.SUCCESS, 0x0001, 0x0107, 0x0116} or (status is not None and status >> 12 == 0xB)


class CommandError(Exception):
    """A command set that cannot be read: nobody knows what to answer, so the association is aborted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A request, or the response to one of ours. UIDs without padding; "" where there is none.

    sop_class, sop_instance     Affected (C-STORE, C-ECHO, N-CREATE, N-EVENT-REPORT) or Requested (N-ACTION, N-SET).
    kind                        of the event or action; None where there is none.
    """

    field: int
    message_id: int
    has_data_set: bool
    sop_class: str = ""
    sop_instance: str = ""
    kind: int | None = None
    status: int | None = None


def decode(data: bytes) -> Command:
    """Raises CommandError. Elements that we have no use for are skipped."""
    elements = _elements(data)
    field = _number(elements, COMMAND_FIELD)
    message_id = _number(
        elements, MESSAGE_ID_RESPONDED if field & RESPONSE else MESSAGE_ID, required=field != C_CANCEL_RQ
    )
    return Command(
        field=field,
        message_id=message_id,
        has_data_set=_number(elements, DATA_SET_TYPE) != NO_DATA_SET,
        sop_class=_uid(elements, AFFECTED_SOP_CLASS) or _uid(elements, REQUESTED_SOP_CLASS),
        sop_instance=_uid(elements, AFFECTED_SOP_INSTANCE) or _uid(elements, REQUESTED_SOP_INSTANCE),
        kind=next((_number(elements, each) for each in (ACTION_TYPE, EVENT_TYPE) if each in elements), None),
        status=_number(elements, STATUS) if STATUS in elements else None,
    )


def response(command: Command, status: int, comment: str = "", error_id: int | None = None) -> bytes:
    """The answer to `command`.

    comment     why it is no success, cut to 64 characters (PS3.7 Annex C); never a patient's attribute.
    error_id    of the service class, where it has one.
    """
    kind = EVENT_TYPE if command.field == N_EVENT_REPORT_RQ else ACTION_TYPE
    elements = {
        AFFECTED_SOP_CLASS: _uid_bytes(command.sop_class),
        COMMAND_FIELD: struct.pack("<H", (command.field | RESPONSE) & 0xFFFF),
        MESSAGE_ID_RESPONDED: struct.pack("<H", command.message_id),
        DATA_SET_TYPE: struct.pack("<H", NO_DATA_SET),
        STATUS: struct.pack("<H", status),
        ERROR_COMMENT: _padded(comment[:COMMENT_CHARACTERS].encode("ascii", errors="replace"), b" "),
        ERROR_ID: b"" if error_id is None else struct.pack("<H", error_id),
        AFFECTED_SOP_INSTANCE: _uid_bytes(command.sop_instance),
        kind: b"" if command.kind is None else struct.pack("<H", command.kind),
    }
    return encode({number: value for number, value in elements.items() if value})


def event_report(message_id: int, sop_class: str, sop_instance: str, event_type: int) -> bytes:
    """An N-EVENT-REPORT-RQ that a data set follows (PS3.7 section 10.3.1)."""
    return encode(
        {
            AFFECTED_SOP_CLASS: _uid_bytes(sop_class),
            COMMAND_FIELD: struct.pack("<H", N_EVENT_REPORT_RQ),
            MESSAGE_ID: struct.pack("<H", message_id),
            DATA_SET_TYPE: struct.pack("<H", 1),
            AFFECTED_SOP_INSTANCE: _uid_bytes(sop_instance),
            EVENT_TYPE: struct.pack("<H", event_type),
        }
    )


def encode(elements: dict[int, bytes]) -> bytes:
    """A command set of elements 0000,<number>: values of even length, in any order."""
    body = b"".join(ELEMENT.pack(0, number, len(value)) + value for number, value in sorted(elements.items()))
    return ELEMENT.pack(0, GROUP_LENGTH, 4) + struct.pack("<I", len(body)) + body


def _elements(data: bytes) -> dict[int, bytes]:
    elements: dict[int, bytes] = {}
    position = 0
    while position < len(data):
        if position + ELEMENT.size > len(data):
            raise CommandError("a command set that ends in an element's header")
        group, number, length = ELEMENT.unpack_from(data, position)
        position += ELEMENT.size + length
        if group != 0 or position > len(data):
            raise CommandError("a command set with an element that is none of its own")
        elements[number] = data[position - length : position]
    return elements


def _number(elements: dict[int, bytes], number: int, *, required: bool = True) -> int:
    value = elements.get(number, b"")
    if len(value) == 2:
        return int.from_bytes(value, "little")
    if required:
        raise CommandError(f"no number in element (0000,{number:04X})")
    return 0


def _uid(elements: dict[int, bytes], number: int) -> str:
    return elements.get(number, b"").decode("ascii", errors="replace").strip(" \0")


def _uid_bytes(uid: str) -> bytes:
    return _padded(uid.encode("ascii", errors="replace"), b"\0")


def _padded(value: bytes, padding: bytes) -> bytes:
    return value + padding * (len(value) % 2)
