"""Journals: whole lines count, torn ones never happened, and a reader sees whether the writer lives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_flow.errors import InvalidTransition, StorageError
from clara_flow.services.dicom.journal import MAXIMUM_LINE, JournalDoubtful, JournalReader, JournalWriter
from clara_flow.services.dicom.journal_entries import Closed, Entry, Opened, Stored, from_line, to_line

AT = datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC)
ONE = UUID(int=1)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
MOMENTS = st.datetimes(timezones=st.just(UTC))
OPENED = st.builds(
    Opened, association=st.uuids(), at=MOMENTS, calling=TEXTS, called=TEXTS, aetitle=TEXTS, peer=TEXTS,
    require_release=st.booleans(),
)  # fmt: skip
STORED = st.builds(
    Stored, association=st.uuids(), at=MOMENTS, path=TEXTS, size=st.integers(0, 2**40), sop_class=TEXTS,
    sop_instance=TEXTS, study=TEXTS, series=TEXTS, transfer_syntax=TEXTS,
    attributes=st.dictionaries(TEXTS, TEXTS, max_size=3), keys=st.dictionaries(TEXTS, TEXTS, max_size=3),
)  # fmt: skip
CLOSED = st.builds(Closed, association=st.uuids(), at=MOMENTS, how=st.sampled_from(["released", "aborted", "lost"]))
ENTRIES = st.one_of(OPENED, STORED, CLOSED)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of journals, in a spool."""
    (tmp_path / "journals").mkdir()
    return tmp_path / "journals"


def closed(how: str = "released") -> Closed:
    return Closed(association=ONE, at=AT, how=how)  # type: ignore[arg-type]


@given(ENTRIES)
def test_an_entry_comes_back_as_it_was(entry: Entry) -> None:
    line = to_line(entry)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert from_line(line) == entry


@given(st.one_of(st.binary(max_size=60), ENTRIES.map(lambda entry: to_line(entry)[1:])))
def test_nothing_else_is_an_entry(line: bytes) -> None:
    with pytest.raises(ValueError, match="no line of a journal"):
        from_line(line)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"kind": "stored"},
        {"kind": "other", "association": str(ONE), "at": AT.isoformat()},
        {"kind": "closed", "association": "one", "at": AT.isoformat(), "how": "lost"},
        {"kind": "closed", "association": str(ONE), "at": "today", "how": "lost"},
        {"kind": "closed", "association": str(ONE), "at": AT.isoformat(), "how": "kidnapped"},
        {"kind": [], "association": str(ONE), "at": AT.isoformat(), "how": "lost"},
    ],
)
def test_nor_is_json_of_another_shape(content: object) -> None:
    with pytest.raises(ValueError, match="no line of a journal"):
        from_line(json.dumps(content).encode())


def test_the_words_of_a_line_are_those_that_readers_were_promised() -> None:
    entry = closed("aborted")
    assert json.loads(to_line(entry)) == {
        "kind": "closed",
        "association": str(ONE),
        "at": "2024-02-29T12:30:15.123456+00:00",
        "how": "aborted",
    }


def test_a_reader_goes_on_where_it_was(folder: Path) -> None:
    writer = JournalWriter(folder, fsync=True)
    reader = JournalReader(folder.parent)
    [name] = reader.names()
    assert reader.read(name) == ([], 0)
    entries = [Closed(association=uuid4(), at=AT, how="lost") for _ in range(5)]
    for entry in entries:
        writer.append(to_line(entry))
    first, offset = reader.read(name, 0, limit=2)
    second, offset = reader.read(name, offset, limit=2)
    third, offset = reader.read(name, offset, limit=2)
    assert [*first, *second, *third] == entries
    assert offset == writer.size == (folder / name).stat().st_size
    assert reader.read(name, offset) == ([], offset)
    assert list(reader.entries(name)) == entries


def test_more_than_is_read_at_once(folder: Path) -> None:
    line = to_line(closed())
    (folder / "a.jsonl").write_bytes(line * 30_000)
    assert len(line) * 30_000 > 2 * 2**20
    reader = JournalReader(folder.parent)
    assert sum(1 for _ in reader.entries("a.jsonl")) == 30_000
    assert len(reader.read("a.jsonl", 0, limit=10**6)[0]) > 5_000


def test_an_offset_behind_the_end_is_the_end(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(to_line(closed()))
    assert JournalReader(folder.parent).read("a.jsonl", 10**6) == ([], 10**6)


def test_a_tail_torn_at_any_byte_never_happened(folder: Path) -> None:
    whole = to_line(closed()) * 2
    torn = to_line(closed("aborted"))
    reader = JournalReader(folder.parent)
    for cut in range(len(torn)):
        (folder / "a.jsonl").write_bytes(whole + torn[:cut])
        assert reader.read("a.jsonl") == ([closed(), closed()], len(whole))


def test_a_broken_line_is_waited_for_while_the_writer_lives_and_skipped_afterwards(folder: Path) -> None:
    writer = JournalWriter(folder, fsync=False)
    reader = JournalReader(folder.parent)
    [name] = reader.names()
    writer.append(to_line(closed()))
    writer.append(b'{"kind":"sto\n')
    writer.append(to_line(closed()))
    assert reader.read(name) == ([closed()], len(to_line(closed())))
    assert list(reader.entries(name)) == [closed()]
    writer.close()
    assert reader.read(name) == ([closed(), closed()], (folder / name).stat().st_size)


def test_it_is_over_when_its_writer_is_gone(folder: Path) -> None:
    writer = JournalWriter(folder, fsync=False)
    reader = JournalReader(folder.parent)
    [name] = reader.names()
    assert not reader.is_over(name)
    assert not reader.is_over(name)  # to ask changes nothing
    writer.close()
    writer.close()
    assert reader.is_over(name)
    with pytest.raises(StorageError, match="takes no lines"):
        writer.append(b"{}\n")
    reader.remove(name)
    assert reader.names() == []
    assert reader.is_over(name)
    assert reader.read(name, 5) == ([], 5)
    reader.remove(name)


def test_it_is_over_when_its_writer_was_killed(folder: Path) -> None:
    script = (
        "import sys, pathlib; from clara_flow.services.dicom.journal import JournalWriter; "
        "JournalWriter(pathlib.Path(sys.argv[1]), fsync=False); print('ready', flush=True); sys.stdin.read()"
    )
    reader = JournalReader(folder.parent)
    with subprocess.Popen(
        [sys.executable, "-c", script, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        [name] = reader.names()
        assert not reader.is_over(name)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert reader.is_over(name)


def test_a_journal_that_is_written_cannot_be_removed(folder: Path) -> None:
    writer = JournalWriter(folder, fsync=False)
    reader = JournalReader(folder.parent)
    [name] = reader.names()
    with pytest.raises(InvalidTransition, match="still written"):
        reader.remove(name)
    assert reader.sweep(name) == 0
    writer.append(to_line(closed()))
    assert list(reader.entries(name)) == [closed()]


def test_a_line_too_long_for_readers_is_refused(folder: Path) -> None:
    writer = JournalWriter(folder, fsync=False)
    with pytest.raises(StorageError, match="too long"):
        writer.append(b"x" * MAXIMUM_LINE + b"\n")
    writer.append(to_line(closed()))
    assert writer.size == len(to_line(closed()))


def test_after_a_failed_flush_no_line_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = JournalWriter(folder, fsync=True)

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(JournalDoubtful, match="could not be flushed: Input/output error"):
            writer.append(to_line(closed()))
    with pytest.raises(StorageError, match="takes no lines any more"):
        writer.append(to_line(closed()))


def test_nothing_is_flushed_unless_it_has_to_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    monkeypatch.setattr(os, "fsync", flushed.append)
    without = JournalWriter(folder, fsync=False)
    without.append(to_line(closed()))
    assert flushed == []
    with_it = JournalWriter(folder, fsync=True)
    assert len(flushed) == 1  # the folder
    with_it.append(to_line(closed()), durable=False)
    assert len(flushed) == 1
    with_it.append(to_line(closed()))
    assert len(flushed) == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write below") as caught:
        JournalWriter(tmp_path / "missing", fsync=False)
    assert str(tmp_path / "missing") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_of_a_group_that_did_not_fit_the_lines_that_did_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [to_line(closed(how)) for how in ("released", "aborted", "lost")]
    content = b"".join(lines)
    really_write = os.write
    for room in range(len(content)):
        writer = JournalWriter(folder, fsync=True)
        writer.append(to_line(closed()))
        left = room

        def write(descriptor: int, data: bytes) -> int:
            nonlocal left
            if left == 0:
                raise OSError(28, "No space left on device")
            written = really_write(descriptor, data[: min(left, 50)])
            left -= written
            return written

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            outcome = writer._flush([(line, True) for line in lines])
        counted = [error is None for error in outcome]
        assert counted == [len(b"".join(lines[: number + 1])) <= room for number in range(3)]
        assert writer.path.read_bytes() == b"".join([to_line(closed()), *lines[: sum(counted)]])
        writer.append(to_line(closed()))
        assert writer.path.read_bytes().endswith(b"}\n" + to_line(closed()))
        writer.close()
