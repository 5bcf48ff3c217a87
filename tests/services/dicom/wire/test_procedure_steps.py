"""Modality Performed Procedure Step: every status, and what is known of a step after it (PS3.4 Annex F.7)."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from dicom_mpps import begun, performed, tell
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.uid import CTImageStorage
from services.dicom.wire.conftest import Listening
from services.dicom.wire.scripted_peer import (
    EXPLICIT,
    IMPLICIT,
    MR,
    PROCEDURE_STEP,
    ScriptedPeer,
    command_set,
    context,
    data_pdu,
    encoded,
)

from clara_flow.errors import Conflict
from clara_flow.records.dicom_lines import PerformedSeries, Step
from clara_flow.records.dicom_models import StepStatus
from clara_flow.services.dicom.journal import MAXIMUM_LINE
from clara_flow.services.dicom.journal_entries import Closed, Opened, Stepped
from clara_flow.services.dicom.procedure_steps import ProcedureSteps
from clara_flow.services.dicom.space import SpaceCheck
from clara_flow.services.dicom.wire import procedure_step
from clara_flow.services.dicom.wire.procedure_step import AttributeWrong, read_word

pytestmark = pytest.mark.filterwarnings("ignore:(Invalid value|The value length):UserWarning")  # off in listeners

STEP, STUDY = "1.2.3.77", "1.2.3"
CONTEXTS = (context(1, MR, EXPLICIT), context(3, PROCEDURE_STEP, EXPLICIT))
DONE = performed("COMPLETED", {"1.2.3.1": ["1.2.3.1.1", "1.2.3.1.2"]})


def create(step: str = STEP, **changes: int | str) -> bytes:
    """An N-CREATE-RQ; `changes`: elements by their number, e0002 and the like."""
    elements: dict[int, bytes | int | str] = {0x0002: PROCEDURE_STEP, 0x0100: 0x140, 0x0110: 3, 0x0800: 0, 0x1000: step}
    return _command(elements, changes)


def change(step: str = STEP, **changes: int | str) -> bytes:
    """An N-SET-RQ."""
    elements: dict[int, bytes | int | str] = {0x0003: PROCEDURE_STEP, 0x0100: 0x120, 0x0110: 4, 0x0800: 0, 0x1001: step}
    return _command(elements, changes)


def _command(elements: dict[int, bytes | int | str], changes: dict[str, int | str]) -> bytes:
    elements |= {int(name[1:], 16): value for name, value in changes.items()}
    return command_set({number: value for number, value in elements.items() if value != ""})


def say(peer: ScriptedPeer, command: bytes, said: Dataset | bytes | None) -> dict[int, bytes]:
    """Say it; the elements of the response."""
    peer.send(data_pdu(3, command, command=True))
    if said is not None:
        data = said if isinstance(said, bytes) else encoded(said, EXPLICIT)
        for start in range(0, len(data) or 1, 60_000):
            last = start + 60_000 >= len(data)
            peer.send(data_pdu(3, data[start : start + 60_000], command=False, last=last))
    return peer.read_command()


def status_of(answer: dict[int, bytes]) -> int:
    return int.from_bytes(answer[0x0900], "little")


def without(said: Dataset, *keywords: str, **values: object) -> Dataset:
    """It, without some attributes, or with others."""
    for keyword in keywords:
        del said[keyword]
    for keyword, value in values.items():
        setattr(said, keyword, value)
    return said


def scheduled(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        item.add(DataElement(keyword, "UI", value, validation_mode=0))
    return without(begun(STUDY), ScheduledStepAttributesSequence=[item])


def references(**values: object) -> Dataset:
    """A word whose reference is not as it should be."""
    said = performed("COMPLETED", {"1.2.3.1": ["1.2.3.1.1"]})
    item = said.PerformedSeriesSequence[0].ReferencedImageSequence[0]
    for keyword, value in values.items():
        if value is None:
            del item[keyword]
        else:
            item[keyword] = DataElement(keyword, "UI", value, validation_mode=0)
    return said


def steps(listening: Listening) -> ProcedureSteps:
    return ProcedureSteps(listening.options.spool)


def step(listening: Listening, uid: str = STEP) -> Step | None:
    return steps(listening).read(steps(listening).path_of(uid))


def test_a_step_from_its_begin_to_its_end(listening: Listening) -> None:
    """By pynetdicom's own client, each word on another association."""
    assert tell(listening.port, "BRAIN", STEP, begun(STUDY, "1.2.4"), begins=True).Status == 0
    first = step(listening)
    assert first == Step(uid=STEP, version=1, status=StepStatus.IN_PROGRESS, studies=(STUDY, "1.2.4"))
    assert tell(listening.port, "BRAIN", STEP, performed(None, {"1.2.3.1": ["1.2.3.1.1"]})).Status == 0
    assert tell(listening.port, "BRAIN", STEP, performed("COMPLETED")).Status == 0
    made = (PerformedSeries("1.2.3.1", CTImageStorage, ("1.2.3.1.1",)),)
    assert step(listening) == Step(
        uid=STEP, version=3, status=StepStatus.COMPLETED, studies=(STUDY, "1.2.4"), series=made
    )
    told = [entry for entry in listening.entries(Stepped) if isinstance(entry, Stepped)]
    assert [entry.path for entry in told] == [steps(listening).path_of(STEP)] * 3
    assert len(listening.entries(Opened)) == len(listening.entries(Closed)) == 3
    assert listening.listener.counters.totals["procedure_steps"] == 3


def test_what_one_listener_was_told_another_knows(listen: Callable[..., Listening]) -> None:
    """They share the spool, and nothing else."""
    one, other = listen(), listen()
    assert tell(one.port, "BRAIN", STEP, begun(STUDY), begins=True).Status == 0
    assert tell(other.port, "BRAIN", STEP, begun(STUDY), begins=True).Status == 0x0111
    assert tell(other.port, "BRAIN", STEP, DONE).Status == 0
    refused = tell(one.port, "BRAIN", STEP, DONE)
    assert (refused.Status, refused.ErrorID) == (0x0110, 0xA710)
    assert refused.ErrorComment == "Performed Procedure Step Object may no longer be updated"


@pytest.mark.parametrize("ending", ["COMPLETED", "DISCONTINUED"])
def test_responses_name_the_step(listening: Listening, ending: str) -> None:
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        begin = say(peer, create(), begun(STUDY))
        end, late = (say(peer, change(), performed(ending)) for _ in range(2))
        peer.release()
    assert [status_of(answer) for answer in (begin, end, late)] == [0, 0, 0x0110]
    for answer, field in ((begin, 0x8140), (end, 0x8120), (late, 0x8120)):
        assert answer[0x0100] == field.to_bytes(2, "little")
        assert answer[0x0002].rstrip(b"\0").decode() == PROCEDURE_STEP
        assert answer[0x1000].rstrip(b"\0").decode() == STEP
        assert answer[0x0800] == b"\x01\x01"
    assert late[0x0903] == b"\x10\xa7"


def test_a_step_without_a_uid_gets_one(listening: Listening) -> None:
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        answer = say(peer, create(""), begun(STUDY))
        peer.release()
    uid = answer[0x1000].rstrip(b"\0").decode()
    assert status_of(answer) == 0
    assert uid.startswith("2.25.")
    made = step(listening, uid)
    assert made is not None
    assert made.studies == (STUDY,)


WRONG = [
    (create(e0002=MR), begun(STUDY), 0x0122),
    (create("1.2.x"), begun(STUDY), 0x0117),
    (create(e0800=0x0101), None, 0x0120),
    (create(), b"junk" * 9, 0x0120),  # there is no attribute in it
    # Sequences in sequences, ten thousand deep.
    (create(), b"\x40\x00\x70\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 8_000, 0x0110),
    (create(), without(begun(STUDY), "PerformedProcedureStepStatus"), 0x0120),
    (create(), without(begun(STUDY), PerformedProcedureStepStatus=""), 0x0121),
    (create(), begun(STUDY, status="COMPLETED"), 0x0106),
    (create(), begun(STUDY, status="WHO KNOWS"), 0x0106),
    (create(), without(begun(STUDY), "ScheduledStepAttributesSequence"), 0x0120),
    (create(), begun(), 0x0121),
    (create(), scheduled(), 0x0120),
    (create(), scheduled(StudyInstanceUID=""), 0x0121),
    (create(), scheduled(StudyInstanceUID="../x"), 0x0106),
    (change(), DONE, 0x0112),
    (change(e0003=MR), DONE, 0x0122),
    (change(""), DONE, 0x0117),
    (change("a"), DONE, 0x0117),
    (change(e0800=0x0101), None, 0x0120),
    (change(), performed("WHO KNOWS"), 0x0106),
    (change(), without(performed("COMPLETED"), PerformedProcedureStepStatus=""), 0x0121),
    (change(), references(ReferencedSOPInstanceUID=None), 0x0120),
    (change(), references(ReferencedSOPInstanceUID=""), 0x0121),
    (change(), references(ReferencedSOPInstanceUID="../../x"), 0x0106),
    (change(), references(ReferencedSOPClassUID=None), 0x0120),
    (change(), performed(None, {"": ["1.2"]}), 0x0121),
]


@pytest.mark.parametrize(("command", "said", "expected"), WRONG)
def test_what_is_refused(listening: Listening, command: bytes, said: Dataset | bytes | None, expected: int) -> None:
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        assert status_of(say(peer, command, said)) == expected
        assert status_of(say(peer, create("1.2.3.78"), begun(STUDY))) == 0  # the association goes on
        peer.release()
    assert step(listening) is None


def test_a_refused_word_changes_nothing(listening: Listening) -> None:
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        assert status_of(say(peer, create(), begun(STUDY))) == 0
        assert status_of(say(peer, change(), references(ReferencedSOPInstanceUID="x"))) == 0x0106
        assert status_of(say(peer, create(), begun("1.2.4"))) == 0x0111
        peer.release()
    assert step(listening) == Step(uid=STEP, version=1, status=StepStatus.IN_PROGRESS, studies=(STUDY,))


def test_on_another_context(listening: Listening) -> None:
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        peer.send(data_pdu(1, create(), command=True), data_pdu(1, encoded(begun(STUDY), EXPLICIT), command=False))
        assert peer.read_status() == 0x0122
        peer.release()


def test_implicit_vr(listening: Listening) -> None:
    with listening.peer() as peer:
        peer.associate(context(3, PROCEDURE_STEP, IMPLICIT))
        assert status_of(say(peer, create(), encoded(begun(STUDY), IMPLICIT))) == 0
        assert status_of(say(peer, change(), encoded(DONE, IMPLICIT))) == 0
        peer.release()
    made = step(listening)
    assert made is not None
    assert made.series == (PerformedSeries("1.2.3.1", CTImageStorage, ("1.2.3.1.1", "1.2.3.1.2")),)


def test_a_word_of_any_length(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    """More instances than a line of a journal could hold; and what is too long even so."""
    instances = [f"1.2.826.0.1.3680043.10.543.{'1234567890' * 3}.{number}" for number in range(5_000)]
    assert sum(map(len, instances)) > MAXIMUM_LINE
    said = encoded(performed("COMPLETED", {"1.2.3.1": instances}), EXPLICIT)
    with listening.peer() as peer:
        peer.socket.settimeout(60)
        peer.associate(*CONTEXTS)
        assert status_of(say(peer, create(), begun(STUDY))) == 0
        with monkeypatch.context() as patch:
            patch.setattr(procedure_step, "MAXIMUM_BYTES", len(said) - 1)
            assert status_of(say(peer, change(), said)) == 0x0213
        assert status_of(say(peer, change(), said)) == 0
        peer.release()
    made = step(listening)
    assert made is not None
    assert [len(one.instances) for one in made.series] == [5_000]


def test_space_that_becomes_short(listen: Callable[..., Listening], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpaceCheck, "is_short", lambda self: True)
    with listen().peer() as peer:
        peer.associate(context(3, PROCEDURE_STEP, EXPLICIT))
        assert status_of(say(peer, create(), begun(STUDY))) == 0x0213
        peer.release()


@pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, 0x0213), (errno.EIO, 0x0110)])
def test_a_disk_that_refuses(
    listen: Callable[..., Listening], monkeypatch: pytest.MonkeyPatch, number: int, expected: int
) -> None:
    fsync, listening = os.fsync, listen(fsync=True)

    def refuse(descriptor: int) -> None:
        if "/steps/" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            assert status_of(say(peer, create(), begun(STUDY))) == expected
        assert step(listening) is None
        assert status_of(say(peer, create(), begun(STUDY))) == 0
        peer.release()


def test_a_word_that_was_written_and_not_noted_is_noted_when_it_is_repeated(listening: Listening) -> None:
    """Its process was killed between: the modality has no answer, and says it again."""
    begin = Step(uid=STEP, version=1, status=StepStatus.IN_PROGRESS, studies=(STUDY,))
    steps(listening).create(begin)
    assert listening.entries(Stepped) == []
    assert tell(listening.port, "BRAIN", STEP, begun(STUDY), begins=True).Status == 0x0111
    assert len(listening.entries(Stepped)) == 1
    steps(listening).change(STEP, StepStatus.COMPLETED, None)
    assert tell(listening.port, "BRAIN", STEP, performed("COMPLETED")).Status == 0x0110
    assert len(listening.entries(Stepped)) == 2


def test_nothing_of_the_patient_is_kept(listening: Listening) -> None:
    planted = without(
        begun(STUDY), PatientName="ZQX^NAME", PatientID="ZQX-ID", PatientBirthDate="19030609", StudyID="ZQX-STUDY"
    )
    planted.ScheduledStepAttributesSequence[0].AccessionNumber = "ZQX-A"
    end = performed("COMPLETED", {"1.2.3.1": ["1.2.3.1.1"]})
    end.PerformedSeriesSequence[0].OperatorsName = "ZQX^DOCTOR"
    with listening.peer() as peer:
        peer.associate(*CONTEXTS)
        assert status_of(say(peer, create(), planted)) == 0
        assert status_of(say(peer, change(), end)) == 0
        peer.release()
    files = [path for path in listening.options.spool.rglob("*") if path.is_file()]
    assert any(path.parent.name == "steps" and path.suffix == ".json" for path in files)
    assert not [path for path in files if b"zqx" in path.read_bytes().lower() or b"19030609" in path.read_bytes()]


def test_of_many_who_begin_the_same_step_one_does(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def begin(number: int) -> bool:
        together.wait(10)
        try:
            ProcedureSteps(tmp_path, fsync=False).create(
                Step(uid=STEP, version=1, status=StepStatus.IN_PROGRESS, studies=(f"1.{number}",))
            )
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(begin, range(8))) == [False] * 7 + [True]


def test_old_steps_are_forgotten(tmp_path: Path) -> None:
    known = ProcedureSteps(tmp_path, fsync=False)
    for uid in ("1.1", "1.2"):
        known.create(Step(uid=uid, version=1, status=StepStatus.IN_PROGRESS, studies=(STUDY,)))
    half = tmp_path / "steps" / ".half.json.tmp"
    half.touch()
    for path in (tmp_path / known.path_of("1.1"), half):
        os.utime(path, (0, 0))
    assert known.forget(3600) == 2
    assert (known.read(known.path_of("1.1")), known.read(known.path_of("1.2")) is None) == (None, False)


@given(
    data=st.binary(max_size=200),
    begins=st.booleans(),
    syntax=st.sampled_from([EXPLICIT, IMPLICIT]),
    at=st.integers(0, 400),
)
def test_no_word_breaks_the_reader(data: bytes, begins: bool, syntax: str, at: int) -> None:
    sound = encoded(DONE if not begins else begun(STUDY), syntax)
    at = min(at, len(sound))
    try:
        said = read_word(sound[:at] + data + sound[at + len(data) :], syntax, creates=begins)
    except (ValueError, AttributeWrong):
        return
    assert not begins or said.studies
