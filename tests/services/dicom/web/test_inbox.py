"""The watched folder: whole files come in once, half ones never, what cannot be taken is set aside with a reason."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from services.dicom.web.studies import BRAIN, Archive, encoded, slices
from waiting import eventually

from clara_flow.services.dicom.heartbeats import read_all
from clara_flow.services.dicom.inbox import Inbox
from clara_flow.services.dicom.listener_config import ListenerConfigFile
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.spool import Spool


@pytest.fixture
def folder(archive: Archive, tmp_path: Path) -> Path:
    """The inbox."""
    folder = tmp_path / "inbox"
    (folder / BRAIN / "deep").mkdir(parents=True)
    archive.house = replace(archive.house, settings=archive.house.settings.model_copy(update={"dicom_inbox": folder}))
    return folder


@pytest.fixture
def inbox(archive: Archive, folder: Path) -> Inbox:
    del folder
    places = Places.of(archive.house.settings)
    return Inbox(archive.house.settings, Spool(places.spool), ListenerConfigFile(places.listener_config))


def put(path: Path, content: bytes, *, age_s: float = 60) -> Path:
    """A file that was last changed so long ago."""
    path.write_bytes(content)
    then = path.stat().st_mtime - age_s
    os.utime(path, (then, then))
    return path


def stored(archive: Archive) -> list[bytes]:
    return [(archive.spool / str(line["path"])).read_bytes() for line in archive.journal() if line["kind"] == "stored"]


def test_files_are_taken_when_they_look_the_same_twice(archive: Archive, folder: Path, inbox: Inbox) -> None:
    files = [encoded(one) for one in slices(series=(2,))]
    put(folder / BRAIN / "1.dcm", files[0])
    put(folder / BRAIN / "deep" / "no extension", files[1])
    assert inbox.look() == 0
    assert inbox.look() == 2
    assert inbox.look() == 0
    assert sorted(stored(archive)) == sorted(files)
    assert (folder / ".done" / BRAIN / "1.dcm").read_bytes() == files[0]
    assert not (folder / BRAIN / "1.dcm").exists()
    lines = archive.journal()
    assert [line["kind"] for line in lines] == ["open", "stored", "stored", "closed"]
    assert lines[0]["aetitle"] == "brain-ct"


def test_a_file_that_still_changes_is_left(archive: Archive, folder: Path, inbox: Inbox) -> None:
    whole = encoded(slices(series=(1,))[0])
    path = put(folder / BRAIN / "1.dcm", whole[:5000])
    for size in (6000, 7000):
        inbox.look()
        put(path, whole[:size])
    assert inbox.look() == 0
    put(path, whole, age_s=0)  # the last bytes came just now
    inbox.look()
    assert inbox.look() == 0
    put(path, whole)
    inbox.look()
    assert inbox.look() == 1
    assert stored(archive) == [whole]


@pytest.mark.parametrize("name", [".1.dcm", "1.dcm.part", "1.dcm.TMP"])
def test_names_of_unfinished_files_are_left(archive: Archive, folder: Path, inbox: Inbox, name: str) -> None:
    path = put(folder / BRAIN / name, encoded(slices(series=(1,))[0]))
    inbox.look()
    assert inbox.look() == 0
    whole = path.rename(folder / BRAIN / "1.dcm")
    inbox.look()
    assert inbox.look() == 1
    assert len(stored(archive)) == 1
    assert not whole.exists()


def test_what_cannot_be_taken_is_set_aside_with_a_reason(archive: Archive, folder: Path, inbox: Inbox) -> None:
    for name in ("notes.txt", "notes.txt"):
        put(folder / BRAIN / name, b"no DICOM" * 100)
        inbox.look()
        assert inbox.look() == 1
    refused = folder / ".refused" / BRAIN
    assert sorted(path.name for path in refused.iterdir()) == [
        "notes.txt", "notes.txt.1", "notes.txt.1.reason.txt", "notes.txt.reason.txt",
    ]  # fmt: skip
    assert "no DICOM file" in (refused / "notes.txt.reason.txt").read_text()
    assert stored(archive) == []


@pytest.mark.parametrize("content", [b"no DICOM" * 100, encoded(slices(series=(1,))[0])], ids=["refused", "done"])
def test_no_name_stops_the_inbox(archive: Archive, folder: Path, inbox: Inbox, content: bytes) -> None:
    """Names as long as can be, odd ones, a folder of the name that a file had: all of them are put away."""
    names = ["x" * 255, "\u8133" * 85, "a\nb", "a b\\..", "\udcff.dcm", "-rf"]
    deep = folder / BRAIN / Path(*["d" * 250] * 14)
    for turn in range(2):
        for name in names:
            put(folder / BRAIN / name, content)
        put(folder / BRAIN / "twice", content)
        deep.mkdir(parents=True, exist_ok=True)
        put(deep / "deep", content)
        inbox.look()
        inbox.look()
        assert [path for path in (folder / BRAIN).rglob("*") if path.is_file()] == [], f"turn {turn}"
        (folder / BRAIN / "twice").mkdir()
        put(folder / BRAIN / "twice" / "below", content)
        inbox.look()
        inbox.look()
        assert list((folder / BRAIN / "twice").iterdir()) == []
        (folder / BRAIN / "twice").rmdir()
    put_away = [path for path in (folder / ".done").rglob("*") if path.is_file()]
    refused = [path for path in (folder / ".refused").rglob("*") if path.is_file()]
    assert len(put_away) + len(refused) / 2 == 2 * (len(names) + 3)  # with what is refused lies a reason
    assert {path.relative_to(folder.parent).parts[0] for path in folder.parent.rglob("*")} <= {"inbox", "data"}


def test_links_and_unknown_ae_titles_are_left(archive: Archive, folder: Path, inbox: Inbox, tmp_path: Path) -> None:
    file = put(tmp_path / "1.dcm", encoded(slices(series=(1,))[0]))
    (folder / BRAIN / "link.dcm").symlink_to(file)
    (folder / "NOBODY").mkdir()
    put(folder / "NOBODY" / "1.dcm", file.read_bytes())
    inbox.look()
    assert inbox.look() == 0
    assert (folder / "NOBODY" / "1.dcm").exists()
    assert stored(archive) == []


def test_files_wait_for_room(archive: Archive, folder: Path) -> None:
    settings = archive.house.settings
    places = Places.of(settings)
    path = put(folder / BRAIN / "1.dcm", encoded(slices(series=(1,))[0]))
    short = settings.model_copy(update={"dicom_reserve_mib": 2**40})
    for given, expected in ((short, 0), (settings, 1)):
        inbox = Inbox(given, Spool(places.spool), ListenerConfigFile(places.listener_config))
        inbox.look()
        assert inbox.look() == expected
        assert path.exists() == (expected == 0)


def test_it_runs_beats_and_ends(archive: Archive, folder: Path, inbox: Inbox) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=inbox.run, args=(stop,))
    thread.start()
    try:
        put(folder / BRAIN / "1.dcm", encoded(slices(series=(1,))[0]))
        eventually(lambda: (folder / ".done" / BRAIN / "1.dcm").exists(), within_s=30)
        beats = read_all(Places.of(archive.house.settings).heartbeats)
        assert [beat.name for beat in beats] == ["inbox"]
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()
