"""A-ASSOCIATE-RQ read and A-ASSOCIATE-AC written (PS3.8 sections 9.3.2, 9.3.3; sub-items of PS3.7 Annex D.3.3).

Why not by pynetdicom's classes, which the tests hold beside these: they raise at items that they do not know, which the
standard says are to be skipped, and at AE titles that are blank or not ASCII, which are to be rejected, not aborted.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from clara_flow.services.dicom import implementation
from clara_flow.services.dicom.wire.pdu import HEADER, AbortReason, PduError, PduType

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"  # DICOM's (PS3.7 Annex A.2.1)

FIXED = struct.Struct(">HH16s16s32s")  # protocol version, reserved, called, calling, reserved
ITEM = struct.Struct(">BxH")
MAXIMUM_CONTEXTS = 128
MAXIMUM_UID = 64
UID_CHARACTERS = re.compile(r"[0-9]+(?:\.[0-9]+)*")

APPLICATION_CONTEXT_ITEM = 0x10
CONTEXT_RQ_ITEM = 0x20
CONTEXT_AC_ITEM = 0x21
ABSTRACT_SYNTAX = 0x30
TRANSFER_SYNTAX = 0x40
USER_INFORMATION = 0x50
MAXIMUM_LENGTH = 0x51
IMPLEMENTATION_CLASS = 0x52
ASYNCHRONOUS_OPERATIONS = 0x53
ROLE_SELECTION = 0x54
IMPLEMENTATION_VERSION_NAME = 0x55
USER_IDENTITY_RQ = 0x58
USER_IDENTITY_AC = 0x59


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """A presentation context: its odd ID, and UIDs in the order in which the peer likes them."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Role:
    """An SCP/SCU role selection (PS3.7 Annex D.3.3.4): what the requestor wants to be for a SOP class."""

    sop_class: str
    scu: bool
    scp: bool


@dataclass(frozen=True, slots=True)
class UserIdentity:
    """PS3.7 Annex D.3.3.7. kind: 1 user name, 2 user name and passcode, 3 Kerberos, 4 SAML, 5 JWT."""

    kind: int
    wants_response: bool
    primary: bytes = field(repr=False)
    secondary: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociateRequest:
    """What a peer asks for.

    called, calling     AE titles without their padding; what is not ASCII is replaced, so it names nobody.
    titles              both as they came, and the reserved bytes after them: an answer repeats them.
    maximum_length      the longest P-DATA-TF that the peer takes, in bytes; 0: no limit.
    """

    protocol_version: int
    called: str
    calling: str
    titles: bytes
    application_context: str = ""
    contexts: tuple[ProposedContext, ...] = ()
    maximum_length: int = 0
    roles: tuple[Role, ...] = ()
    asynchronous: bool = False
    identity: UserIdentity | None = None


@dataclass(frozen=True, slots=True)
class ContextAnswer:
    """result (PS3.8 Table 9-18): 0 accepted, 1 user rejection, 3 abstract syntax, 4 transfer syntaxes not supported."""

    context_id: int
    abstract_syntax: str
    result: int
    transfer_syntax: str


def decode_request(body: bytes) -> AssociateRequest:
    """What follows the header of an A-ASSOCIATE-RQ. Raises PduError (invalid parameter)."""
    if len(body) < FIXED.size:
        raise _invalid("an association request that ends in its fixed part")
    version, _, called, calling, _ = FIXED.unpack_from(body)
    application_context = ""
    contexts: dict[int, ProposedContext] = {}
    user: dict[str, object] = {}
    for kind, value in _items(body[FIXED.size :]):
        if kind == APPLICATION_CONTEXT_ITEM:
            application_context = _uid(value)
        elif kind == CONTEXT_RQ_ITEM:
            context = _context(value)
            if context.context_id in contexts:
                raise _invalid("a presentation context ID that is used twice")
            contexts[context.context_id] = context
        elif kind == USER_INFORMATION:
            user = _user_information(value)
    if not contexts:
        raise _invalid("no presentation context")
    return AssociateRequest(
        protocol_version=version,
        called=_title(called),
        calling=_title(calling),
        titles=body[4 : FIXED.size],
        application_context=application_context,
        contexts=tuple(contexts.values()),
        **user,  # type: ignore[arg-type]
    )


def encode_accept(
    request: AssociateRequest,
    answers: Sequence[ContextAnswer],
    *,
    maximum_length: int,
    roles: Sequence[Role] = (),
    identity_response: bytes | None = None,
) -> bytes:
    """The A-ASSOCIATE-AC.

    maximum_length      the longest P-DATA-TF that we take, in bytes.
    identity_response   of the user identity, where the peer wants one and is who it says.
    """
    user = _item(MAXIMUM_LENGTH, struct.pack(">I", maximum_length))
    user += _item(IMPLEMENTATION_CLASS, implementation.CLASS_UID.encode())
    if request.asynchronous:  # one operation at a time, whatever was proposed
        user += _item(ASYNCHRONOUS_OPERATIONS, struct.pack(">HH", 1, 1))
    for role in roles:
        uid = role.sop_class.encode()
        user += _item(ROLE_SELECTION, struct.pack(">H", len(uid)) + uid + bytes((role.scu, role.scp)))
    user += _item(IMPLEMENTATION_VERSION_NAME, implementation.VERSION_NAME.encode())
    if identity_response is not None:
        user += _item(USER_IDENTITY_AC, struct.pack(">H", len(identity_response)) + identity_response)
    body = struct.pack(">HH", 1, 0) + request.titles
    body += _item(APPLICATION_CONTEXT_ITEM, APPLICATION_CONTEXT.encode())
    for answer in answers:
        syntax = _item(TRANSFER_SYNTAX, answer.transfer_syntax.encode())
        body += _item(CONTEXT_AC_ITEM, bytes((answer.context_id, 0, answer.result, 0)) + syntax)
    body += _item(USER_INFORMATION, user)
    return HEADER.pack(PduType.ASSOCIATE_AC, len(body)) + body


def is_uid(text: str) -> bool:
    """Whether these are the characters and the length of a UID (PS3.5 section 9.1); leading zeros are forgiven."""
    return len(text) <= MAXIMUM_UID and UID_CHARACTERS.fullmatch(text) is not None


def _context(value: bytes) -> ProposedContext:
    if len(value) < 4 or not value[0] % 2:
        raise _invalid("a presentation context without an odd ID")
    abstract_syntaxes, transfer_syntaxes = [], []
    for kind, syntax in _items(value[4:]):
        if kind == ABSTRACT_SYNTAX:
            abstract_syntaxes.append(_uid(syntax))
        elif kind == TRANSFER_SYNTAX:
            transfer_syntaxes.append(_uid(syntax))
    if len(abstract_syntaxes) != 1 or not transfer_syntaxes:
        raise _invalid("a presentation context without one abstract syntax and a transfer syntax")
    return ProposedContext(value[0], abstract_syntaxes[0], tuple(transfer_syntaxes))


def _user_information(value: bytes) -> dict[str, object]:
    user: dict[str, object] = {}
    roles = []
    for kind, data in _items(value):
        if kind == MAXIMUM_LENGTH and len(data) == 4:
            user["maximum_length"] = int.from_bytes(data, "big")
        elif kind == ASYNCHRONOUS_OPERATIONS:
            user["asynchronous"] = True
        elif kind == ROLE_SELECTION:
            uid, rest = _counted(data)
            if len(rest) != 2:
                raise _invalid("a role selection of the wrong length")
            roles.append(Role(_uid(uid), bool(rest[0]), bool(rest[1])))
        elif kind == USER_IDENTITY_RQ:
            if len(data) < 2:
                raise _invalid("a user identity that ends early")
            primary, rest = _counted(data[2:])
            secondary, _ = _counted(rest)
            user["identity"] = UserIdentity(data[0], bool(data[1]), primary, secondary)
    return {**user, "roles": tuple(roles)}


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Items and sub-items: type, value."""
    position = 0
    while position < len(data):
        if position + ITEM.size > len(data):
            raise _invalid("an item that ends in its header")
        kind, length = ITEM.unpack_from(data, position)
        position += ITEM.size + length
        if position > len(data):
            raise _invalid("an item longer than what holds it")
        yield kind, data[position - length : position]


def _item(kind: int, value: bytes) -> bytes:
    return ITEM.pack(kind, len(value)) + value


def _counted(data: bytes) -> tuple[bytes, bytes]:
    """A value after its length of two bytes, and what follows it."""
    length = int.from_bytes(data[:2], "big")
    if len(data) < 2 + length:
        raise _invalid("a length beyond its item")
    return data[2 : 2 + length], data[2 + length :]


def _uid(data: bytes) -> str:
    return data.decode("ascii", errors="replace").strip(" \0")


def _title(data: bytes) -> str:
    return data.decode("ascii", errors="replace").strip(" \0")


def _invalid(message: str) -> PduError:
    return PduError(AbortReason.INVALID_PARAMETER, message)
