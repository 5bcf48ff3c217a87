"""Received instances: there whole with their line, or not at all."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from services.dicom.spool.spooled import WHO, abandoned_writer, everything, facts, files, stored
from waiting import eventually

from clara_flow.errors import InvalidTransition, StorageError
from clara_flow.services.dicom import spool as spool_module
from clara_flow.services.dicom.journal import JournalDoubtful, JournalWriter
from clara_flow.services.dicom.journal_entries import Closed, Opened
from clara_flow.services.dicom.spool import Spool, Swept

CONTENT = bytes(range(256)) * 64


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.mark.parametrize("fsync", [True, False])
def test_an_instance_is_there_with_its_line(spool: Spool, fsync: bool) -> None:
    writer = spool.writer(fsync)
    association = writer.open_association("MODALITY", "BRAIN", "brain", "10.0.0.1", True)
    assert files(spool.root) == {}
    with writer.begin(association) as incoming:
        incoming.write(CONTENT[:100])
        incoming.write(memoryview(CONTENT)[100:])
        assert stored(spool.root) == []
        incoming.commit(facts())
    writer.close_association(association, "released")
    opened, entry, closed = everything(spool.root)
    assert isinstance(opened, Opened)
    assert (opened.association, opened.calling, opened.called, opened.aetitle) == (
        association, "MODALITY", "BRAIN", "brain",
    )  # fmt: skip
    assert (opened.peer, opened.require_release) == ("10.0.0.1", True)
    assert entry.path == f"instances/{association}/1.dcm"  # type: ignore[union-attr]
    assert [facts(), len(CONTENT)] == [
        type(facts())(**{name: getattr(entry, name) for name in facts().__dataclass_fields__}),
        entry.size,  # type: ignore[union-attr]
    ]
    assert (closed.association, closed.how) == (association, "released")  # type: ignore[union-attr]
    assert opened.at <= entry.at <= closed.at
    assert files(spool.root) == {f"instances/{association}/1.dcm": CONTENT}


def test_the_disk_has_the_file_and_its_name_before_the_line(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = spool.writer(True)
    association = writer.open_association(**WHO)
    incoming = writer.begin(association)
    incoming.write(CONTENT)
    order: list[str] = []
    append = JournalWriter.append

    def flushed(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def appended(journal: JournalWriter, line: bytes, *, durable: bool = True) -> None:
        order.append("line")
        append(journal, line, durable=durable)

    monkeypatch.setattr(os, "fdatasync", flushed)
    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(JournalWriter, "append", appended)
    incoming.commit(facts())
    [journal] = spool.reader().names()
    assert order == ["1.dcm", str(association), "line", journal]


def test_what_is_not_committed_leaves_nothing(spool: Spool) -> None:
    writer = spool.writer(True)
    association = writer.open_association(**WHO)
    incoming = writer.begin(association)
    incoming.write(CONTENT)
    incoming.abandon()
    incoming.abandon()
    with suppress(RuntimeError), writer.begin(association) as incoming:
        incoming.write(CONTENT)
        raise RuntimeError("the peer is gone")
    with writer.begin(association):
        pass
    assert (files(spool.root), stored(spool.root)) == ({}, [])
    writer.close_association(association, "aborted")
    assert list((spool.root / "instances").iterdir()) == []
    with pytest.raises(InvalidTransition):
        incoming.commit(facts())


def test_to_abandon_after_the_commit_is_harmless(spool: Spool) -> None:
    writer = spool.writer(False)
    with writer.begin(writer.open_association(**WHO)) as incoming:
        incoming.write(CONTENT)
        incoming.commit(facts())
        incoming.abandon()
    assert list(files(spool.root).values()) == [CONTENT]
    with pytest.raises(InvalidTransition):
        incoming.commit(facts())
    assert list(files(spool.root).values()) == [CONTENT]


def test_an_association_that_is_not_open_takes_nothing(spool: Spool) -> None:
    writer = spool.writer(False)
    with pytest.raises(InvalidTransition):
        writer.begin(uuid4())
    association = writer.open_association(**WHO)
    late = writer.begin(association)
    late.write(CONTENT)
    writer.close_association(association, "lost")
    with pytest.raises(InvalidTransition):
        late.commit(facts())
    for use in (writer.begin, lambda one: writer.close_association(one, "lost")):
        with pytest.raises(InvalidTransition):
            use(association)
    assert (files(spool.root), stored(spool.root)) == ({}, [])


def test_many_threads_and_associations_at_once(spool: Spool) -> None:
    writer = spool.writer(True)
    wrong: list[BaseException] = []

    def receive(number: int) -> None:
        try:
            association = writer.open_association(**WHO)
            for instance in range(25):
                with writer.begin(association) as incoming:
                    incoming.write(b"%d.%d" % (number, instance) * 1000)
                    if instance % 5:
                        incoming.commit(facts(f"{number}.{instance}"))
            writer.close_association(association, "released")
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            wrong.append(error)

    threads = [threading.Thread(target=receive, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    writer.close()
    found = {entry.sop_instance: files(spool.root)[entry.path] for entry in stored(spool.root)}
    expected = {f"{number}.{one}" for number in range(12) for one in range(25) if one % 5}
    assert found == {name: name.encode() * 1000 for name in expected}
    assert len(files(spool.root)) == len(found)
    opened: set[UUID] = set()
    for entry in everything(spool.root):
        if isinstance(entry, Opened):
            opened.add(entry.association)
        assert entry.association in opened
        if isinstance(entry, Closed):
            opened.remove(entry.association)
    assert opened == set()


def test_what_is_open_when_the_writer_closes_was_lost(spool: Spool) -> None:
    writer = spool.writer(True)
    association = writer.open_association(**WHO)
    writer.close()
    [_, closed] = everything(spool.root)
    assert (closed.association, closed.how) == (association, "lost")  # type: ignore[union-attr]
    assert all(map(spool.reader().is_over, spool.reader().names()))
    with pytest.raises(StorageError, match="takes no lines"):
        writer.open_association(**WHO)


def test_a_long_journal_takes_no_new_association_and_keeps_the_old_ones(spool: Spool) -> None:
    writer = spool.writer(False, journal_bytes=1)
    reader = spool.reader()
    first = writer.open_association(**WHO)
    [old] = reader.names()
    second = writer.open_association(**WHO)
    [new] = set(reader.names()) - {old}
    with writer.begin(first) as incoming:
        incoming.commit(facts())
    assert [entry.kind for entry in reader.entries(old)] == ["open", "stored"]
    assert not reader.is_over(old)
    writer.close_association(first, "released")
    assert reader.is_over(old)
    assert [entry.kind for entry in reader.entries(old)] == ["open", "stored", "closed"]
    assert not reader.is_over(new)
    writer.close_association(second, "released")
    assert not reader.is_over(new)  # the next one may still begin there, were it not too long
    third = writer.open_association(**WHO)
    assert reader.is_over(new)
    writer.close()
    assert {entry.association for name in reader.names() for entry in reader.entries(name)} == {first, second, third}


def test_a_failing_journal_leaves_neither_file_nor_line(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = spool.writer(True)
    association = writer.open_association(**WHO)
    incoming = writer.begin(association)
    incoming.write(CONTENT)
    with monkeypatch.context() as patch:
        patch.setattr(JournalWriter, "_write", lambda *_: (0, OSError(28, "No space left on device")))
        with pytest.raises(StorageError, match="is full"):
            incoming.commit(facts())
    assert (files(spool.root), stored(spool.root)) == ({}, [])
    with writer.begin(association) as incoming:
        incoming.commit(facts())
    assert [entry.path for entry in stored(spool.root)] == list(files(spool.root))


def test_where_a_line_may_be_the_file_stays(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = spool.writer(True)
    incoming = writer.begin(writer.open_association(**WHO))
    incoming.write(CONTENT)
    really_flush = os.fdatasync

    def fail(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".jsonl":
            raise OSError(5, "Input/output error")
        really_flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(JournalDoubtful):
            incoming.commit(facts())
    assert [entry.path for entry in stored(spool.root)] == list(files(spool.root))
    assert len(files(spool.root)) == 1


def test_the_end_of_an_association_is_written_when_the_disk_lets_it(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "RETRY_S", 0.05)
    writer = spool.writer(True)
    associations = [writer.open_association(**WHO) for _ in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(JournalWriter, "_write", lambda *_: (0, OSError(28, "No space left on device")))
        for association in associations:
            writer.close_association(association, "released")
        assert not any(isinstance(entry, Closed) for entry in everything(spool.root))
    eventually(lambda: sum(isinstance(entry, Closed) for entry in everything(spool.root)) == 3)
    writer.close()
    assert len(everything(spool.root)) == 6


def test_a_sweep_takes_what_a_dead_writer_did_not_finish(spool: Spool) -> None:
    abandoned_writer(spool.root, CONTENT, whole=2)
    assert len(files(spool.root)) == 3
    assert spool.sweep() == Swept(files=1, folders=0)
    assert sorted(files(spool.root)) == sorted(entry.path for entry in stored(spool.root))
    assert spool.sweep() == Swept(files=0, folders=0)


def test_a_sweep_takes_folders_that_were_emptied(spool: Spool) -> None:
    abandoned_writer(spool.root, CONTENT, whole=0)
    assert spool.sweep() == Swept(files=1, folders=1)
    assert list((spool.root / "instances").iterdir()) == []
    abandoned_writer(spool.root, CONTENT, whole=1)
    reader = spool.reader()
    for name in reader.names():
        reader.remove(name)
    [path] = files(spool.root)
    assert spool.sweep() == Swept(files=0, folders=0)
    (spool.root / path).unlink()
    assert spool.sweep() == Swept(files=0, folders=1)


def test_a_sweep_leaves_a_living_writer_alone(spool: Spool) -> None:
    writer = spool.writer(False)
    association = writer.open_association(**WHO)
    half = writer.begin(association)
    half.write(CONTENT)
    emptied = writer.open_association(**WHO)
    writer.begin(emptied).abandon()
    assert len(list((spool.root / "instances").iterdir())) == 2
    assert spool.sweep() == Swept(files=0, folders=0)
    half.commit(facts())
    with writer.begin(emptied) as incoming:
        incoming.commit(facts("1.2.4"))
    assert sorted(files(spool.root)) == sorted(entry.path for entry in stored(spool.root))


def test_a_sweep_of_nothing(spool: Spool) -> None:
    assert spool.sweep() == Swept(files=0, folders=0)


def test_a_journal_that_never_got_its_name_goes_after_a_while(spool: Spool) -> None:
    spool.writer(False).close()
    for name, age_s in ((".old.jsonl", 7200), (".new.jsonl", 0)):
        path = spool.root / "journals" / name
        path.touch()
        os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    spool.sweep()
    assert [path.name for path in (spool.root / "journals").glob(".*")] == [".new.jsonl"]


def test_to_remove_a_journal_takes_its_unfinished_files(spool: Spool) -> None:
    abandoned_writer(spool.root, CONTENT, whole=1)
    reader = spool.reader()
    [name] = reader.names()
    [kept] = [entry.path for entry in stored(spool.root)]
    reader.remove(name)
    assert list(files(spool.root)) == [kept]
    assert reader.names() == []
