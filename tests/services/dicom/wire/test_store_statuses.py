"""Every status of the spec's 3.2 and of PS3.4 Table B.2-1, and what is on the disk then."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from services.dicom.wire.conftest import Listening
from services.dicom.wire.scripted_peer import (
    ABORT,
    COMMITMENT,
    CT,
    EXPLICIT,
    IMPLICIT,
    MR,
    VERIFICATION,
    command_set,
    context,
    data_pdu,
    data_set,
    echo_rq,
    store_rq,
)
from waiting import eventually

from clara_flow.errors import StorageError
from clara_flow.services.dicom.incoming import Incoming
from clara_flow.services.dicom.listener_config import ListenerConfig
from clara_flow.services.dicom.space import SpaceCheck
from clara_flow.services.dicom.wire.listener import ListenerOptions

CONTEXTS = (context(1, MR, EXPLICIT), context(3, VERIFICATION, EXPLICIT), context(5, CT, IMPLICIT))


def test_an_instance_is_stored_as_it_came(listening: Listening) -> None:
    data = data_set()
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        peer.send(data_pdu(1, store_rq(), command=True), data_pdu(1, data, command=False))
        answer = peer.read_command()
        peer.release()
    assert answer[0x0900] == b"\0\0"
    assert answer[0x0100] == b"\x01\x80"
    assert answer[0x0120] == b"\7\0"
    assert answer[0x0002].rstrip(b"\0").decode() == MR
    assert answer[0x1000].rstrip(b"\0") == b"1.2.3.1"
    [entry] = listening.stored()
    assert (entry.sop_class, entry.sop_instance, entry.study, entry.series) == (MR, "1.2.3.1", "1.2.3", "1.2.3.0")
    assert entry.transfer_syntax == EXPLICIT
    assert listening.data_sets() == [data]
    [opened] = listening.opened()
    assert (opened.calling, opened.called, opened.aetitle, opened.peer) == ("MODALITY", "BRAIN", "brain", "127.0.0.1")
    assert [closed.how for closed in listening.closed()] == ["released"]


@pytest.mark.parametrize(
    ("command", "data", "expected"),
    [
        (store_rq(), data_set(), 0x0000),
        (store_rq(), data_set(PatientID=None), 0x0000),
        (store_rq(), data_set(PatientID=""), 0x0000),
        (store_rq(), data_set(PatientID="../../x"), 0x0000),  # nothing of it becomes a path
        (store_rq(sop_instance="1.2.3.01"), data_set(SOPInstanceUID="1.2.3.01"), 0x0000),  # leading zeros are forgiven
        (store_rq(), data_set(StudyInstanceUID=None), 0xA900),
        (store_rq(), data_set(StudyInstanceUID=""), 0xA900),
        (store_rq(), data_set(SeriesInstanceUID=None), 0xA900),
        (store_rq(), data_set(SOPInstanceUID=None), 0xA900),
        (store_rq(), data_set(SOPClassUID=None), 0xA900),
        (store_rq(), data_set(SOPInstanceUID="1.2.3.2"), 0xA900),
        (store_rq(), data_set(SOPClassUID=CT), 0xA900),
        (store_rq(sop_instance=""), data_set(), 0xA900),
        (store_rq(sop_class=""), data_set(), 0xA900),
        (store_rq(sop_class=CT), data_set(SOPClassUID=CT), 0x0122),  # not what its context is for
        (store_rq(sop_instance="../../etc"), data_set(), 0x0117),
        (store_rq(sop_instance="1" * 65), data_set(SOPInstanceUID="1" * 65), 0x0117),
        (store_rq(), b"\x08\x00\x18\x00UI", 0xC000),  # ends in the header
        (store_rq(), b"", 0xA900),
        (store_rq(), b"\x08\x00\x05\x00CS\xff\xff" + b"ISO_IR 100", 0xC000),  # ends in a value
        (store_rq(), b"\x08\x00\x05\x00??\x02\x00ab" + data_set(), 0xC000),  # no VR of the standard
        (store_rq(), b"this is not DICOM at all" * 40, 0xA900),
    ],
)
def test_statuses(listening: Listening, command: bytes, data: bytes, expected: int) -> None:
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        assert peer.store(command, data) == expected
        assert peer.store(store_rq(), data_set()) == 0  # the association goes on
        peer.release()
    count = 1 if expected else 2
    assert len(listening.stored()) == len(listening.files()) == count


def test_no_data_set(listening: Listening) -> None:
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        peer.send(data_pdu(1, store_rq(e0800=0x0101), command=True))
        assert peer.read_status() == 0xC000
        peer.release()


def test_ignored_sop_classes_are_accepted_and_not_written(
    listen: Callable[..., Listening], config: ListenerConfig
) -> None:
    rule = replace(config.aetitles["BRAIN"], ignored_sop_classes=(MR,))
    listening = listen(config=replace(config, aetitles={"BRAIN": rule}))
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        assert peer.store(store_rq(), b"anything") == 0x0000
        peer.release()
    assert listening.stored() == []
    assert listening.files() == []
    assert listening.opened() == []


def test_space_that_becomes_short(listen: Callable[..., Listening], monkeypatch: pytest.MonkeyPatch) -> None:
    short = [False]
    monkeypatch.setattr(SpaceCheck, "is_short", lambda self: short[0])
    listening = listen()
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        short[0] = True
        assert peer.store(store_rq(), data_set()) == 0xA700
        short[0] = False
        assert peer.store(store_rq(), data_set()) == 0x0000
        peer.release()
    assert len(listening.files()) == 1


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, 0xA700), (errno.EDQUOT, 0xA700), (errno.EIO, 0x0110), (errno.EROFS, 0x0110)]
)
def test_a_disk_that_refuses(listening: Listening, monkeypatch: pytest.MonkeyPatch, number: int, expected: int) -> None:
    write = os.write

    def refuse(descriptor: int, data: bytes) -> int:
        if "/instances/" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(number, os.strerror(number))
        return write(descriptor, data)

    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", refuse)
            assert peer.store(store_rq(), data_set()) == expected
        assert peer.store(store_rq(), data_set()) == 0x0000
        peer.release()
    assert len(listening.files()) == 1


def test_what_cannot_be_made_durable_is_not_acknowledged(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Incoming, facts: object) -> None:
        self.abandon()
        raise StorageError("the disk is broken")

    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        with monkeypatch.context() as patch:
            patch.setattr(Incoming, "commit", refuse)
            assert peer.store(store_rq(), data_set()) == 0x0110
        peer.release()
    assert listening.stored() == []
    assert listening.files() == []


def test_a_journal_that_breaks_ends_the_listener(
    options: ListenerOptions, config: ListenerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor starts another, with a journal of its own."""
    listening = Listening(replace(options, fsync=True), config, ends_with=StorageError)
    flush = os.fdatasync

    def refuse(descriptor: int) -> None:
        if "/journals/" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(descriptor)

    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        assert peer.store(store_rq(), data_set()) == 0x0000
        monkeypatch.setattr(os, "fdatasync", refuse)
        assert peer.store(store_rq(), data_set()) == 0x0110
        assert peer.read_pdu()[:1] == ABORT[:1]
    listening.join()


def test_ae_title_that_is_removed_meanwhile(listening: Listening) -> None:
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        rule = listening.config.aetitles["BRAIN"]
        listening.configure(replace(listening.config, aetitles={"BRAIN": replace(rule, draining=True)}))
        assert peer.store(store_rq(), data_set()) == 0x0000  # who is in may finish
        listening.configure(replace(listening.config, aetitles={}))
        assert peer.store(store_rq(), data_set()) == 0x0110
        peer.release()


@pytest.mark.parametrize(("context_id", "expected"), [(3, 0x0000), (1, 0x0122)])
def test_echo(listening: Listening, context_id: int, expected: int) -> None:
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        peer.send(data_pdu(context_id, echo_rq(), command=True))
        assert peer.read_status() == expected
        peer.release()
    assert listening.opened() == []  # nothing of it is in the journal


@pytest.mark.parametrize("field", [0x0010, 0x0020, 0x0021, 0x0110, 0x0150, 0x0002, 0x4242])
@pytest.mark.parametrize("with_data", [True, False])
def test_commands_that_we_do_not_know(listening: Listening, field: int, with_data: bool) -> None:
    data_set_type = 0x0000 if with_data else 0x0101
    command = command_set({0x0002: MR, 0x0100: field, 0x0110: 9, 0x0800: data_set_type})
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        peer.send(data_pdu(1, command, command=True), data_pdu(1, b"ab", command=False) if with_data else b"")
        answer = peer.read_command()
        assert int.from_bytes(answer[0x0900], "little") == 0x0211
        assert int.from_bytes(answer[0x0100], "little") == field | 0x8000
        assert answer[0x0120] == b"\x09\0"
        assert peer.store(store_rq(), data_set()) == 0x0000
        peer.release()


def test_cancels_and_stray_responses_are_not_answered(listening: Listening) -> None:
    cancel = command_set({0x0100: 0x0FFF, 0x0120: 9, 0x0800: 0x0101})
    stray = command_set({0x0100: 0x8001, 0x0120: 9, 0x0800: 0x0101, 0x0900: 0})
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        peer.send(*(data_pdu(1, command, command=True) for command in (cancel, stray)))
        assert peer.store(store_rq(), data_set()) == 0x0000
        peer.release()


def test_a_storage_instance_does_not_come_on_the_context_of_something_else(listening: Listening) -> None:
    with listening.peer() as peer:
        peer.associate(context(1, COMMITMENT, EXPLICIT))
        assert peer.store(store_rq(COMMITMENT), data_set(SOPClassUID=COMMITMENT)) == 0x0122
        peer.release()


def test_a_refusal_says_why_and_no_patients_name(listening: Listening) -> None:
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        data = data_set(PatientName="DOE^JANE", SOPInstanceUID="1.2.3.99")
        peer.send(data_pdu(1, store_rq(), command=True), data_pdu(1, data, command=False))
        assert peer.read_command()[0x0902] == b"SOP Instance UID differs from that of the command "
        peer.release()


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
def test_fragments_of_any_size(listening: Listening, size: int) -> None:
    command, data = store_rq(), data_set()
    pieces = [
        data_pdu(1, message[at : at + size], command=is_command, last=at + size >= len(message))
        for message, is_command in ((command, True), (data, False))
        for at in range(0, len(message), size)
    ]
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        peer.send(*pieces)
        assert peer.read_status() == 0x0000
        peer.release()
    assert listening.data_sets() == [data]


def test_several_items_in_one_pdu_and_an_empty_last_one(listening: Listening) -> None:
    command, data = store_rq(), data_set()
    items = [(command[:20], 1), (command[20:], 3), (data[:9], 0), (data[9:], 0), (b"", 2)]
    body = b"".join((2 + len(piece)).to_bytes(4, "big") + bytes((1, control)) + piece for piece, control in items)
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        peer.send(b"\4\0" + len(body).to_bytes(4, "big") + body)
        assert peer.read_status() == 0x0000
        peer.release()
    assert listening.data_sets() == [data]


def test_messages_that_come_before_the_last_was_answered(listening: Listening) -> None:
    data = data_set()
    message = data_pdu(1, store_rq(), command=True) + data_pdu(1, data, command=False)
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        peer.send(message * 10)
        assert [peer.read_status() for _ in range(10)] == [0] * 10
        peer.release()
    assert listening.data_sets() == [data] * 10


def test_a_peer_that_vanishes_in_an_instance_leaves_nothing_of_it(listening: Listening) -> None:
    data = data_set()
    peer = listening.peer()
    peer.associate(*CONTEXTS)
    assert peer.store(store_rq(), data) == 0
    peer.send(data_pdu(1, store_rq(sop_instance="1.2.3.2"), command=True))
    peer.send(data_pdu(1, data, command=False)[: len(data) // 2])
    peer.reset()
    eventually(lambda: listening.closed())
    assert [closed.how for closed in listening.closed()] == ["lost"]
    assert listening.data_sets() == [data]
    assert len(listening.files()) == 1
