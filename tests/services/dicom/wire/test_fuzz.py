"""Peers that send what mutation makes of sound messages: no crash, no hang, nothing outside the spool.

SOAK=n takes n times as many.
"""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from dicom_mpps import begun, performed
from services.dicom.wire.conftest import Listening
from services.dicom.wire.scripted_peer import (
    COMMITMENT,
    EXPLICIT,
    IMPLICIT,
    MR,
    PROCEDURE_STEP,
    RELEASE_RQ,
    VERIFICATION,
    ScriptedPeer,
    associate_rq,
    command_set,
    context,
    data_pdu,
    data_set,
    echo_rq,
    encoded,
    item,
    store_rq,
    user_identity,
    user_information,
)
from waiting import eventually

FACTOR = int(os.environ.get("SOAK", "1"))
CONTEXTS = (
    context(1, MR, EXPLICIT, IMPLICIT),
    context(3, VERIFICATION, EXPLICIT),
    context(5, COMMITMENT, IMPLICIT),
    context(7, PROCEDURE_STEP, IMPLICIT),
)
REQUEST = associate_rq(
    *CONTEXTS, user=user_information(item(0x54, b"\0\x19" + MR.encode() + b"\1\0"), user_identity(2, b"a", b"b"))
)
ACTION = command_set({3: COMMITMENT, 0x0100: 0x130, 0x0110: 3, 0x0800: 0, 0x1001: "1.2.840.10008.1.20.1.1", 0x1008: 1})
STEP = {0x0002: PROCEDURE_STEP, 0x0003: PROCEDURE_STEP, 0x0110: 3, 0x0800: 0, 0x1000: "1.2.7", 0x1001: "1.2.7"}
BEGIN, END = (command_set({**STEP, 0x0100: field}) for field in (0x140, 0x120))
STORED = data_pdu(1, store_rq(), command=True) + data_pdu(1, data_set(), command=False)
SEEDS = (
    STORED,
    data_pdu(3, echo_rq(), command=True),
    data_pdu(5, ACTION, command=True) + data_pdu(5, data_set(IMPLICIT), command=False),
    data_pdu(7, BEGIN, command=True) + data_pdu(7, encoded(begun("1.2.3"), IMPLICIT), command=False),
    data_pdu(7, END, command=True)
    + data_pdu(7, encoded(performed(None, {"1.2.3.1": ["1.2.3.1.1"]}), IMPLICIT), command=False),
    RELEASE_RQ,
)
NUMBERS = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\1\0\0",
    b"\xff\xff",
    b"\0\0",
    b"../../../etc/passwd",
)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few changes, as fuzzers make them."""
    content = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(content) or 1)
        match chance.randrange(6):
            case 0:
                content[at : at + 1] = bytes((chance.randrange(256),))
            case 1:
                content[at : at + 1] = bytes(((content[at] if content else 0) ^ 1 << chance.randrange(8),))
            case 2:
                number = chance.choice(NUMBERS)
                content[at : at + len(number)] = number
            case 3:
                del content[at : at + chance.randint(1, 20)]
            case 4:
                content[at:at] = content[at : at + chance.randint(1, 40)]
            case _:
                content[at:at] = chance.randbytes(chance.randint(1, 8))
    return bytes(content)


def tried(port: int, *messages: bytes) -> None:
    """Say all that and hang up, whatever is answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
        try:
            peer.sendall(b"".join(messages))
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(65536):
                pass
        except ConnectionError:
            pass  # it hung up first


@pytest.fixture
def target(listen: Callable[..., Listening]) -> Listening:
    """A listener for hostile peers; silence is short there."""
    return listen(idle_timeout_s=5, request_timeout_s=5, maximum_associations=50)


def assert_sound(target: Listening, tmp_path: Path) -> None:
    """It serves as before, and holds nothing that it should not."""
    eventually(lambda: not target.listener._threads)
    assert target.listener._slots.held == 0
    assert not target.listener.counters.open
    assert not target.listener.counters.totals["faults"]
    with target.peer() as peer:
        peer.associate()
        assert peer.store(store_rq(), data_set()) == 0
        peer.release()
    assert {path.name for path in tmp_path.iterdir()} == {"spool", "heartbeats"}
    places = {path.name for path in target.options.spool.iterdir()}
    assert places - {"steps"} == {"config.json", "instances", "journals", "slots"}
    assert {target.options.spool / entry.path for entry in target.stored()} == set(target.files())


def test_mutated_association_requests(target: Listening, tmp_path: Path) -> None:
    chance = random.Random(1)  # noqa: S311
    for _ in range(1000 * FACTOR):
        tried(target.port, mutated(REQUEST, chance), STORED)
    assert_sound(target, tmp_path)


def test_mutated_messages(target: Listening, tmp_path: Path) -> None:
    chance = random.Random(2)  # noqa: S311
    for _ in range(1500 * FACTOR):
        messages = [seed if chance.random() < 0.3 else mutated(seed, chance) for seed in chance.choices(SEEDS, k=3)]
        tried(target.port, associate_rq(*CONTEXTS), *messages)
    assert_sound(target, tmp_path)


def test_mutated_command_sets(target: Listening, tmp_path: Path) -> None:
    """Inside sound PDUs, many on an association."""
    chance = random.Random(3)  # noqa: S311
    for _ in range(300 * FACTOR):
        messages = []
        for _ in range(10):
            command = mutated(chance.choice((store_rq(), echo_rq(), ACTION, BEGIN, END)), chance)
            number = chance.choice((1, 3, 5, 7))
            messages += [data_pdu(number, command, command=True), data_pdu(number, data_set(), command=False)]
        tried(target.port, associate_rq(*CONTEXTS), *messages)
    assert_sound(target, tmp_path)


def test_mutated_data_sets_are_stored_as_they_are_or_refused(target: Listening, tmp_path: Path) -> None:
    chance = random.Random(4)  # noqa: S311
    sent: list[bytes] = []
    for _ in range(20 * FACTOR):
        with target.peer() as peer:
            peer.associate(*CONTEXTS)
            for _ in range(50):
                data = mutated(data_set(), chance)
                status = peer.store(store_rq(), data)
                assert status in {0x0000, 0xA900, 0xC000}, hex(status)
                if status == 0:
                    sent.append(data)
            peer.release()
    assert target.data_sets() == sent
    assert_sound(target, tmp_path)


def test_memory_is_flat(target: Listening) -> None:
    """Whatever a PDU says of its length, and however many instances an association brings."""
    process = psutil.Process()
    big = data_set(PixelData=bytes(2_000_000))
    pieces = [big[at : at + 130_000] for at in range(0, len(big), 130_000)]

    def send(peer: ScriptedPeer) -> None:
        peer.send(data_pdu(1, store_rq(), command=True))
        for number, piece in enumerate(pieces, start=1):
            peer.send(data_pdu(1, piece, command=False, last=number == len(pieces)))
        assert peer.read_status() == 0

    with target.peer() as peer:
        peer.associate(*CONTEXTS)
        send(peer)
        before = process.memory_info().rss
        for _ in range(50):
            send(peer)
        peer.release()
    assert process.memory_info().rss - before < 8 * 2**20


def test_resets_at_any_byte(target: Listening, tmp_path: Path) -> None:
    whole = associate_rq(*CONTEXTS) + STORED
    chance = random.Random(5)  # noqa: S311
    threads = threading.active_count()
    for _ in range(150 * FACTOR):
        peer = target.peer()
        peer.send(whole[: chance.randrange(len(whole))])
        peer.reset()
    eventually(lambda: threading.active_count() <= threads)
    assert_sound(target, tmp_path)
