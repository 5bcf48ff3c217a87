"""The rows of the DICOM configuration on a real database: what is there once, what rings, what drains."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from clara_flow.errors import Conflict, NotFound
from clara_flow.records import dicom_config as rows
from clara_flow.records.database import transaction
from clara_flow.records.dicom_models import AeTitle, Association, Destination, Group, GroupState, SourceNode
from clara_flow.records.doorbell import Doorbell


@pytest.fixture(autouse=True)
def _empty(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "TRUNCATE dicom_aetitles, dicom_sources, dicom_destinations, dicom_groups, dicom_associations CASCADE"
            )
        )


@pytest.fixture
def bell(engine: sa.Engine) -> Iterator[Doorbell]:
    with closing(Doorbell(engine, [rows.CHANNEL])) as bell:
        yield bell


def brain(**more: Any) -> AeTitle:
    return AeTitle(**{"name": "BRAIN", "ae_title": "BRAIN", "processor_settings": {"pipeline-a": "a"}, **more})


def pacs(**more: Any) -> Destination:
    return Destination(**{"name": "PACS", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": 4242, **more})


def group(engine: sa.Engine, state: GroupState, aetitle: str = "BRAIN") -> uuid.UUID:
    now = datetime.now(UTC)
    ended = now if state in {GroupState.SUBMITTED, GroupState.DISCARDED} else None
    with transaction(engine) as session:
        row = Group(
            aetitle=aetitle, key_digest=uuid.uuid4().hex, state=state, opened=now, last_arrival=now, ended=ended
        )
        session.add(row)
        return row.id


def heard(bell: Doorbell) -> list[dict[str, Any]]:
    return [facts for _, facts in bell.wait(5)]


def test_an_ae_title_is_added_changed_and_found(engine: sa.Engine) -> None:
    added = rows.add_aetitle(engine, brain(ignored_sop_classes=["1.2"]))
    assert added.created == added.updated
    assert rows.get_aetitle(engine, "BRAIN") == added
    changed = rows.update_aetitle(engine, "BRAIN", overwrite_same_instance=True, ae_title="BRAIN2")
    assert (changed.overwrite_same_instance, changed.ae_title, changed.ignored_sop_classes) == (True, "BRAIN2", ["1.2"])
    assert changed.updated > changed.created
    assert rows.list_aetitles(engine) == [changed]


def test_names_and_titles_are_there_once(engine: sa.Engine) -> None:
    rows.add_aetitle(engine, brain())
    rows.add_aetitle(engine, brain(name="other", ae_title="OTHER"))
    with pytest.raises(Conflict, match="an AE title named 'BRAIN' already"):
        rows.add_aetitle(engine, brain(ae_title="NEW"))
    with pytest.raises(Conflict, match="AE title 'BRAIN' is that of 'BRAIN'"):
        rows.add_aetitle(engine, brain(name="new"))
    with pytest.raises(Conflict, match="is that of 'BRAIN'"):
        rows.update_aetitle(engine, "other", ae_title="BRAIN")
    assert [row.ae_title for row in rows.list_aetitles(engine)] == ["BRAIN", "OTHER"]


def test_sources_and_destinations_are_there_once_and_destinations_in_any_case(engine: sa.Engine) -> None:
    rows.add_source(engine, SourceNode(ae_title="CT", host="10.0.0.1"))
    rows.add_source(engine, SourceNode(ae_title="ct", host="10.0.0.1"))  # AE titles have case
    with pytest.raises(Conflict):
        rows.add_source(engine, SourceNode(ae_title="CT", host="10.0.0.2"))
    rows.add_destination(engine, pacs())
    with pytest.raises(Conflict, match="'PACS' already"):
        rows.add_destination(engine, pacs(name="pacs"))
    assert rows.get_destination(engine, "pAcS").name == "PACS"
    assert rows.update_destination(engine, "pacs", paused=True).paused
    assert rows.update_source(engine, "ct", host="::1").host == "::1"


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda engine: rows.get_aetitle(engine, "X"), "no AE title 'X'; there are BRAIN"),
        (lambda engine: rows.update_aetitle(engine, "X", processor="y"), "no AE title 'X'"),
        (lambda engine: rows.delete_aetitle(engine, "X"), "no AE title 'X'"),
        (lambda engine: rows.get_source(engine, "X"), "no source 'X'"),
        (lambda engine: rows.update_source(engine, "X"), "no source 'X'"),
        (lambda engine: rows.delete_source(engine, "X"), "no source 'X'"),
        (lambda engine: rows.get_destination(engine, "X"), "no destination 'X'; there are PACS"),
        (lambda engine: rows.update_destination(engine, "X"), "no destination 'X'"),
        (lambda engine: rows.delete_destination(engine, "X"), "no destination 'X'"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(
    engine: sa.Engine, call: Callable[[sa.Engine], object], complaint: str
) -> None:
    rows.add_aetitle(engine, brain())
    rows.add_destination(engine, pacs())
    with pytest.raises(NotFound, match=complaint):
        call(engine)


def test_every_change_rings(engine: sa.Engine, bell: Doorbell) -> None:
    changes: list[tuple[Callable[[], object], dict[str, str]]] = [
        (lambda: rows.add_aetitle(engine, brain()), {"aetitle": "BRAIN"}),
        (lambda: rows.update_aetitle(engine, "BRAIN", deidentify="basic"), {"aetitle": "BRAIN"}),
        (lambda: rows.delete_aetitle(engine, "BRAIN"), {"aetitle": "BRAIN"}),
        (lambda: rows.remove_drained(engine, ["BRAIN"]), {"aetitle": "BRAIN"}),
        (lambda: rows.add_source(engine, SourceNode(ae_title="CT", host="10.0.0.1")), {"source": "CT"}),
        (lambda: rows.update_source(engine, "CT", host="10.0.0.2"), {"source": "CT"}),
        (lambda: rows.delete_source(engine, "CT"), {"source": "CT"}),
        (lambda: rows.add_destination(engine, pacs()), {"destination": "PACS"}),
        (lambda: rows.update_destination(engine, "PACS", paused=True), {"destination": "PACS"}),
        (lambda: rows.delete_destination(engine, "PACS"), {"destination": "PACS"}),
    ]
    for change, expected in changes:
        change()
        assert heard(bell) == [expected]


def test_what_is_refused_does_not_ring(engine: sa.Engine, bell: Doorbell) -> None:
    rows.add_source(engine, SourceNode(ae_title="CT", host="10.0.0.1"))
    heard(bell)
    with pytest.raises(Conflict):
        rows.add_source(engine, SourceNode(ae_title="CT", host="10.0.0.1"))
    rows.delete_source(engine, "CT")
    assert heard(bell) == [{"source": "CT"}]  # of the deletion alone


@pytest.mark.parametrize("state", [GroupState.OPEN, GroupState.COMPLETE, GroupState.FAILED])
def test_a_deleted_ae_title_drains_while_a_group_of_it_is_not_over(engine: sa.Engine, state: GroupState) -> None:
    rows.add_aetitle(engine, brain())
    number = group(engine, state)
    group(engine, GroupState.OPEN, aetitle="OTHER")
    assert rows.delete_aetitle(engine, "BRAIN").draining
    drain = rows.draining_aetitles(engine)["BRAIN"]
    assert drain.under_way == 1
    assert drain.last_arrival is not None
    assert rows.remove_drained(engine, ["BRAIN"]) == []
    assert rows.get_aetitle(engine, "BRAIN").draining  # what its groups become is still known
    with transaction(engine) as session:
        session.execute(
            sa.text("UPDATE dicom_groups SET state = 'SUBMITTED', ended = now() WHERE id = :id"), {"id": number}
        )
    assert rows.draining_aetitles(engine)["BRAIN"].under_way == 0
    assert rows.remove_drained(engine, ["BRAIN"]) == ["BRAIN"]
    with pytest.raises(NotFound):
        rows.get_aetitle(engine, "BRAIN")


@pytest.mark.parametrize("state", [GroupState.SUBMITTED, GroupState.DISCARDED])
def test_groups_that_are_over_do_not_keep_it(engine: sa.Engine, state: GroupState) -> None:
    rows.add_aetitle(engine, brain())
    group(engine, state)
    rows.delete_aetitle(engine, "BRAIN")
    assert rows.remove_drained(engine, ["BRAIN"]) == ["BRAIN"]


def test_an_open_association_keeps_it(engine: sa.Engine) -> None:
    rows.add_aetitle(engine, brain())
    with transaction(engine) as session:
        session.add(Association(id=uuid.uuid4(), journal="j", aetitle="BRAIN", opened=datetime.now(UTC)))
    rows.delete_aetitle(engine, "BRAIN")
    assert rows.draining_aetitles(engine)["BRAIN"].under_way == 1
    assert rows.remove_drained(engine, ["BRAIN"]) == []
    with transaction(engine) as session:
        session.execute(sa.text("UPDATE dicom_associations SET closed = now(), how = 'released'"))
    assert rows.remove_drained(engine, ["BRAIN"]) == ["BRAIN"]


def test_only_what_was_deleted_is_removed(engine: sa.Engine) -> None:
    rows.add_aetitle(engine, brain())
    assert rows.draining_aetitles(engine) == {}
    assert rows.remove_drained(engine, ["BRAIN", "X"]) == []


def test_what_drains_can_be_added_again_but_not_changed_or_deleted(engine: sa.Engine) -> None:
    rows.add_aetitle(engine, brain())
    group(engine, GroupState.OPEN)
    rows.delete_aetitle(engine, "BRAIN")
    with pytest.raises(NotFound):
        rows.delete_aetitle(engine, "BRAIN")
    with pytest.raises(NotFound):
        rows.update_aetitle(engine, "BRAIN", processor="x")
    with pytest.raises(Conflict, match="was deleted and still drains"):
        rows.add_aetitle(engine, brain(name="other"))
    again = rows.add_aetitle(engine, brain(require_release=True))
    assert (again.draining, again.require_release) == (False, True)
    assert rows.remove_drained(engine, ["BRAIN"]) == []


def test_of_many_that_add_the_same_one_succeeds(engine: sa.Engine) -> None:
    outcomes: list[str] = []
    start = threading.Barrier(8)

    def add() -> None:
        start.wait()
        try:
            rows.add_destination(engine, pacs())
            outcomes.append("added")
        except Conflict:
            outcomes.append("refused")

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["added", *["refused"] * 7]
