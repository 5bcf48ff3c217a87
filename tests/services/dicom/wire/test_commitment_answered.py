"""Storage commitment: asked for by N-ACTION, told by N-EVENT-REPORT on the same association (PS3.4 Annex J)."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import pytest
from pydicom import Dataset
from pydicom.filereader import read_dataset
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import MRImageStorage, StorageCommitmentPushModel  # type: ignore[attr-defined]
from services.dicom.wire.conftest import Listening
from services.dicom.wire.scripted_peer import (
    COMMITMENT,
    EXPLICIT,
    IMPLICIT,
    MR,
    ScriptedPeer,
    command_set,
    context,
    data_pdu,
    data_set,
    elements_of,
    encoded,
    store_rq,
    user_information,
)
from waiting import eventually

from clara_flow.services.dicom.wire.commitment import MAXIMUM_BYTES, Reference

INSTANCE = "1.2.840.10008.1.20.1.1"
CONTEXTS = (context(1, MR, EXPLICIT), context(3, COMMITMENT, IMPLICIT))


def action(**changes: int | str) -> bytes:
    """An N-ACTION-RQ that asks for commitment; `changes`: elements by their number, e1008 and the like."""
    elements: dict[int, bytes | int | str] = {
        0x0003: COMMITMENT, 0x0100: 0x130, 0x0110: 3, 0x0800: 0, 0x1001: INSTANCE, 0x1008: 1,
    }  # fmt: skip
    elements |= {int(name[1:], 16): value for name, value in changes.items()}
    return command_set(elements)


def request(*instances: str, syntax: str = IMPLICIT) -> bytes:
    """The action information."""
    dataset = Dataset()
    dataset.TransactionUID = "1.2.99"
    dataset.ReferencedSOPSequence = []
    for uid in instances:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = MR, uid
        dataset.ReferencedSOPSequence.append(reference)
    return encoded(dataset, syntax)


def ask(peer: ScriptedPeer, command: bytes, data: bytes) -> int:
    """Ask; the status of the N-ACTION."""
    peer.send(data_pdu(3, command, command=True), data_pdu(3, data, command=False))
    return peer.read_status()


def report(peer: ScriptedPeer) -> tuple[int, Dataset]:
    """The N-EVENT-REPORT that follows, which is answered: event type and data set."""
    command = peer.read_command()
    assert command[0x0100] == b"\0\1"
    data = read_dataset(io.BytesIO(peer.read_pdu()[12:]), is_implicit_VR=True, is_little_endian=True)
    answer = {0x0002: COMMITMENT, 0x0100: 0x8100, 0x0120: int.from_bytes(command[0x0110], "little"), 0x0800: 0x0101}
    peer.send(data_pdu(3, command_set({**answer, 0x0900: 0}), command=True))
    return int.from_bytes(command[0x1002], "little"), data


def test_what_the_association_itself_has_stored_is_safe(listening: Listening) -> None:
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        assert peer.store(store_rq(), data_set()) == 0
        assert ask(peer, action(), request("1.2.3.1")) == 0
        event, told = report(peer)
        assert event == 1
        assert told.TransactionUID == "1.2.99"
        assert [item.ReferencedSOPInstanceUID for item in told.ReferencedSOPSequence] == ["1.2.3.1"]
        assert "FailedSOPSequence" not in told
        peer.release()


def test_what_nobody_has_fails(listening: Listening) -> None:
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        assert peer.store(store_rq(), data_set()) == 0
        assert ask(peer, action(), request("1.2.3.1", "1.2.3.02")) == 0
        event, told = report(peer)
        assert event == 2
        assert [item.ReferencedSOPInstanceUID for item in told.ReferencedSOPSequence] == ["1.2.3.1"]
        [failed] = told.FailedSOPSequence
        assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == ("1.2.3.02", 0x0112)
        assert peer.store(store_rq(), data_set()) == 0
        peer.release()


def test_records_are_asked_for_the_rest(listen: Callable[..., Listening]) -> None:
    asked: list[Sequence[Reference]] = []

    def check(references: Sequence[Reference]) -> list[int]:
        asked.append(references)
        return [0, 0x0119]

    listening = listen(check=check)
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        assert ask(peer, action(), request("1.2.3.5", "1.2.3.6")) == 0
        event, told = report(peer)
        peer.release()
    assert event == 2
    assert asked == [[Reference(MR, "1.2.3.5"), Reference(MR, "1.2.3.6")]]
    assert told.FailedSOPSequence[0].FailureReason == 0x0119


@pytest.mark.parametrize(
    ("command", "data", "expected"),
    [
        (action(e1001="1.2.3"), request("1.2.3.1"), 0x0112),
        (action(e1008=2), request("1.2.3.1"), 0x0123),
        (action(e0003=MR), request("1.2.3.1"), 0x0122),
        (action(), request(), 0x0115),
        (action(), b"", 0x0115),
        (action(), b"junk" * 9, 0x0115),
        (action(), request("../x"), 0x0115),
        # Sequences in sequences, ten thousand deep.
        (action(), b"\x08\x00\x99\x11\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 8_000, 0x0115),
    ],
)
def test_requests_that_are_refused(listening: Listening, command: bytes, data: bytes, expected: int) -> None:
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        pieces = [data[at : at + 100_000] for at in range(0, len(data), 100_000)] or [b""]
        peer.send(data_pdu(3, command, command=True))
        for number, piece in enumerate(pieces, start=1):
            peer.send(data_pdu(3, piece, command=False, last=number == len(pieces)))
        assert peer.read_status() == expected
        assert peer.store(store_rq(), data_set()) == 0
        peer.release()


def test_a_request_that_is_too_long_is_not_kept(listening: Listening) -> None:
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        peer.send(data_pdu(3, action(), command=True))
        for _ in range(MAXIMUM_BYTES // 100_000 + 1):
            peer.send(data_pdu(3, bytes(100_000), command=False, last=False))
        peer.send(data_pdu(3, b"", command=False))
        assert peer.read_status() == 0x0213
        peer.release()


def test_the_report_fits_the_peers_pdus(listening: Listening) -> None:
    with listening.peer() as peer:
        peer.associate(*CONTEXTS, user=user_information(maximum=128))
        command, data = action(), request(*[f"1.2.3.{number}" for number in range(50)])
        peer.send(data_pdu(3, command, command=True), data_pdu(3, data, command=False))
        messages: list[bytes] = [b""]
        while len(messages) < 4:
            pdu = peer.read_pdu()
            assert len(pdu) <= 6 + 128
            messages[-1] += pdu[12:]
            if pdu[11] & 2:
                messages.append(b"")
        assert elements_of(messages[0])[0x0900] == b"\0\0"
        told = read_dataset(io.BytesIO(messages[2]), is_implicit_VR=True, is_little_endian=True)
        assert len(told.FailedSOPSequence) == 50
        peer.release()


def test_pynetdicom_asks(listening: Listening) -> None:
    told: list[Dataset] = []

    def on_report(event: evt.Event) -> tuple[int, Dataset | None]:
        told.append(event.event_information)
        return 0x0000, None

    ae = AE(ae_title="MODALITY")
    contexts = [build_context(MRImageStorage, EXPLICIT), build_context(StorageCommitmentPushModel)]
    association = ae.associate(
        "127.0.0.1", listening.port, contexts, ae_title="BRAIN", evt_handlers=[(evt.EVT_N_EVENT_REPORT, on_report)]
    )
    asked = read_dataset(io.BytesIO(request("1.2.3.1")), is_implicit_VR=True, is_little_endian=True)
    status, _ = association.send_n_action(asked, 1, StorageCommitmentPushModel, INSTANCE)
    assert status.Status == 0
    eventually(lambda: told)
    association.release()
    assert told[0].FailedSOPSequence[0].FailureReason == 0x0112
