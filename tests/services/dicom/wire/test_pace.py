"""A message that has begun goes on: whoever drips bytes keeps an association, and its place, for a while only."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from services.dicom.wire.conftest import Listening
from services.dicom.wire.scripted_peer import ScriptedPeer, data_pdu, data_set, pdu, store_rq
from waiting import eventually

from clara_flow.services.dicom.wire.pace import SLOWEST_BYTES_S, Pace, TooSlow

WINDOW_S = 60.0
INSTANCE = (
    data_pdu(1, store_rq(sop_instance="1.2.9"), command=True),
    data_pdu(1, data_set(SOPInstanceUID="1.2.9"), command=False),
)
waits = st.floats(0, WINDOW_S, exclude_max=True)


@given(st.lists(st.tuples(waits, st.integers(0, 10_000)), max_size=100))
def test_who_is_fast_enough_is_never_broken_off(steps: list[tuple[float, int]]) -> None:
    pace = Pace(WINDOW_S)
    for waited_s, more in steps:
        pace.note(waited_s, int(waited_s * SLOWEST_BYTES_S) + 1 + more)


@given(st.lists(waits.filter(lambda wait: wait > 1), min_size=1), st.integers(1, SLOWEST_BYTES_S - 1))
def test_who_is_too_slow_is_broken_off_within_two_windows(pauses: list[float], size: int) -> None:
    pace, waited_s, is_broken_off = Pace(WINDOW_S), 0.0, False
    pace.note(0, 1)
    for pause in cycle(pauses):
        if is_broken_off or waited_s >= 2 * WINDOW_S:
            break
        waited_s += pause
        try:
            pace.note(pause, int(pause * size))
        except TooSlow:
            is_broken_off = True
    assert is_broken_off


@given(st.lists(waits, min_size=1))
def test_between_messages_silence_does_not_count(silences: list[float]) -> None:
    pace = Pace(WINDOW_S)
    for silence in silences:
        pace.note(silence, 1)
        pace.rest()


@pytest.mark.parametrize(
    ("whole", "dripping"),
    [
        (b"", INSTANCE[0]),
        (INSTANCE[0], INSTANCE[1]),
        (b"", pdu(4, bytes.fromhex("00000002 01 01")) * 1000),
        (INSTANCE[0] + INSTANCE[1], INSTANCE[0]),
    ],
    ids=["a command", "a data set", "fragments of nothing", "the second message"],
)
def test_a_peer_that_drips_makes_room(
    listen: Callable[..., Listening], caplog: pytest.LogCaptureFixture, whole: bytes, dripping: bytes
) -> None:
    listening = listen(idle_timeout_s=3, maximum_associations=2)
    with caplog.at_level(logging.WARNING), listening.peer() as slow, listening.peer() as other:
        slow.associate()
        other.associate()
        slow.send(whole)
        if whole.endswith(INSTANCE[1]):
            assert slow.read_status() == 0
        parting, stored = b"", 0
        for byte in dripping:
            if parting := _say(slow, bytes((byte,))):
                break
            uid = f"1.2.3.{stored}"
            assert other.store(store_rq(sop_instance=uid), data_set(SOPInstanceUID=uid)) == 0  # goes on meanwhile
            stored += 1
        assert parting == bytes.fromhex("07 00 00000004 0000 02 00")  # A-ABORT, provider, no reason specified
        assert "bytes a second" in caplog.text
        other.release()
    eventually(lambda: not listening.listener.counters.open)
    assert stored > 1
    assert len(listening.files()) == stored + whole.endswith(INSTANCE[1])  # nothing is left of what was never whole


def _say(peer: ScriptedPeer, data: bytes) -> bytes:
    """Say it; what the peer is told within a moment."""
    peer.send(data)
    peer.socket.settimeout(0.2)
    try:
        return peer.read_pdu()
    except TimeoutError:
        return b""
