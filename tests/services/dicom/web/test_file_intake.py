"""Whole files of any content: nothing breaks, and what is not said to be stored is not there."""

from __future__ import annotations

import itertools

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from services.dicom.web.studies import BRAIN, Archive, encoded, slices

from clara_flow.services.dicom.file_intake import FileDoor, FileIntake

WHOLE = encoded(slices(series=(1,))[0])
HEAD_BYTES = 2048


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.integers(0, HEAD_BYTES), st.integers(0, 255), max_size=6),
    length=st.integers(0, len(WHOLE)) | st.just(len(WHOLE)),
    cuts=st.lists(st.sampled_from([1, 7, 130, 4096]), min_size=1, max_size=20),
)
def test_a_broken_file_is_answered_and_leaves_nothing(
    archive: Archive, changes: dict[int, int], length: int, cuts: list[int]
) -> None:
    content = bytearray(WHOLE)
    for at, value in changes.items():
        content[at] = value
    del content[length:]
    sizes, at = itertools.cycle(cuts), 0
    door = FileDoor(archive.house.settings.model_copy(update={"dicom_fsync": False}))
    try:
        with door.association(door.rule_of(BRAIN), calling="TEST", peer="127.0.0.1") as association:
            intake = FileIntake(association)
            while at < len(content):
                size = next(sizes)
                intake.write(bytes(content[at : at + size]))
                at += size
            outcome = intake.finish()
    finally:
        door.close()
    kept = [path.read_bytes() for path in archive.spool.glob("instances/*/*")]
    assert (bytes(content) in kept) == outcome.is_new
    assert outcome.is_new or outcome.reason
    for path in archive.spool.glob("instances/*/*"):
        path.unlink()


def test_an_abandoned_file_leaves_nothing(archive: Archive) -> None:
    door = FileDoor(archive.house.settings)
    with door.association(door.rule_of(BRAIN), calling="TEST", peer="127.0.0.1") as association:
        intake = FileIntake(association)
        intake.write(WHOLE[:5000])
        assert list(archive.spool.glob("instances/*/*"))
        intake.abandon()
    door.close()
    assert not list(archive.spool.glob("instances/*/*"))
    assert [line["kind"] for line in archive.journal()] == ["open", "closed"]
