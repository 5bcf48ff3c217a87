"""DICOMweb with thousands of studies and of produced objects: answers and what is fetched for them have bounds."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from services.dicom.web.studies import Archive, encoded, slices

from clara_flow.records.database import transaction
from clara_flow.records.dicom_models import Delivery, Group, Instance
from clara_flow.services.dicom import web_produced, web_query, web_shelf
from clara_flow.services.dicom.web_produced import ProducedObjects
from clara_flow.services.dicom.web_query import STUDY, Level
from clara_flow.services.dicom.web_shelf import Shelf

STUDIES = 2000


@pytest.fixture
def fetched(archive: Archive) -> Iterator[list[int]]:
    """How many rows each statement of the gateway brought."""
    rows: list[int] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        del connection, rest
        if statement.lstrip().startswith(("SELECT", "WITH")):
            rows.append(cursor.rowcount)

    sa.event.listen(archive.house.engine, "after_cursor_execute", note)
    yield rows
    sa.event.remove(archive.house.engine, "after_cursor_execute", note)


@pytest.fixture
def studies(archive: Archive) -> list[str]:
    """UIDs of as many studies, last come first; all are links to one file."""
    (one,) = slices(series=(1,))
    now, association = datetime.now(UTC), uuid.uuid4()
    group = Group(aetitle="brain-ct", key_digest=uuid.uuid4().hex, opened=now, last_arrival=now, instances=STUDIES)
    folder = archive.spool / "instances" / str(association)
    folder.mkdir(parents=True)
    (folder / "0.dcm").write_bytes(encoded(one))
    rows: list[dict[str, Any]] = []
    for number in range(STUDIES):
        if number:
            (folder / f"{number}.dcm").hardlink_to(folder / "0.dcm")
        rows.append(
            {
                "group_id": group.id, "sop_instance_uid": f"1.2.3.{number}", "sop_class_uid": one.SOPClassUID,
                "series_uid": f"1.2.2.{number}", "study_uid": f"1.2.1.{number}", "size_bytes": 1,
                "transfer_syntax": "1.2.840.10008.1.2.1", "association": association, "arrived": now,
                "path": str(Path("instances") / str(association) / f"{number}.dcm"), "attributes": {"Modality": "CT"},
            }
        )  # fmt: skip
    with transaction(archive.house.engine) as session:
        session.add(group)
        session.flush()
        session.execute(sa.insert(Instance), rows)
    return [row["study_uid"] for row in reversed(rows)]


def found(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [result["0020000D"]["Value"][0] for result in answer.json()]


def test_a_query_without_a_filter_has_a_limit_and_says_so(
    web: httpx.Client, studies: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_query, "LARGEST_LIMIT", 50)
    for parameters in ({}, {"limit": 5000}):
        answer = web.get("/dicom-web/studies", params=parameters)
        assert found(answer) == studies[:50]
        assert answer.headers["warning"].startswith("299 ")
        assert "exceeded the maximum" in answer.headers["warning"]


def test_a_small_limit_fetches_few_rows(web: httpx.Client, studies: list[str], fetched: list[int]) -> None:
    answer = web.get("/dicom-web/studies", params={"limit": 2, "offset": 7})
    assert found(answer) == studies[7:9]
    assert "warning" not in answer.headers  # the client knows its own limit
    assert sum(fetched) <= 3 * web_shelf.FIRST_PAGE


@pytest.mark.parametrize("level", Level)
def test_pages_have_a_limit_and_miss_none(
    archive: Archive, studies: list[str], fetched: list[int], monkeypatch: pytest.MonkeyPatch, level: Level
) -> None:
    monkeypatch.setattr(web_shelf, "LARGEST_PAGE", 400)
    assert [one.uids[STUDY] for one in Shelf(archive.house).find(level, {})] == studies
    assert max(fetched) == 400


def produce(archive: Archive, count: int, start: datetime, step: timedelta) -> None:
    """As many delivery tasks, each of the one file of a payload of its own; all are links to one file."""
    (one,) = slices(series=(1,), Modality="SEG")
    source, rows = archive.spool.parent / "produced.dcm", []
    source.write_bytes(encoded(one))
    for number in range(count):
        payload = archive.house.store.create()
        (payload.path / "operators" / "writer").mkdir(parents=True)
        (payload.path / "operators/writer/0.dcm").hardlink_to(source)
        created = start + number * step
        rows.append(
            Delivery(
                job_id=str(uuid.uuid4()), payload_id=str(payload.id), agent="ClaraSCU", created=created,
                updated=created, uris=["operators/writer/0.dcm"],
            )
        )  # fmt: skip
    with transaction(archive.house.engine) as session:
        session.add_all(rows)


@pytest.mark.parametrize("step", [timedelta(0), timedelta(seconds=10)], ids=["at one instant", "over time"])
def test_produced_objects_are_read_in_steps_and_once(
    archive: Archive, fetched: list[int], monkeypatch: pytest.MonkeyPatch, step: timedelta
) -> None:
    monkeypatch.setattr(web_produced, "LISTED_AT_ONCE", 90)
    monkeypatch.setattr(web_produced, "READ_AT_ONCE", 30)
    produce(archive, 300, datetime.now(UTC) - timedelta(hours=1), step)
    objects = ProducedObjects(archive.house)
    (uid,) = {one.uids[STUDY] for one in objects.find({})}
    assert fetched == [90, 30, 30, 30] * 3 + [30, 30, 0]
    fetched.clear()
    assert len(list(objects.find({STUDY: [uid]}))) == 300
    assert sum(fetched) == (300 if not step else 31)  # ids of the last five minutes alone


def test_requests_share_what_each_reads(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests that meet: each gets everything, though neither holds the lock for all."""
    monkeypatch.setattr(web_produced, "READ_AT_ONCE", 10)
    produce(archive, 60, datetime.now(UTC), timedelta(0))
    objects = ProducedObjects(archive.house)
    both_began = threading.Barrier(2)

    def ask() -> int:
        both_began.wait(60)
        return len(list(objects.find({})))

    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask) for _ in range(2)]
        assert [one.result(60) for one in asked] == [60, 60]
