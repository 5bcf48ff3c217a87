"""Peers that do not do their part, and one that sends a study meanwhile: each of its answers comes in time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest
from services.dicom.wire.conftest import Listening
from services.dicom.wire.scripted_peer import (
    VERIFICATION,
    ScriptedPeer,
    associate_rq,
    context,
    data_pdu,
    data_set,
    echo_rq,
    store_rq,
)
from waiting import eventually

INSTANCES = 20
Nuisance = Callable[[Listening, ExitStack], Iterator[None]]  # goes on a step for each instance of the one beside it


def half_open(listening: Listening, stack: ExitStack) -> Iterator[None]:
    """Connections that never ask for an association."""
    for start in (b"", associate_rq()[:3], associate_rq()[:60]):
        for _ in range(60):
            stack.enter_context(listening.peer()).send(start)
    while True:
        stack.enter_context(listening.peer())
        yield


def silent(listening: Listening, stack: ExitStack) -> Iterator[None]:
    """Associations that nothing comes on."""
    for _ in range(10):
        stack.enter_context(listening.peer()).associate()
    while True:
        yield


def slow(listening: Listening, stack: ExitStack) -> Iterator[None]:
    """An instance that comes a byte at a time and is never whole."""
    peer = stack.enter_context(listening.peer())
    peer.associate()
    peer.send(data_pdu(1, store_rq(sop_instance="1.2.9"), command=True))
    for number in data_pdu(1, data_set(SOPInstanceUID="1.2.9"), command=False):
        peer.send(bytes((number,)))
        yield


def deaf(listening: Listening, stack: ExitStack) -> Iterator[None]:
    """A peer that asks and asks, and reads none of the answers until nothing more goes through."""
    peer = stack.enter_context(listening.peer())
    peer.associate(context(1, VERIFICATION, "1.2.840.10008.1.2"))
    peer.socket.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            peer.socket.send(data_pdu(1, echo_rq(), command=True) * 1000)
    while True:
        yield


def resetting(listening: Listening, stack: ExitStack) -> Iterator[None]:
    """Peers that break off by RST in the middle of a request, and of an instance."""
    while True:
        peer = listening.peer()
        peer.send(associate_rq()[:50])
        peer.reset()
        peer = listening.peer()
        peer.associate()
        peer.send(data_pdu(1, store_rq(sop_instance="1.2.9"), command=True), data_pdu(1, b"half", command=False)[:9])
        peer.reset()
        yield


def talking_nonsense(listening: Listening, stack: ExitStack) -> Iterator[None]:
    """Peers that send no DICOM, before an association and on one."""
    chance = random.Random(7)  # noqa: S311
    while True:
        with listening.peer() as peer:
            peer.send(chance.randbytes(100))
        with listening.peer() as peer:
            peer.associate()
            peer.send(b"\x04\0" + chance.randbytes(100))
        yield


def refused(listening: Listening, stack: ExitStack) -> Iterator[None]:
    """Strangers that ask again and again."""
    while True:
        with listening.peer() as peer:
            peer.send(associate_rq(calling=b"STRANGER"))
            assert peer.read_pdu()[:1] == b"\x03"
        yield


@pytest.mark.parametrize("nuisance", [half_open, silent, slow, deaf, resetting, talking_nonsense, refused])
def test_a_study_comes_in_beside_them(listen: Callable[..., Listening], nuisance: Nuisance) -> None:
    listening = listen(request_timeout_s=60, idle_timeout_s=60)
    with ExitStack() as stack:
        steps = nuisance(listening, stack)
        next(steps)
        peer: ScriptedPeer = stack.enter_context(listening.peer())  # who waits five seconds for each answer
        peer.associate()
        for number in range(INSTANCES):
            uid = f"1.2.3.{number}"
            assert peer.store(store_rq(sop_instance=uid), data_set(SOPInstanceUID=uid)) == 0
            next(steps)
        peer.release()
        assert [entry.sop_instance for entry in listening.stored()] == [f"1.2.3.{n}" for n in range(INSTANCES)]
        if nuisance in {silent, slow, deaf}:
            assert listening.listener.counters.open, "it is still at it"
    eventually(lambda: not listening.listener.counters.open)
    eventually(lambda: len(listening.files()) == INSTANCES)
