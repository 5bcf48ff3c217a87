"""What the upper layer does at each PDU that it must not get (PS3.8 Table 9-10), and at those that lie."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from services.dicom.wire.conftest import Listening
from services.dicom.wire.scripted_peer import (
    ABORT,
    EXPLICIT,
    IMPLICIT,
    MR,
    RELEASE_RP,
    RELEASE_RQ,
    ScriptedPeer,
    associate_rq,
    command_set,
    context,
    data_pdu,
    data_set,
    item,
    pdu,
    store_rq,
    user_information,
)
from waiting import eventually

from clara_flow.services.dicom.wire.pdu import Abort, Fragment, PduError, PduStream, ReleaseRequest, data_pdus

BY_USER = (0, 0)
UNRECOGNISED, UNEXPECTED, UNEXPECTED_PARAMETER, INVALID = (2, 1), (2, 2), (2, 5), (2, 6)
NOT_SPECIFIED = (2, 0)
HELLO = pdu(2, bytes(68))
REFUSAL = pdu(3, bytes(4))
FIXED = struct.pack(">HH", 1, 0) + b"BRAIN".ljust(16) + b"MODALITY".ljust(16) + bytes(32)


def aborted(peer: ScriptedPeer) -> tuple[int, int]:
    """Source and reason of the A-ABORT that comes; the connection stays open for the peer to close."""
    answer = peer.read_pdu()
    assert answer[:6] == bytes.fromhex("07 00 00000004"), answer.hex()
    return answer[8], answer[9]


@pytest.mark.parametrize(
    "first",
    [HELLO, REFUSAL, data_pdu(1, b"", command=True), RELEASE_RQ, RELEASE_RP, pdu(8, b"ab"), b"GET / HTTP/1.1\r\n\r\n"],
)
def test_before_the_association(listening: Listening, first: bytes) -> None:
    """AA-1 in state Sta2."""
    with listening.peer() as peer:
        peer.send(first)
        assert aborted(peer) == BY_USER
    eventually(lambda: listening.listener.counters.rejections["pdu"] == 1)


def test_an_abort_before_the_association_closes_the_connection(listening: Listening) -> None:
    with listening.peer() as peer:
        peer.send(ABORT)
        assert peer.read_pdu() == b""


@pytest.mark.parametrize(
    "request_",
    [
        pdu(1, b"short"),
        pdu(1, FIXED),  # no contexts
        pdu(1, FIXED + b"\x20"),
        pdu(1, FIXED + b"\x20\0\xff\xff" + bytes(10)),  # an item longer than the PDU
        associate_rq(context(2, MR, EXPLICIT)),  # an even ID
        associate_rq(context(0, MR, EXPLICIT)),
        associate_rq(context(1, MR, EXPLICIT), context(1, MR, IMPLICIT)),  # twice the same
        associate_rq(context(1, MR)),
        associate_rq(item(0x20, b"\1\0\0")),
        associate_rq(item(0x20, b"\1\0\0\0" + item(0x40, EXPLICIT.encode()))),
        associate_rq(item(0x20, b"\1\0\0\0" + item(0x30, MR.encode()) * 2 + item(0x40, EXPLICIT.encode()))),
        associate_rq(user=user_information(item(0x54, b"\0\xffabc"))),
        associate_rq(user=user_information(item(0x54, b"\0\1a"))),
        associate_rq(user=user_information(item(0x58, b"\1"))),
        associate_rq(user=user_information(item(0x58, b"\1\0\0\xffname"))),
    ],
)
def test_requests_that_cannot_be_read(listening: Listening, request_: bytes) -> None:
    with listening.peer() as peer:
        peer.send(request_)
        assert aborted(peer) == INVALID


@pytest.mark.parametrize("length", [0, 256 * 1024 + 1, 0xFFFFFFFF])
def test_requests_that_lie_about_their_length(listening: Listening, length: int) -> None:
    with listening.peer() as peer:
        peer.send(struct.pack(">BxI", 1, length))
        assert aborted(peer) == BY_USER


def items(*pieces: tuple[int, int, int, bytes]) -> bytes:
    """A P-DATA-TF: of each item the length it claims, context ID, control header, data."""
    return pdu(
        4, b"".join(struct.pack(">IBB", length, number, control) + data for length, number, control, data in pieces)
    )


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (associate_rq(), UNEXPECTED),
        (HELLO, UNEXPECTED),
        (REFUSAL, UNEXPECTED),
        (RELEASE_RP, UNEXPECTED),
        (pdu(8, b""), UNRECOGNISED),
        (pdu(0, b"ab"), UNRECOGNISED),
        (pdu(255, b"ab"), UNRECOGNISED),
        (pdu(5, b""), INVALID),
        (pdu(5, bytes(5)), INVALID),
        (pdu(7, bytes(3)), INVALID),
        (pdu(4, b""), INVALID),
        (pdu(4, b"\0\0\0\2\1"), INVALID),
        (struct.pack(">BxI", 4, 131_073), INVALID),  # more than it was allowed
        (struct.pack(">BxI", 4, 0xFFFFFFFF), INVALID),
        (items((0, 1, 3, b"")), INVALID),
        (items((1, 1, 3, b"")), INVALID),
        (items((3, 1, 3, b"")), INVALID),
        (items((0xFFFFFFFF, 1, 3, b"ab")), INVALID),
        (items((4, 1, 3, b"ab")) + b"", BY_USER),  # a command set that is none
        (items((3, 1, 1, b"abc")), INVALID),  # what is left over is no item
        (data_pdu(3, store_rq(), command=True), INVALID),  # a context that was not accepted
        (data_pdu(2, store_rq(), command=True), INVALID),
        (data_pdu(1, b"ab", command=False), UNEXPECTED_PARAMETER),  # data without a command
        (data_pdu(1, store_rq(), command=True) * 2, UNEXPECTED_PARAMETER),  # a command instead of data
        (data_pdu(1, store_rq(), command=True) + data_pdu(5, b"ab", command=False), INVALID),
        (data_pdu(1, b"ab", command=True, last=False) + data_pdu(5, b"ab", command=True), INVALID),
        (data_pdu(1, b"", command=True), BY_USER),
        (data_pdu(1, b"\0\0\0\0\4\0\0\0", command=True), BY_USER),
        (data_pdu(1, store_rq()[:-1], command=True), BY_USER),
        (data_pdu(1, store_rq() + data_set(), command=True), BY_USER),  # not group 0000
        (data_pdu(1, command_set({0x0100: 1, 0x0800: 0}), command=True), BY_USER),  # no message ID
        (data_pdu(1, command_set({0x0110: 1, 0x0800: 0}), command=True), BY_USER),  # no command field
        (data_pdu(1, command_set({0x0100: 1, 0x0110: 1}), command=True), BY_USER),  # data or not?
        (data_pdu(1, command_set({0x0100: b"\1", 0x0110: 1, 0x0800: 0}), command=True), BY_USER),
        (data_pdu(1, bytes(60_000), command=True, last=False) * 2, INVALID),  # more than 64 KiB
    ],
)
def test_on_an_association(listening: Listening, sent: bytes, expected: tuple[int, int]) -> None:
    """AA-8 in state Sta6, or an abort by the service user where a message cannot be understood."""
    contexts = (context(1, MR, EXPLICIT), context(3, "1.2.840.10008.1.2", EXPLICIT), context(5, MR, IMPLICIT))
    with listening.peer() as peer:
        peer.associate(*contexts)
        assert peer.store(store_rq(), data_set()) == 0
        peer.send(sent)
        assert aborted(peer) == expected
    assert [closed.how for closed in listening.closed()] == ["aborted"]
    assert len(listening.files()) == len(listening.stored()) == 1


@pytest.mark.parametrize("last_word", [RELEASE_RQ, ABORT, b""])
@pytest.mark.parametrize(
    "within", [b"", data_pdu(1, store_rq(), command=True) + data_pdu(1, b"ab", command=False, last=False)]
)
def test_how_it_ends(listening: Listening, within: bytes, last_word: bytes) -> None:
    """Released, aborted, or lost: also in the middle of an instance, of which nothing is left."""
    with listening.peer() as peer:
        peer.associate()
        assert peer.store(store_rq(), data_set()) == 0
        peer.send(within, last_word)
        if last_word == RELEASE_RQ:
            assert peer.read_pdu() == RELEASE_RP
            assert listening.closed()  # the journal says it before the peer is told
    eventually(listening.closed)
    assert [closed.how for closed in listening.closed()] == [
        {5: "released", 7: "aborted"}.get(*last_word[:1], "lost") if last_word else "lost"
    ]
    assert len(listening.files()) == 1


def test_silence_ends_an_association(listen: Callable[..., Listening]) -> None:
    listening = listen(idle_timeout_s=0.2)
    with listening.peer() as peer:
        peer.associate()
        assert peer.store(store_rq(), data_set()) == 0
        assert aborted(peer) == NOT_SPECIFIED
    assert [closed.how for closed in listening.closed()] == ["aborted"]


def test_a_peer_that_does_not_close_after_the_last_word_is_closed(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clara_flow.services.dicom.wire.lobby.LEAVE_S", 0.1)
    with listening.peer() as peer:
        peer.associate()
        peer.release()
        assert peer.read_pdu() == b""


pieces = st.tuples(st.integers(1, 255), st.booleans(), st.binary(max_size=300), st.integers(7, 200))


@given(messages=st.lists(pieces, max_size=8), cuts=st.lists(st.integers(1, 40), min_size=1))
def test_the_stream_gives_back_what_was_sent_however_it_is_cut(
    messages: list[tuple[int, bool, bytes, int]], cuts: list[int]
) -> None:
    sent = b"".join(
        data_pdus(number, data, is_command=is_command, peer_maximum=maximum)
        for number, is_command, data, maximum in messages
    )
    sent += RELEASE_RQ + ABORT
    stream, seen = PduStream(1000), []
    whole = b""
    at = index = 0
    while at < len(sent):
        size = cuts[index % len(cuts)]
        index += 1
        for thing in stream.cut(memoryview(sent)[at : at + size]):
            if isinstance(thing, Fragment):
                whole += thing.data
                if thing.is_last:
                    seen.append((thing.context_id, thing.is_command, whole))
                    whole = b""
            else:
                seen.append(thing)
        at += size
    assert seen == [*(message[:3] for message in messages), ReleaseRequest(), Abort(0, 0)]


@given(junk=st.binary(max_size=400))
def test_the_stream_takes_anything_or_says_what_is_wrong(junk: bytes) -> None:
    stream = PduStream(100)
    try:
        things = list(stream.cut(memoryview(junk)))
    except PduError:
        return
    assert all(isinstance(thing, Fragment | ReleaseRequest | Abort) for thing in things)
