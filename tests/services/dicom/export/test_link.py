"""One association against peers that say whatever bytes can say: it ends in words and in time, and never hangs."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from services.dicom.export.peers import scp, silent

from clara_flow.services.dicom.export.dialing import dial
from clara_flow.services.dicom.export.link import Link
from clara_flow.services.dicom.export.proposals import Context, Node
from clara_flow.services.dicom.export.sender import DestinationFailed
from clara_flow.services.dicom.wire.contexts import VERIFICATION

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
CONTEXTS = [Context(CT, (IMPLICIT,))]


def accept(maximum: int = 16_384, *, syntax: str = IMPLICIT, extra: bytes = b"") -> bytes:
    """An A-ASSOCIATE-AC for one context."""

    def item(kind: int, data: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(data)) + data

    context = item(0x21, bytes([1, 0, 0, 0]) + item(0x40, syntax.encode()))
    user = item(0x50, item(0x51, struct.pack(">I", maximum)) + item(0x52, b"1.2.3") + extra)
    body = struct.pack(">HH16s16s32s", 1, 0, b"PEER", b"ME", b"") + item(0x10, b"1.2.840.10008.3.1.1.1")
    body += context + user
    return struct.pack(">BxI", 2, len(body)) + body


def reject(result: int, source: int, reason: int) -> bytes:
    return struct.pack(">BxI", 3, 4) + bytes([0, result, source, reason])


ABORT = struct.pack(">BxI", 7, 4) + bytes([0, 0, 2, 2])
RELEASE = struct.pack(">BxI", 5, 4) + bytes(4)


@contextlib.contextmanager
def scripted(*answers: bytes, closes: bool = True) -> Iterator[int]:
    """A peer that sends the next answer whenever it has read something, then closes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def play() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    for answer in answers:
                        connection.recv(65_536)
                        connection.sendall(answer)
                    if not closes:
                        while connection.recv(65_536):
                            pass

        thread = threading.Thread(target=play, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.close()
        thread.join(5)


def node(port: int, timeout_s: float = 2) -> Node:
    return Node(host="127.0.0.1", port=port, called="PEER", calling="ME", timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (reject(1, 1, 3), "rejected", "calling AE title not recognised .rejected permanent, service user."),
        (reject(1, 1, 7), "rejected", "called AE title not recognised .rejected permanent, service user."),
        (reject(2, 3, 2), "rejected", "local limit exceeded .rejected transient, service provider"),
        (reject(2, 3, 1), "rejected", "temporary congestion .rejected transient"),
        (reject(9, 9, 9), "rejected", "reason 9 .result 9, source 9."),
        (ABORT, "aborted", "unexpected PDU"),
        (RELEASE, "protocol", "a PDU of type 5"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "protocol", "a PDU of"),
        (struct.pack(">BxI", 2, 10) + bytes(10), "lost|protocol", ""),
        (b"\x02\x00\xff\xff\xff\xff", "protocol", "a PDU of 4294967295 bytes"),
        (b"", "lost", "closed the connection"),
        (accept(8), "protocol", "PDUs of 8 bytes only"),
    ],
)
def test_answers_to_the_request(answer: bytes, kind: str, words: str) -> None:
    with scripted(answer) as port:
        link = Link(node(port), CONTEXTS)
        if kind == "lost|protocol":  # too short for an answer, and nothing in it
            assert link.open().contexts == {}
            link.close()
            return
        with pytest.raises(DestinationFailed, match=words) as failure:
            link.open()
    assert failure.value.kind == kind


def test_items_that_nobody_knows_are_skipped() -> None:
    with scripted(accept(extra=struct.pack(">BxH", 0x77, 3) + b"abc"), closes=False) as port:
        link = Link(node(port), CONTEXTS).open()
        assert link.contexts == {1: (CT, IMPLICIT)}
        link.close()


def test_a_syntax_that_was_not_proposed_is_not_taken() -> None:
    with scripted(accept(syntax="1.2.840.10008.1.2.2"), closes=False) as port:
        link = Link(node(port), CONTEXTS).open()
        assert link.contexts == {}
        link.close()


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_whatever_it_answers_to_a_store_ends_in_words(noise: bytes) -> None:
    with scripted(accept(), noise) as port:
        link = Link(node(port), CONTEXTS).open()
        with contextlib.suppress(DestinationFailed):
            link.store(1, CT, "1.2.3", BytesIO(b"\x08\x00\x18\x00\x06\x00\x00\x001.2.3\0"))
        link.close()


@given(st.binary(max_size=300), st.integers(0, 150))
@settings(max_examples=150, deadline=None)
def test_whatever_it_answers_to_the_request_ends_in_words(noise: bytes, place: int) -> None:
    whole = accept()
    with scripted(whole[:place] + noise + whole[place:]) as port:
        link = Link(node(port, 0.5), CONTEXTS)
        with contextlib.suppress(DestinationFailed):
            link.open()
        link.close()


@pytest.mark.parametrize("size", [0, 1, 2, 16_372, 16_378, 16_379, 40_000])
def test_data_sets_of_every_size_arrive_whole(size: int) -> None:
    content = bytes(number % 251 for number in range(size))
    with scp(classes=[CT]) as peer:
        link = Link(node(peer.port), CONTEXTS).open()
        status = link.store(1, CT, "1.2.3", BytesIO(content))
        link.release()
    if size:
        assert status == 0
        assert peer.received == [("1.2.3", content)]


def test_an_echo_is_answered() -> None:
    with scp() as peer:
        link = Link(node(peer.port), [Context(VERIFICATION, (IMPLICIT,))]).open()
        assert link.echo(1) == 0
        link.release()


def test_a_peer_that_stops_reading_has_its_time() -> None:
    with silent(accept()) as port:
        link = Link(node(port, 0.5), CONTEXTS).open()
        large = BytesIO(bytes(64 * 1024 * 1024))  # more than the buffers of both sides take
        with pytest.raises(DestinationFailed, match=r"took nothing for 0\.5 s"):
            link.store(1, CT, "1.2.3", large)


@pytest.mark.parametrize("moment", ["connecting", "negotiating", "storing"])
def test_another_thread_can_cut_it_at_every_wait(moment: str) -> None:
    waits = threading.Event()
    ended: list[str] = []
    with contextlib.ExitStack() as stack:
        if moment == "connecting":
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            port = listener.getsockname()[1]
            for _ in range(4):  # its backlog is full: the next connection is not even made
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
        else:
            answers = [accept()] if moment == "storing" else []
            port = stack.enter_context(scripted(*answers, closes=False))
        link = Link(node(port, 60), CONTEXTS)

        def work() -> None:
            try:
                waits.set()
                link.open()
                link.store(1, CT, "1.2.3", BytesIO(b"abcd"))
            except DestinationFailed as failure:
                ended.append(failure.kind)

        thread = threading.Thread(target=work)
        thread.start()
        waits.wait()
        threading.Event().wait(0.3)  # until it waits for the peer; sooner is no harm
        link.cut()
        thread.join(5)
        assert not thread.is_alive()
        assert ended


def test_what_is_sent_does_not_wait_for_more() -> None:
    """Nagle's algorithm is off: with it, each command may wait 40 ms for the answer to what went before."""
    connections: list[socket.socket] = []
    with silent() as port:
        dial(node(port), lambda: False, connections.append)
        with connections[-1] as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
