"""Every check of the spec's 3.1 in its order, with its result, source and reason on the wire (PS3.8 Table 9-21)."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import pytest
from services.dicom.wire.conftest import Listening
from services.dicom.wire.scripted_peer import (
    COMMITMENT,
    CT,
    EXPLICIT,
    FIND,
    IMPLICIT,
    MR,
    VERIFICATION,
    ScriptedPeer,
    associate_rq,
    context,
    context_results,
    data_pdu,
    echo_rq,
    item,
    user_identity,
    user_information,
    user_items,
)
from waiting import eventually

from clara_flow.errors import ServiceError
from clara_flow.services.dicom.listener_config import AeTitleRule, ListenerConfig, SourceRule
from clara_flow.services.dicom.space import SpaceCheck

STORE = context(1, MR, EXPLICIT)
ECHO = context(3, VERIFICATION, EXPLICIT)
SECRET = "salt$" + hashlib.sha256(b"salt" + b"opensesame").hexdigest()


def answer(listening: Listening, *contexts: bytes, **request: object) -> tuple[int, ...]:
    """Result, source and reason; () when the association was accepted."""
    with listening.peer() as peer:
        peer.send(associate_rq(*contexts, **request))  # type: ignore[arg-type]
        pdu = peer.read_pdu()
        if pdu[0] == 2:
            peer.release()
            return ()
        assert pdu[0] == 3
        return tuple(pdu[7:10])


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, ()),
        ({"version": 0}, (1, 2, 2)),
        ({"version": 3}, ()),  # only the bit of version 1 counts
        ({"calling": b"STRANGER"}, (1, 1, 3)),
        ({"calling": b"modality"}, (1, 1, 3)),
        ({"calling": b""}, (1, 1, 3)),
        ({"calling": b"\xff\xfe"}, (1, 1, 3)),
        ({"called": b"NOBODY"}, (1, 1, 7)),
        ({"called": b"brain"}, (1, 1, 7)),
        ({"called": b"BRAIN\0"}, ()),
        ({"called": b"OLD"}, (1, 1, 7)),  # it is being drained
        ({"application_context": "1.2.3"}, (1, 1, 2)),
        ({"calling": b"STRANGER", "called": b"NOBODY"}, (1, 1, 3)),  # in this order
        ({"called": b"NOBODY", "application_context": "1.2.3"}, (1, 1, 7)),
        ({"items": item(0x99, b"who knows")}, ()),  # items that nobody knows are skipped (PS3.8 section 9.3.1)
    ],
)
def test_who_and_whom(listening: Listening, request_: dict[str, object], expected: tuple[int, ...]) -> None:
    assert answer(listening, **request_) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", ()),
        ("127.0.0.0/8", ()),
        ("::ffff:127.0.0.1", ()),
        ("localhost", ()),
        ("LOCALHOST", ()),
        ("127.0.0.2", (1, 1, 3)),
        ("10.0.0.0/8", (1, 1, 3)),
        ("::1", (1, 1, 3)),
        ("no-such-host.invalid", (1, 1, 3)),
    ],
)
def test_host_of_a_source(
    listen: Callable[..., Listening], config: ListenerConfig, host: str, expected: tuple[int, ...]
) -> None:
    rule = SourceRule(ae_title="MODALITY", host=host)
    assert answer(listen(config=replace(config, sources=(rule,)))) == expected


def test_a_source_by_its_ipv6_address(listen: Callable[..., Listening], config: ListenerConfig) -> None:
    """On "::", peers come by either kind of address; an IPv4 one is known by its IPv4 form."""
    if not socket.has_ipv6:
        pytest.skip("there is no IPv6")
    rules = [SourceRule(ae_title=host, host=host) for host in ("::1", "fe80::/10", "127.0.0.1")]
    try:
        listening = listen(host="::", config=replace(config, sources=tuple(rules)))
        six = ScriptedPeer(listening.port, "::1")
    except (ServiceError, OSError):
        pytest.skip("there is no IPv6 on this machine")
    with six:
        six.associate(calling=b"::1")
    with ScriptedPeer(listening.port, "::1") as peer:
        peer.send(associate_rq(calling=b"fe80::/10"))
        assert tuple(peer.read_pdu()[7:10]) == (1, 1, 3)
    assert answer(listening, calling=b"127.0.0.1") == ()
    assert answer(listening, calling=b"::1") == (1, 1, 3)


def test_ae_titles_have_sixteen_characters(listen: Callable[..., Listening], config: ListenerConfig) -> None:
    rules = {title: AeTitleRule(name=title, ae_title=title) for title in ("BRAIN_SIXTEEN_AB", "BRAIN_SIXTEEN_A")}
    source = SourceRule(ae_title="MODALITY_SIXTEEN", host="127.0.0.1")
    listening = listen(config=replace(config, aetitles=rules, sources=(source,)))
    assert answer(listening, called=b"BRAIN_SIXTEEN_AB", calling=b"MODALITY_SIXTEEN") == ()
    assert answer(listening, called=b"BRAIN_SIXTEEN_AC", calling=b"MODALITY_SIXTEEN") == (1, 1, 7)
    assert answer(listening, called=b"BRAIN_SIXTEEN_AB", calling=b"MODALITY_SIXTEE") == (1, 1, 3)


def test_unknown_sources_may_be_let_in(listen: Callable[..., Listening]) -> None:
    assert answer(listen(reject_unknown_sources=False), calling=b"STRANGER") == ()


def test_the_listener_is_full(listen: Callable[..., Listening]) -> None:
    listening = listen(maximum_associations=1)
    with listening.peer() as first:
        first.associate()
        assert answer(listening, calling=b"STRANGER") == (2, 3, 2)  # before everything else
        first.release()
        assert answer(listening) == ()  # its place was free before its peer was told
    assert listening.listener.counters.rejections == {"busy": 1}


def test_a_source_has_as_many_as_it_may(listen: Callable[..., Listening], config: ListenerConfig) -> None:
    rule = SourceRule(ae_title="MODALITY", host="127.0.0.1", maximum_associations=1)
    listening = listen(config=replace(config, sources=(rule, replace(rule, ae_title="OTHER"))))
    with listening.peer() as first:
        first.associate()
        assert answer(listening, called=b"NOBODY") == (2, 3, 2)
        assert answer(listening, calling=b"OTHER") == ()
        first.release()
    assert answer(listening) == ()
    assert answer(listening, called=b"NOBODY") == (1, 1, 7)
    assert answer(listening) == ()  # the rejected one gave its place back


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        (user_identity(2, b"mri", b"opensesame"), ()),
        (user_identity(2, b"mri", b"wrong"), (1, 1, 1)),
        (user_identity(2, b"ct", b"opensesame"), (1, 1, 1)),
        (user_identity(1, b"mri"), (1, 1, 1)),
        (user_identity(1, b"mri", b"opensesame"), (1, 1, 1)),
        (user_identity(5, b"a.json.token"), (1, 1, 1)),
        (b"", (1, 1, 1)),
    ],
)
def test_user_identity(
    listen: Callable[..., Listening], config: ListenerConfig, identity: bytes, expected: tuple[int, ...]
) -> None:
    rule = SourceRule(ae_title="MODALITY", host="127.0.0.1", user_name="mri", user_secret=SECRET)
    listening = listen(config=replace(config, sources=(rule,)))
    assert answer(listening, user=user_information(identity)) == expected
    assert answer(listening, user=user_information(identity), called=b"NOBODY") == (expected or (1, 1, 7))


def test_user_identity_is_confirmed_where_it_was_looked_at(
    listen: Callable[..., Listening], config: ListenerConfig
) -> None:
    rule = SourceRule(ae_title="MODALITY", host="127.0.0.1", user_name="mri")
    listening = listen(config=replace(config, sources=(rule, SourceRule(ae_title="OTHER", host="127.0.0.1"))))
    said = user_information(user_identity(1, b"mri", wants_response=True))
    with listening.peer() as peer:
        assert user_items(peer.associate(user=said))[0x59] == b"\0\0"
    with listening.peer() as peer:
        assert 0x59 not in user_items(peer.associate(user=said, calling=b"OTHER"))


def test_verification_that_is_off_rejects_the_whole_association(listen: Callable[..., Listening]) -> None:
    listening = listen(verification=False)
    assert answer(listening, STORE, ECHO) == (1, 1, 2)
    assert answer(listening, STORE) == ()
    assert answer(listening, ECHO, called=b"NOBODY") == (1, 1, 7)


def test_space_is_short(listen: Callable[..., Listening], monkeypatch: pytest.MonkeyPatch) -> None:
    short = [True]
    monkeypatch.setattr(SpaceCheck, "is_short", lambda self: short[0])
    listening = listen()
    assert answer(listening, STORE) == (2, 1, 1)
    assert answer(listening, ECHO) == ()  # it needs none
    assert answer(listening, STORE, called=b"NOBODY") == (1, 1, 7)
    short[0] = False
    assert answer(listening, STORE) == ()


# Each row of 3.1 that rejects, with our own ones between, in its order: what is wrong, and what is answered.
FAULTS: tuple[tuple[dict[str, object], tuple[int, ...]], ...] = (
    ({"full": True}, (2, 3, 2)),
    ({"version": 2}, (1, 2, 2)),
    ({"calling": b"STRANGER"}, (1, 1, 3)),
    ({"user": user_information()}, (1, 1, 1)),
    ({"source_full": True}, (2, 3, 2)),
    ({"called": b"NOBODY"}, (1, 1, 7)),
    ({"application_context": "1.2.3"}, (1, 1, 2)),
    ({"contexts": (STORE, ECHO)}, (1, 1, 2)),
    ({"space": True}, (2, 1, 1)),
)


@pytest.mark.parametrize("first", range(len(FAULTS) + 1))
def test_the_checks_come_in_their_order(
    listen: Callable[..., Listening], config: ListenerConfig, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """A request with every fault from the `first` on is answered for that one; with none, it is accepted."""
    request: dict[str, object] = {"user": user_information(user_identity(1, b"mri")), "contexts": (STORE,)}
    for faults, _ in FAULTS[first:]:
        request |= faults
    contexts, space = request.pop("contexts"), request.pop("space", False)
    full, source_full = request.pop("full", False), request.pop("source_full", False)
    source = SourceRule(ae_title="MODALITY", host="127.0.0.1", maximum_associations=1, user_name="mri")
    sources = (source, SourceRule(ae_title="OTHER", host="127.0.0.1"))
    listening = listen(
        config=replace(config, sources=sources), verification=False, maximum_associations=2 if full else 25
    )
    with ExitStack() as stack:
        if full or source_full:
            identity = user_information(user_identity(1, b"mri"))
            stack.enter_context(listening.peer()).associate(user=identity)
        if full:
            stack.enter_context(listening.peer()).associate(calling=b"OTHER")
        monkeypatch.setattr(SpaceCheck, "is_short", lambda self: space)
        expected = FAULTS[first][1] if first < len(FAULTS) else ()
        assert answer(listening, *contexts, **request) == expected  # type: ignore[misc]


def test_configuration_is_live(listening: Listening) -> None:
    assert answer(listening, called=b"NEW") == (1, 1, 7)
    rule = replace(listening.config.aetitles["BRAIN"], name="new", ae_title="NEW")
    listening.configure(replace(listening.config, aetitles={"NEW": rule}))
    assert answer(listening, called=b"NEW") == ()
    assert answer(listening, called=b"BRAIN") == (1, 1, 7)
    listening.options.config.write_text("{")
    assert answer(listening, called=b"NEW") == ()  # its last good words
    listening.options.config.unlink()
    assert answer(listening, called=b"NEW") == (1, 1, 3)


@pytest.mark.parametrize(
    ("abstract", "syntaxes", "expected"),
    [
        (MR, (EXPLICIT, IMPLICIT), (0, EXPLICIT)),
        (MR, (IMPLICIT, EXPLICIT), (0, IMPLICIT)),
        (MR, ("1.2.840.10008.1.2.4.90", EXPLICIT), (0, "1.2.840.10008.1.2.4.90")),
        (MR, ("1.2.840.10008.1.2.4.999",), (0, "1.2.840.10008.1.2.4.999")),  # newer than this program
        (MR, ("1.3.46.670589.33.1.4.1",), (0, "1.3.46.670589.33.1.4.1")),  # a private one
        (MR, ("../../etc/passwd", EXPLICIT), (0, EXPLICIT)),
        (MR, ("../../etc/passwd",), (4, IMPLICIT)),
        ("1.3.12.2.1107.5.9.1", (EXPLICIT,), (0, EXPLICIT)),  # a private SOP class
        ("1.2.840.10008.5.1.4.1.1.9999", (EXPLICIT,), (0, EXPLICIT)),
        ("1.2.840.10008.5.1.4.1.1.40", (EXPLICIT,), (0, EXPLICIT)),  # retired, without a name
        ("1.2.840.10008.5.1.4.34.7", (EXPLICIT,), (0, EXPLICIT)),
        (FIND, (EXPLICIT,), (3, IMPLICIT)),
        ("1.2.840.10008.1.3.10", (EXPLICIT,), (3, IMPLICIT)),  # DICOMDIR is not for the network
        ("1.2.840.10008.5.1.4.1.1.200.4", (EXPLICIT,), (3, IMPLICIT)),  # a query among the storage classes
        ("../x", (EXPLICIT,), (3, IMPLICIT)),
        (VERIFICATION, ("1.2.840.10008.1.2.4.90", IMPLICIT), (0, IMPLICIT)),
        (VERIFICATION, ("1.2.840.10008.1.2.4.90",), (4, IMPLICIT)),
        (COMMITMENT, ("1.2.840.10008.1.2.4.90", EXPLICIT), (0, EXPLICIT)),
    ],
)
def test_presentation_contexts(
    listening: Listening, abstract: str, syntaxes: tuple[str, ...], expected: tuple[int, str]
) -> None:
    with listening.peer() as peer:
        accept = peer.associate(context(1, abstract, *syntaxes), context(255, CT, EXPLICIT))
        assert context_results(accept) == {1: expected, 255: (0, EXPLICIT)}


def test_an_association_without_any_context_is_accepted_and_of_no_use(listening: Listening) -> None:
    with listening.peer() as peer:
        assert context_results(peer.associate(context(1, FIND, EXPLICIT))) == {1: (3, IMPLICIT)}
        peer.release()


def test_128_contexts(listening: Listening) -> None:
    proposed = [context(number, MR, *[EXPLICIT, IMPLICIT] * 10) for number in range(1, 256, 2)]
    with listening.peer() as peer:
        assert len(context_results(peer.associate(*proposed))) == 128


def test_what_the_acceptance_says_of_itself(listen: Callable[..., Listening]) -> None:
    listening = listen(maximum_pdu_bytes=65_536)
    roles = item(0x54, b"\0\x19" + MR.encode() + b"\1\1") + item(0x54, b"\0\x19" + CT.encode() + b"\0\1")
    user = user_information(roles, item(0x53, b"\0\5\0\5"))
    with listening.peer() as peer:
        request = associate_rq(context(1, MR, EXPLICIT), context(3, CT, EXPLICIT), user=user)
        peer.send(request)
        accept = peer.read_pdu()
        assert accept[10:74] == request[10:74]  # titles and reserved bytes come back
        items = user_items(accept)
        assert items[0x51] == (65_536).to_bytes(4, "big")
        assert items[0x52].startswith(b"2.25.")
        assert items[0x53] == b"\0\1\0\1"  # one operation at a time
        assert items[0x54] == b"\0\x19" + MR.encode() + b"\1\0"  # we are SCP
        assert context_results(accept) == {1: (0, EXPLICIT), 3: (1, IMPLICIT)}


def test_our_answers_fit_the_peers_pdus(listening: Listening) -> None:
    with listening.peer() as peer:
        peer.associate(ECHO, user=user_information(maximum=20))
        peer.send(data_pdu(3, echo_rq(), command=True))
        message, is_last = b"", 0
        while not is_last:
            pdu = peer.read_pdu()
            assert len(pdu) - 6 <= 20
            is_last = pdu[11] & 2
            message += pdu[12:]
        assert message.endswith(b"\0\0\0\x09\2\0\0\0\0\0")  # status 0x0000
        peer.release()


def test_25_associations_at_once_and_one_more(listen: Callable[..., Listening]) -> None:
    listening = listen(maximum_associations=25)
    peers = [listening.peer() for _ in range(25)]
    for peer in peers:
        peer.associate()
    assert answer(listening) == (2, 3, 2)
    peers[0].reset()
    eventually(lambda: answer(listening) == ())
    for peer in peers[1:]:
        peer.release()
        peer.socket.close()
