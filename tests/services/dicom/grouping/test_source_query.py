"""Asking the source how many instances a study has: against pynetdicom's SCP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

import pytest
from dicom_spool import HandMade
from platform_fixture import free_port
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.records import dicom_config
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records.dicom_models import AeTitle, Destination, GroupState
from clara_flow.services.dicom.grouping import source_query

COUNTS: dict[str, Any] = {"1.2": 3, "1.3": None, "1.4": -5}


def destination(port: int, **facts: Any) -> Destination:
    now = datetime.now(UTC)
    return Destination(name="M", ae_title="MODALITY", host="127.0.0.1", port=port, created=now, updated=now, **facts)


@pytest.fixture
def source() -> Iterator[int]:
    """The port of a source that knows how many instances its studies have."""

    def find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        asked = event.identifier
        if asked.StudyInstanceUID in COUNTS:
            answer = Dataset()
            answer.StudyInstanceUID = asked.StudyInstanceUID
            answer.NumberOfStudyRelatedInstances = COUNTS[asked.StudyInstanceUID]
            yield 0xFF00, answer
        elif asked.StudyInstanceUID == "9.9":
            yield 0xA700, None

    entity, port = AE("MODALITY"), free_port()
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    yield port
    assert server is not None
    server.shutdown()


@pytest.mark.parametrize(("study", "count"), [("1.2", 3), ("1.3", None), ("1.4", None), ("9.9", None), ("8.8", None)])
def test_what_a_source_tells(source: int, study: str, count: int | None) -> None:
    assert source_query.study_instances(destination(source), study, calling_ae="ClaraSCU") == count


def test_a_source_that_does_not_answer() -> None:
    assert source_query.study_instances(destination(free_port()), "1.2", calling_ae="ClaraSCU") is None


def test_a_group_waits_no_longer_than_its_source_says(
    lone_house: House, journal: HandMade, source: int, add_aetitle: Callable[..., AeTitle],
    running: Callable[..., AbstractContextManager[Any]],
) -> None:  # fmt: skip
    dicom_config.add_destination(lone_house.engine, destination(source))
    add_aetitle(timeout="600", expect="find")

    def send(count: int) -> None:
        association = journal.open()
        for _ in range(count):
            journal.store(association, study="1.2")
        journal.close(association)

    with running():
        send(2)
        eventually(lambda: [g.instances for g in queries.list_groups(lone_house.engine)] == [2])
        send(1)
        eventually(
            lambda: [g.state for g in queries.list_groups(lone_house.engine)] == [GroupState.SUBMITTED], within_s=30
        )
    (group,) = queries.list_groups(lone_house.engine)
    assert group.rule == "all 3 expected instances came (its source)"


def test_asking_that_breaks_keeps_no_group(
    lone_house: House, journal: HandMade, add_aetitle: Callable[..., AeTitle],
    running: Callable[..., AbstractContextManager[Any]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A fault of ours or of the library in the thread that asks: silence decides."""

    def breaks(*args: object, **facts: object) -> None:
        raise RuntimeError("DOE^JANE")

    monkeypatch.setattr(source_query, "study_instances", breaks)
    dicom_config.add_destination(lone_house.engine, destination(104))
    add_aetitle(timeout="1", expect="find")
    with running():
        association = journal.open()
        journal.store(association, study="1.2")
        journal.close(association)
        eventually(
            lambda: [g.state for g in queries.list_groups(lone_house.engine)] == [GroupState.SUBMITTED], within_s=30
        )
    (group,) = queries.list_groups(lone_house.engine)
    assert group.rule == "nothing came for 1 s"


def test_who_is_asked(lone_house: House) -> None:
    engine = lone_house.engine
    assert source_query.destination_of(engine, "MODALITY") is None
    dicom_config.add_destination(engine, destination(104))
    found = source_query.destination_of(engine, "MODALITY")
    assert found is not None
    assert found.name == "M"
