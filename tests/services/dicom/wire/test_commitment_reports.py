"""What peers report of what we sent (N-EVENT-REPORT on an association that they open), and what they are owed."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_context, build_role
from pynetdicom.sop_class import StorageCommitmentPushModel
from services.dicom.wire.conftest import Listening
from services.dicom.wire.scripted_peer import (
    ABORT,
    COMMITMENT,
    EXPLICIT,
    IMPLICIT,
    MR,
    VERIFICATION,
    ScriptedPeer,
    associate_rq,
    command_set,
    context,
    context_results,
    data_pdu,
    data_set,
    echo_rq,
    elements_of,
    encoded,
    item,
    store_rq,
    user_information,
    user_items,
)
from waiting import eventually

from clara_flow.errors import StorageError
from clara_flow.services.dicom import spool
from clara_flow.services.dicom.journal_entries import CommitmentAsked, CommitmentReported, CommitmentTold, Entry
from clara_flow.services.dicom.listener_config import AeTitleRule, CommitterRule, ListenerConfig, SourceRule
from clara_flow.services.dicom.wire import ledger, references

INSTANCE = "1.2.840.10008.1.20.1.1"
PACS = {"called": b"CLARASCU", "calling": b"PACS"}
ROLE_ITEM = 0x54


@pytest.fixture
def config() -> ListenerConfig:
    """A PACS that is a destination and no source, a modality that is a source."""
    return ListenerConfig(
        aetitles={"BRAIN": AeTitleRule(name="brain", ae_title="BRAIN")},
        sources=(SourceRule(ae_title="MODALITY", host="127.0.0.1"),),
        committers=(
            CommitterRule(ae_title="PACS", host="127.0.0.1", called="CLARASCU"),
            CommitterRule(ae_title="FAR", host="192.0.2.1", called="CLARASCU"),
            CommitterRule(ae_title="PACS", host="127.0.0.1", called="BRAIN"),
        ),
    )


def role(scu: int, scp: int, uid: str = COMMITMENT) -> bytes:
    """A role selection sub-item."""
    return item(ROLE_ITEM, struct.pack(">H", len(uid)) + uid.encode() + bytes((scu, scp)))


def event(**changes: int | str) -> bytes:
    """An N-EVENT-REPORT-RQ; `changes`: elements by their number, e1002 and the like."""
    elements: dict[int, bytes | int | str] = {
        0x0002: COMMITMENT, 0x0100: 0x100, 0x0110: 9, 0x0800: 0, 0x1000: INSTANCE, 0x1002: 1,
    }  # fmt: skip
    elements |= {int(name[1:], 16): value for name, value in changes.items()}
    return command_set(elements)


def information(
    *ok: str, failed: dict[str, int] | None = None, transaction: str = "2.25.7.1", syntax: str = IMPLICIT
) -> bytes:
    """The event information."""
    dataset = Dataset()
    dataset.TransactionUID = transaction
    if ok:
        dataset.ReferencedSOPSequence = [_reference(uid) for uid in ok]
    if failed:
        dataset.FailedSOPSequence = [_reference(uid, reason) for uid, reason in failed.items()]
    return encoded(dataset, syntax)


def _reference(uid: str, reason: int | None = None) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = MR, uid
    if reason is not None:
        reference.FailureReason = reason
    return reference


def tell(peer: ScriptedPeer, command: bytes, data: bytes | None) -> dict[int, bytes]:
    """Report; the elements of the answer."""
    peer.send(data_pdu(3, command, command=True))
    if data is not None:
        peer.send(data_pdu(3, data, command=False))
    return peer.read_command()


def entries(listening: Listening, kind: type[Entry]) -> list[Entry]:
    return listening.entries(kind)


@pytest.mark.parametrize(
    "roles",
    [[role(0, 1)], [role(1, 1)], [role(1, 0)], []],
    ids=["provider", "both", "user", "none"],
)
def test_a_destination_reports_whatever_roles_it_negotiates(listening: Listening, roles: list[bytes]) -> None:
    with listening.peer() as peer:
        accepted = peer.associate(context(3, COMMITMENT, IMPLICIT), user=user_information(*roles), **PACS)
        assert user_items(accepted).get(ROLE_ITEM, b"") == b"".join(roles)[4:]
        answer = tell(peer, event(e1002=2), information("1.2.3.1", failed={"1.2.3.2": 0x0112}))
        assert (answer[0x0900], answer[0x1002], answer[0x0120]) == (b"\0\0", b"\2\0", b"\t\0")
        [told] = entries(listening, CommitmentReported)  # before the association is over
        assert isinstance(told, CommitmentReported)
        assert (told.transaction, told.ok, told.failed) == ("2.25.7.1", ["1.2.3.1"], {"1.2.3.2": 0x0112})
        peer.release()
    [opened], [closed] = listening.opened(), listening.closed()
    assert (opened.calling, opened.called, opened.aetitle) == ("PACS", "CLARASCU", "")
    assert closed.how == "released"


@pytest.mark.parametrize(
    ("command", "data", "expected"),
    [
        (event(e1000="1.2.3"), information("1.2.3.1"), 0x0112),
        (event(e1002=3), information("1.2.3.1"), 0x0113),
        (event(e0002=MR), information("1.2.3.1"), 0x0122),
        (event(e0800=0x0101), None, 0x0115),
        (event(), information(), 0x0115),
        (event(), information("1.2.3.1", transaction=""), 0x0115),
        (event(), information("../x"), 0x0115),
        (event(), b"junk" * 9, 0x0115),
        (event(), information("1.2.3.1")[:-3], 0x0115),
    ],
)
def test_reports_that_are_refused(listening: Listening, command: bytes, data: bytes | None, expected: int) -> None:
    with listening.peer() as peer:
        peer.associate(context(3, COMMITMENT, IMPLICIT), **PACS)
        answer = tell(peer, command, data)
        assert int.from_bytes(answer[0x0900], "little") == expected
        assert tell(peer, event(), information("1.2.3.1"))[0x0900] == b"\0\0"
        peer.release()
    assert len(entries(listening, CommitmentReported)) == 1


def test_too_many_references_are_refused(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "MAXIMUM_REFERENCES", 2)
    with listening.peer() as peer:
        peer.associate(context(3, COMMITMENT, IMPLICIT), **PACS)
        answer = tell(peer, event(), information("1.2.3.1", "1.2.3.2", "1.2.3.3"))
        assert answer[0x0900] == b"\x15\x01"
        assert answer[0x0902].strip() == b"more than 2 references"
        peer.release()


def test_a_long_report_takes_several_lines(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "LINE_REFERENCES", 2)
    with listening.peer() as peer:
        peer.associate(context(3, COMMITMENT, IMPLICIT), **PACS)
        data = information("1.2.3.1", "1.2.3.2", "1.2.3.3", failed={"1.2.3.4": 0x0110})
        assert tell(peer, event(e1002=2), data)[0x0900] == b"\0\0"
        peer.release()
    told = [entry for entry in entries(listening, CommitmentReported) if isinstance(entry, CommitmentReported)]
    assert [len(entry.ok) + len(entry.failed) for entry in told] == [2, 2]
    assert {uid for entry in told for uid in entry.ok} == {"1.2.3.1", "1.2.3.2", "1.2.3.3"}


@pytest.mark.parametrize(("facts", "expected"), [({}, 0x0110), ({"free_bytes": 0}, 0x0213)])
def test_what_cannot_be_written_down_is_not_taken(
    listening: Listening, monkeypatch: pytest.MonkeyPatch, facts: dict[str, int], expected: int
) -> None:
    def note(self: object, entry: Entry, *, durable: bool) -> None:
        raise StorageError("the disk is away", **facts)

    monkeypatch.setattr(spool.SpoolWriter, "note", note)
    with listening.peer() as peer:
        peer.associate(context(3, COMMITMENT, IMPLICIT), **PACS)
        answer = tell(peer, event(), information("1.2.3.1"))
        assert int.from_bytes(answer[0x0900], "little") == expected
        peer.release()


def test_a_destination_stores_nothing(listening: Listening) -> None:
    """Called as our exporter, or as an AE title for which it is no source."""
    for called in (b"CLARASCU", b"BRAIN"):
        with listening.peer() as peer:
            accepted = peer.associate(
                context(1, MR, EXPLICIT),
                context(3, COMMITMENT, IMPLICIT),
                context(5, VERIFICATION, IMPLICIT),
                called=called,
                calling=b"PACS",
            )
            assert [result for result, _ in context_results(accepted).values()] == [3, 0, 0]
            peer.send(data_pdu(5, echo_rq(), command=True))
            assert peer.read_status() == 0
            peer.release()


@pytest.mark.parametrize(
    ("calling", "called", "expected"),
    [
        (b"PACS", b"OTHER", 3),  # calling AE title not recognised: it is no source
        (b"FAR", b"CLARASCU", 3),  # its host is another
        (b"STRANGER", b"CLARASCU", 3),
        (b"MODALITY", b"OTHER", 7),  # called AE title not recognised
        (b"MODALITY", b"CLARASCU", None),  # a source may report as well
    ],
)
def test_who_may_report(listening: Listening, calling: bytes, called: bytes, expected: int | None) -> None:
    with listening.peer() as peer:
        peer.send(associate_rq(context(3, COMMITMENT, IMPLICIT), calling=calling, called=called))
        answer = peer.read_pdu()
    assert (answer[9] if answer[0] == 3 else None) == expected


def test_other_classes_know_one_role(listening: Listening) -> None:
    with listening.peer() as peer:
        accepted = peer.associate(context(1, MR, EXPLICIT), user=user_information(role(0, 1, MR)))
        assert context_results(accepted)[1][0] == 1
        peer.send(ABORT)


def test_pynetdicom_reports_as_the_provider(listening: Listening) -> None:
    ae = AE(ae_title="PACS")
    association = ae.associate(
        "127.0.0.1",
        listening.port,
        [build_context(StorageCommitmentPushModel, ExplicitVRLittleEndian)],
        ae_title="CLARASCU",
        ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)],
    )
    assert association.is_established
    assert [one.as_scp for one in association.accepted_contexts] == [True]
    report = Dataset()
    report.TransactionUID = "2.25.7.2"
    report.ReferencedSOPSequence = [_reference("1.2.3.1")]
    status, _ = association.send_n_event_report(report, 1, StorageCommitmentPushModel, INSTANCE)
    association.release()
    assert status.Status == 0
    assert len(entries(listening, CommitmentReported)) == 1


# What peers are owed.


def ask(peer: ScriptedPeer, *instances: str) -> None:
    """Ask for commitment, which is taken."""
    dataset = Dataset()
    dataset.TransactionUID = "1.2.99"
    dataset.ReferencedSOPSequence = [_reference(uid) for uid in instances]
    action = command_set(
        {0x0003: COMMITMENT, 0x0100: 0x130, 0x0110: 3, 0x0800: 0, 0x1001: INSTANCE, 0x1008: 1},
    )
    peer.send(data_pdu(3, action, command=True), data_pdu(3, encoded(dataset, IMPLICIT), command=False))
    assert peer.read_status() == 0


def test_what_is_asked_is_written_down_before_it_is_answered(listening: Listening) -> None:
    with listening.peer() as peer:
        peer.associate(context(1, MR, EXPLICIT), context(3, COMMITMENT, IMPLICIT))
        assert peer.store(store_rq(), data_set()) == 0
        ask(peer, "1.2.3.1", "1.2.3.2")
        [asked] = entries(listening, CommitmentAsked)
        assert isinstance(asked, CommitmentAsked)
        assert (asked.transaction, asked.references, asked.is_last) == ("1.2.99", {MR: ["1.2.3.1", "1.2.3.2"]}, True)
        assert [opened.association for opened in listening.opened()] == [asked.association]
        assert [peer.read_pdu()[11] for _ in range(2)] == [3, 2], "a report: its command, and its data set"
        peer.release()
    assert entries(listening, CommitmentTold) == [], "it was not acknowledged"
    assert [closed.association for closed in listening.closed()] == [asked.association]


def acknowledge(peer: ScriptedPeer, status: int) -> None:
    """Read the report that follows, and answer it so."""
    command = elements_of(peer.read_pdu()[12:])
    assert command[0x0100] == b"\0\1"
    assert peer.read_pdu()[11] == 2, "its data set"
    answer = {0x0002: COMMITMENT, 0x0100: 0x8100, 0x0120: int.from_bytes(command[0x0110], "little"), 0x0800: 0x0101}
    peer.send(data_pdu(3, command_set({**answer, 0x0900: status}), command=True))


@pytest.mark.parametrize(("status", "is_told"), [(0x0000, True), (0x0107, True), (0x0110, False), (0x0211, False)])
def test_an_acknowledgement_settles_it(listening: Listening, status: int, is_told: bool) -> None:
    with listening.peer() as peer:
        peer.associate(context(3, COMMITMENT, IMPLICIT))
        ask(peer, "1.2.3.1")
        acknowledge(peer, status)
        peer.release()
    told = entries(listening, CommitmentTold)
    [asked] = entries(listening, CommitmentAsked)
    assert isinstance(asked, CommitmentAsked)
    assert [entry.report for entry in told if isinstance(entry, CommitmentTold)] == [asked.report] * is_told


def test_each_report_is_acknowledged_for_itself(listening: Listening) -> None:
    """Two requests with one transaction UID; the second one's report is taken, the first one's is not."""
    with listening.peer() as peer:
        peer.associate(context(3, COMMITMENT, IMPLICIT))
        ask(peer, "1.2.3.1")
        acknowledge(peer, 0x0110)
        ask(peer, "1.2.3.1")
        acknowledge(peer, 0)
        peer.release()
    asked = entries(listening, CommitmentAsked)
    [told] = entries(listening, CommitmentTold)
    assert isinstance(told, CommitmentTold)
    assert isinstance(asked[1], CommitmentAsked)
    assert told.report == asked[1].report


def test_who_breaks_off_is_owed_it(listening: Listening) -> None:
    with listening.peer() as peer:
        peer.associate(context(3, COMMITMENT, IMPLICIT))
        ask(peer, "1.2.3.1")
        peer.reset()
    eventually(lambda: listening.closed())
    assert entries(listening, CommitmentTold) == []


def test_a_request_that_cannot_be_written_down_is_refused(
    listen: Callable[..., Listening], monkeypatch: pytest.MonkeyPatch
) -> None:
    listening = listen()

    def note(self: object, entry: Entry, *, durable: bool) -> None:
        raise StorageError("the disk is away")

    monkeypatch.setattr(spool.SpoolWriter, "note", note)
    with listening.peer() as peer:
        peer.associate(context(3, COMMITMENT, IMPLICIT))
        with pytest.raises(AssertionError):
            ask(peer, "1.2.3.1")
        peer.release()
