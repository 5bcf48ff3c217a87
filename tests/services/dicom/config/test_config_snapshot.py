"""The listeners' file follows the tables, and deleted AE titles go when they are done."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.records import dicom_config as rows
from clara_flow.records.database import transaction
from clara_flow.records.dicom_models import AeTitle, Group, GroupState, SourceNode, SpoolJournal
from clara_flow.services.dicom.config_snapshot import SnapshotWriter, snapshot
from clara_flow.services.dicom.heartbeats import Heartbeats, read_all
from clara_flow.services.dicom.listener_config import AeTitleRule, ListenerConfigFile, SourceRule

SETTINGS = {"pipeline-brain": "brain-extraction"}


def add(engine: sa.Engine, name: str = "BRAIN", **settings: str) -> None:
    rows.add_aetitle(engine, AeTitle(name=name, ae_title=name, processor_settings=SETTINGS | settings))


@pytest.fixture
def path(house: House) -> Path:
    return house.settings.data_dir / "spool" / "config.json"


@pytest.fixture
def writing(engine: sa.Engine, path: Path) -> Iterator[ListenerConfigFile]:
    """The file, while a writer runs."""
    stop = threading.Event()
    thread = threading.Thread(target=SnapshotWriter(engine, path).run, args=(stop,))
    thread.start()
    yield ListenerConfigFile(path)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_it_says_what_listeners_must_know(engine: sa.Engine) -> None:
    rows.add_aetitle(
        engine,
        AeTitle(
            name="head", ae_title="BRAIN", processor_settings=SETTINGS | {"groupBy": "0010,0020"},
            ignored_sop_classes=["1.2"], overwrite_same_instance=True, require_release=True,
        ),
    )  # fmt: skip
    add(engine, "CHEST")
    rows.add_source(
        engine,
        SourceNode(ae_title="CT", host="10.0.0.0/8", maximum_associations=3, user_name="u", user_secret="s$h"),  # noqa: S106
    )
    content = snapshot(engine)
    assert content.aetitles["BRAIN"] == AeTitleRule(
        name="head",
        ae_title="BRAIN",
        ignored_sop_classes=("1.2",),
        overwrite_same_instance=True,
        require_release=True,
    )
    assert content.group_tags == ("00100020", "0020000D")
    assert content.sources == (
        SourceRule(ae_title="CT", host="10.0.0.0/8", maximum_associations=3, user_name="u", user_secret="s$h"),  # noqa: S106
    )
    assert type(content).from_json(content.to_json()) == content


def test_one_row_that_cannot_be_read_does_not_keep_the_others_away(engine: sa.Engine) -> None:
    add(engine, "BRAIN", groupBy="nothing")
    add(engine, "CHEST")
    content = snapshot(engine)
    assert set(content.aetitles) == {"BRAIN", "CHEST"}
    assert content.group_tags == ("0020000D",)


def test_it_is_written_at_start_and_with_every_change(engine: sa.Engine, writing: ListenerConfigFile) -> None:
    eventually(writing.path.exists)
    assert writing.current().aetitles == {}
    add(engine)
    eventually(lambda: set(writing.current().aetitles) == {"BRAIN"})
    rows.add_source(engine, SourceNode(ae_title="CT", host="::1"))
    eventually(lambda: [source.ae_title for source in writing.current().sources] == ["CT"])
    rows.delete_source(engine, "CT")
    eventually(lambda: not writing.current().sources)
    rows.delete_aetitle(engine, "BRAIN")
    eventually(lambda: writing.current().aetitles["BRAIN"].draining)


def test_it_is_not_written_when_nothing_changed(engine: sa.Engine, path: Path) -> None:
    writer = SnapshotWriter(engine, path)
    add(engine)
    writer.look()
    before = path.stat().st_ino
    writer.look()
    assert path.stat().st_ino == before
    path.write_text("no JSON")
    writer.look()
    assert ListenerConfigFile(path).current() == snapshot(engine)


def test_it_goes_on_when_the_database_was_away(engine: sa.Engine, writing: ListenerConfigFile) -> None:
    eventually(writing.path.exists)
    with engine.connect() as connection:
        connection.execute(
            sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                    "AND datname = current_database() AND query LIKE 'LISTEN%'")
        )  # fmt: skip
    add(engine)
    eventually(lambda: set(writing.current().aetitles) == {"BRAIN"})


def test_it_says_that_it_lives(engine: sa.Engine, path: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    writer = SnapshotWriter(engine, path, heartbeats=Heartbeats(tmp_path / "beats"))
    thread = threading.Thread(target=writer.run, args=(stop,))
    thread.start()
    eventually(lambda: [beat.name for beat in read_all(tmp_path / "beats")] == ["snapshot"])
    stop.set()
    thread.join(10)


def group(engine: sa.Engine, *, ended: bool) -> None:
    now = datetime.now(UTC) - timedelta(seconds=1)
    with transaction(engine) as session:
        session.execute(sa.text("DELETE FROM dicom_groups"))
        session.add(
            Group(
                aetitle="BRAIN", key_digest="x", opened=now, last_arrival=now, ended=now if ended else None,
                state=GroupState.SUBMITTED if ended else GroupState.OPEN,
            )
        )  # fmt: skip


def names(engine: sa.Engine) -> list[str]:
    return [row.name for row in rows.list_aetitles(engine)]


def test_a_deleted_ae_title_goes_when_its_groups_are_over(engine: sa.Engine, path: Path) -> None:
    writer = SnapshotWriter(engine, path, quiet_s=0)
    add(engine)
    group(engine, ended=False)
    rows.delete_aetitle(engine, "BRAIN")
    writer.look()
    assert ListenerConfigFile(path).current().aetitles["BRAIN"].draining
    assert names(engine) == ["BRAIN"]
    group(engine, ended=True)
    writer.look()
    assert names(engine) == []
    assert ListenerConfigFile(path).current().aetitles == {}


def test_it_stays_while_associations_may_still_send(engine: sa.Engine, path: Path) -> None:
    writer = SnapshotWriter(engine, path, quiet_s=3600)
    add(engine)
    rows.delete_aetitle(engine, "BRAIN")
    writer.look()
    assert names(engine) == ["BRAIN"]
    writer.quiet_s = 0
    writer.look()
    assert names(engine) == []


def test_it_stays_while_a_journal_is_not_read(engine: sa.Engine, path: Path) -> None:
    """What was acknowledged before the deletion is in a journal, and not yet in a group."""
    writer = SnapshotWriter(engine, path, quiet_s=0)
    journal = path.parent / "journals" / "a.jsonl"
    journal.parent.mkdir(parents=True)
    journal.write_text("x" * 100)
    add(engine)
    rows.delete_aetitle(engine, "BRAIN")
    writer.look()
    assert names(engine) == ["BRAIN"]
    with transaction(engine) as session:
        session.add(SpoolJournal(name="a.jsonl", offset=99))
    writer.look()
    assert names(engine) == ["BRAIN"]
    with journal.open("a") as file:
        file.write("y" * 100)  # later entries are of others
    with transaction(engine) as session:
        session.execute(sa.text('UPDATE dicom_journals SET "offset" = 100'))
    writer.look()
    assert names(engine) == []


def test_a_journal_that_is_gone_was_read(engine: sa.Engine, path: Path) -> None:
    writer = SnapshotWriter(engine, path, quiet_s=0)
    journal = path.parent / "journals" / "a.jsonl"
    journal.parent.mkdir(parents=True)
    journal.write_text("x")
    add(engine)
    rows.delete_aetitle(engine, "BRAIN")
    writer.look()
    assert names(engine) == ["BRAIN"]
    journal.unlink()
    writer.look()
    assert names(engine) == []
