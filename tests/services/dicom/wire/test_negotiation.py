"""Our requests and acceptances beside pynetdicom's, and identity, sources and slots by themselves."""

from __future__ import annotations

import io
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID
from pynetdicom.dimse_messages import C_STORE_RSP
from pynetdicom.dsutils import decode as decode_data_set
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import build_context
from services.dicom.wire.scripted_peer import EXPLICIT, IMPLICIT, MR, command_set, elements_of

from clara_flow.services.dicom.wire import command_set as commands
from clara_flow.services.dicom.wire.admission import REJECTIONS
from clara_flow.services.dicom.wire.command_set import CommandError
from clara_flow.services.dicom.wire.negotiation import (
    ContextAnswer,
    ProposedContext,
    Role,
    UserIdentity,
    decode_request,
    encode_accept,
    is_uid,
)
from clara_flow.services.dicom.wire.pdu import PduError
from clara_flow.services.dicom.wire.sources import HostNames, is_host

uids = st.lists(st.integers(0, 9999), min_size=2, max_size=8).map(lambda parts: ".".join(map(str, parts)))
titles = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_- ", min_size=1, max_size=16).map(str.strip).filter(bool)


@given(
    calling=titles,
    called=titles,
    proposed=st.lists(st.tuples(uids, st.lists(uids, min_size=1, max_size=4, unique=True)), min_size=1, max_size=20),
    maximum=st.integers(0, 2**32 - 1),
    role=st.sampled_from([(True, True), (True, False), (False, True)]),
)
def test_requests_as_pynetdicom_writes_them(
    calling: str, called: str, proposed: list[tuple[str, list[str]]], maximum: int, role: tuple[bool, bool]
) -> None:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = UID("1.2.840.10008.3.1.1.1")
    primitive.calling_ae_title, primitive.called_ae_title = calling, called
    contexts = [build_context(abstract, syntaxes) for abstract, syntaxes in proposed]
    for number, each in enumerate(contexts):
        each.context_id = 2 * number + 1
    primitive.presentation_context_definition_list = contexts
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, implementation.implementation_class_uid = maximum, UID("1.2.3")
    selection, identity = SCP_SCU_RoleSelectionNegotiation(), UserIdentityNegotiation()
    selection.sop_class_uid, (selection.scu_role, selection.scp_role) = UID("1.2.3.4"), role
    identity.user_identity_type, identity.primary_field, identity.secondary_field = 2, b"name", b"secret"
    primitive.user_information = [length, implementation, selection, identity]
    request = decode_request(A_ASSOCIATE_RQ(primitive).encode()[6:])
    assert (request.calling, request.called, request.protocol_version) == (calling, called, 1)
    assert request.application_context == "1.2.840.10008.3.1.1.1"
    assert request.contexts == tuple(
        ProposedContext(2 * number + 1, abstract, tuple(syntaxes))
        for number, (abstract, syntaxes) in enumerate(proposed)
    )
    assert request.maximum_length == maximum
    assert request.roles == (Role("1.2.3.4", *role),)
    assert request.identity == UserIdentity(2, False, b"name", b"secret")
    assert "secret" not in repr(request)


def test_acceptances_as_pynetdicom_reads_them() -> None:
    request = decode_request(_request().encode()[6:])
    answers = [ContextAnswer(1, MR, 0, EXPLICIT), ContextAnswer(3, MR, 4, IMPLICIT)]
    sent = encode_accept(
        request, answers, maximum_length=65_536, roles=[Role(MR, True, False)], identity_response=b"ok"
    )
    accept = A_ASSOCIATE_AC()
    accept.decode(sent)
    assert [(each.context_id, each.result, each.transfer_syntax) for each in accept.presentation_context] == [
        (1, 0, EXPLICIT),
        (3, 4, IMPLICIT),
    ]
    user = accept.user_information
    assert user.maximum_length == 65_536
    assert user.role_selection[MR].scu_role == 1
    assert user.role_selection[MR].scp_role == 0
    assert user.user_identity.server_response == b"ok"
    assert accept.encode() == sent


@pytest.mark.parametrize("rejection", REJECTIONS)
def test_rejections_as_pynetdicom_reads_them(rejection: object) -> None:
    answer = A_ASSOCIATE_RJ()
    answer.decode(rejection.encode())  # type: ignore[attr-defined]
    assert answer.result_str
    assert answer.source_str
    assert answer.reason_str != "(reserved)"


def refused_for(body: bytes) -> int | None:
    """The reason of the abort; None: it can be read."""
    try:
        decode_request(body)
    except PduError as error:
        return error.reason
    return None


@given(junk=st.binary(max_size=600))
def test_any_request_is_read_or_refused(junk: bytes) -> None:
    head = _request().encode()[6:74]
    for body in (junk, head + junk):
        assert refused_for(body) in {None, 6}


@given(place=st.integers(0, 600), byte=st.integers(0, 255))
def test_a_request_with_one_wrong_byte(place: int, byte: int) -> None:
    body = bytearray(_request().encode()[6:])
    body[place % len(body)] = byte
    assert refused_for(bytes(body)) in {None, 6}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.2.3", True),
        ("1.2.03", True),
        ("", False),
        ("1..2", False),
        ("1.2.", False),
        ("1.2.x", False),
        ("1.²", False),
    ],
)
def test_what_is_a_uid(text: str, expected: bool) -> None:
    assert is_uid(text) is expected


def test_answers_as_pynetdicom_reads_them() -> None:
    request = commands.decode(command_set({2: MR, 0x0100: 1, 0x0110: 7, 0x0800: 0, 0x1000: "1.2.3"}))
    sent = commands.response(request, 0xA700, "the disk is full")
    message = C_STORE_RSP()
    message.command_set = decode_data_set(io.BytesIO(sent), True, True)
    answer = message.message_to_primitive()
    assert (answer.MessageIDBeingRespondedTo, answer.Status) == (7, 0xA700)
    assert (answer.AffectedSOPClassUID, answer.AffectedSOPInstanceUID) == (MR, "1.2.3")
    assert elements_of(sent)[0x0902] == b"the disk is full"


@given(junk=st.binary(max_size=200))
def test_any_command_set_is_read_or_refused(junk: bytes) -> None:
    for data in (junk, command_set({0x0100: 1, 0x0110: 7, 0x0800: 0}) + junk):
        try:
            command = commands.decode(data)
        except CommandError:
            continue
        commands.decode(commands.response(command, 0) if command.field != 0x0FFF else data)


def test_the_name_service_is_asked_seldom_and_may_fail() -> None:
    now, asked = [0.0], []
    answers: list[frozenset[ipaddress.IPv4Address | ipaddress.IPv6Address]] = []

    def look_up(name: str) -> frozenset[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        asked.append(name)
        if not answers:
            raise OSError("nobody knows")
        return answers.pop()

    names = HostNames(look_up, lambda: now[0])
    here, there = ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("10.0.0.2")
    assert not is_host("mri.hospital", here, names)
    assert not is_host("mri.hospital", here, names)
    assert asked == ["mri.hospital"]
    now[0] += 6
    answers.append(frozenset({here}))
    assert is_host("MRI.hospital", here, names)
    now[0] += 59
    assert is_host("mri.hospital", here, names)
    assert len(asked) == 2
    now[0] += 10
    assert is_host("mri.hospital", here, names)  # it gives no answer: the last one goes on
    now[0] += 6
    answers.append(frozenset({there}))
    assert not is_host("mri.hospital", here, names)
    assert len(asked) == 4


def _request() -> A_ASSOCIATE_RQ:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = UID("1.2.840.10008.3.1.1.1")
    primitive.calling_ae_title, primitive.called_ae_title = "CALLING", "CALLED"
    contexts = [build_context(MR, [EXPLICIT]), build_context(MR, [IMPLICIT])]
    for number, each in enumerate(contexts):
        each.context_id = 2 * number + 1
    primitive.presentation_context_definition_list = contexts
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, implementation.implementation_class_uid = 16_384, UID("1.2.3")
    primitive.user_information = [length, implementation]
    return A_ASSOCIATE_RQ(primitive)
