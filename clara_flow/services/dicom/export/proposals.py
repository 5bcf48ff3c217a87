"""What is proposed to a peer, and what it makes of it: A-ASSOCIATE-RQ and A-ASSOCIATE-AC (PS3.8 sections 9.3.2, 9.3.3).

The request is encoded by pynetdicom; its answer is read by us, since pynetdicom raises at items that it does not know
where the standard says that they are skipped.
"""

from __future__ import annotations

import ssl
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import PresentationContext

from clara_flow.services.dicom import implementation
from clara_flow.services.dicom.wire.negotiation import (
    APPLICATION_CONTEXT,
    CONTEXT_AC_ITEM,
    MAXIMUM_LENGTH,
    TRANSFER_SYNTAX,
    USER_INFORMATION,
)

MAXIMUM_PDU = 131_072  # bytes, both ways
FIXED_BYTES = 68  # of an A-ASSOCIATE-AC, before its items


@dataclass(frozen=True, slots=True)
class Node:
    """Whom to call, and as whom. `tls`: how to speak TLS; None: not."""

    host: str
    port: int
    called: str
    calling: str
    timeout_s: float
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """A presentation context: a SOP class, and transfer syntaxes of which the peer takes one.

    is_provider     whether we, who call, are the SCP of the class (PS3.7 Annex D.3.3.4).
    """

    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]
    is_provider: bool = False


def request_for(node: Node, contexts: Sequence[Context]) -> bytes:
    """The A-ASSOCIATE-RQ PDU (PS3.8 section 9.3.2)."""
    proposed = []
    for number, context in enumerate(contexts):
        item = PresentationContext()
        item.context_id = 2 * number + 1
        item.abstract_syntax = UID(context.abstract_syntax)
        item.transfer_syntax = [UID(syntax) for syntax in context.transfer_syntaxes]
        proposed.append(item)
    maximum, own_class = MaximumLengthNotification(), ImplementationClassUIDNotification()
    version = ImplementationVersionNameNotification()
    maximum.maximum_length_received = MAXIMUM_PDU
    own_class.implementation_class_uid = UID(implementation.CLASS_UID)
    version.implementation_version_name = implementation.VERSION_NAME
    primitive = A_ASSOCIATE()
    primitive.application_context_name = UID(APPLICATION_CONTEXT)
    primitive.calling_ae_title, primitive.called_ae_title = node.calling, node.called
    primitive.user_information = [maximum, own_class, version, *_roles(contexts)]
    primitive.presentation_context_definition_list = proposed
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return pdu.encode()


def _roles(contexts: Sequence[Context]) -> list[SCP_SCU_RoleSelectionNegotiation]:
    roles = []
    for uid in dict.fromkeys(context.abstract_syntax for context in contexts if context.is_provider):
        role = SCP_SCU_RoleSelectionNegotiation()
        role.sop_class_uid, role.scu_role, role.scp_role = UID(uid), False, True
        roles.append(role)
    return roles


def answers_in(body: bytes) -> tuple[dict[int, tuple[int, str]], int]:
    """Of an A-ASSOCIATE-AC (PS3.8 section 9.3.3): context ID -> (result, transfer syntax), and the maximum length.

    Raises struct.error, UnicodeDecodeError, IndexError when it is none.
    """
    answers, maximum = {}, 0
    for kind, item in _items(body[FIXED_BYTES:]):
        if kind == CONTEXT_AC_ITEM:
            syntax = b"".join(data for sub, data in _items(item[4:]) if sub == TRANSFER_SYNTAX)
            answers[item[0]] = item[2], syntax.decode("ascii").strip(" \0")
        elif kind == USER_INFORMATION:
            for sub, data in _items(item):
                if sub == MAXIMUM_LENGTH:
                    (maximum,) = struct.unpack(">I", data)
    return answers, maximum


def _items(data: bytes) -> list[tuple[int, bytes]]:
    items = []
    while data:
        kind, length = struct.unpack_from(">BxH", data)
        items.append((kind, data[4 : 4 + length]))
        data = data[4 + length :]
    return items
