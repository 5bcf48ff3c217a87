"""Connections that never become associations: they cost nothing, and end."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from services.dicom.wire.conftest import Listening
from services.dicom.wire.scripted_peer import associate_rq, data_set, store_rq
from waiting import eventually

from clara_flow.services.dicom.wire.lobby import WAITING_PLACES

FACTOR = int(os.environ.get("SOAK", "1"))


def test_connect_and_close(listening: Listening) -> None:
    threads = psutil.Process().num_threads()
    for _ in range(200):
        socket.create_connection(("127.0.0.1", listening.port)).close()
    eventually(lambda: listening.listener._lobby.waiting == 0)
    assert psutil.Process().num_threads() <= threads
    assert not listening.listener.counters.rejections
    assert not listening.listener.counters.totals


def test_a_request_in_drops(listening: Listening) -> None:
    request = associate_rq()
    with listening.peer() as peer:
        for byte in request:
            peer.send(bytes((byte,)))
        assert peer.read_pdu()[0] == 2
        assert peer.store(store_rq(), data_set()) == 0
        peer.release()


@pytest.mark.parametrize("start", [b"", associate_rq()[:3], associate_rq()[:40]])
def test_who_does_not_ask_in_time_is_closed(listen: Callable[..., Listening], start: bytes) -> None:
    listening = listen(request_timeout_s=0.2)
    with listening.peer() as peer:
        peer.send(start)
        assert peer.read_pdu() == b""  # ARTIM ran out: no word (AA-2)
    eventually(lambda: listening.listener.counters.rejections["timeout"] == 1)


def test_who_waits_longest_makes_room(listening: Listening) -> None:
    idle = [listening.peer() for _ in range(WAITING_PLACES)]
    eventually(lambda: listening.listener._lobby.waiting == WAITING_PLACES)
    with listening.peer() as peer:
        peer.associate()
        peer.release()
    assert idle[0].read_pdu() == b""
    idle[-1].associate()
    for peer in idle:
        peer.socket.close()


def test_thousands_of_half_open_connections(listen: Callable[..., Listening]) -> None:
    """Peers that ask are served meanwhile, and memory stays where it is."""
    listening = listen(request_timeout_s=60)
    half = struct.pack(">BxI", 1, 200_000) + bytes(1000)
    process = psutil.Process()

    def connect(count: int) -> None:
        kept: list[socket.socket] = []
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", listening.port))
            with_half = kept if len(kept) < 20 else [kept.pop(0)]
            if with_half is not kept:
                with_half[0].close()
            connection.send(half)
            kept.append(connection)
        for connection in kept:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(connect, [50] * 8))
        before = process.memory_info().rss
        list(pool.map(connect, [250 * FACTOR] * 8))
        with listening.peer() as peer:
            peer.associate()
            assert peer.store(store_rq(), data_set()) == 0
            peer.release()
    assert listening.listener._lobby.waiting <= WAITING_PLACES
    assert process.memory_info().rss - before < 24 * 2**20


def test_answers_do_not_wait_for_more(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nagle's algorithm is off on accepted connections; with it, each answer may come 40 ms late."""
    accepted: list[socket.socket] = []
    hand_over = listening.listener._lobby._on_arrival
    monkeypatch.setattr(
        listening.listener._lobby, "_on_arrival", lambda arrival: (accepted.append(arrival.socket), hand_over(arrival))
    )
    with listening.peer() as peer:
        peer.associate()
        [connection] = accepted
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        peer.release()


def test_a_port_that_is_taken(listen: Callable[..., Listening], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(Exception, match="cannot listen"):
        listen(port=other.getsockname()[1])
