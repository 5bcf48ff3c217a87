"""Inference requests whose inputs come by C-MOVE: through the listener, the spool and the tables, into the payload."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orthanc_fixture
import pytest
from orthanc_fixture import AE_TITLE
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from pynetdicom import AE, StoragePresentationContexts, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelMove  # type: ignore[attr-defined]
from services.dicom.web.inference_world import (
    instance_input,
    payload_files,
    request_body,
    row_of,
    study_input,
    wait_for_end,
    with_pipeline,
    working,
)
from services.dicom.web.studies import encoded, slices
from services.dicom.wire.conftest import Listening
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.records import dicom_config, inference
from clara_flow.records import dicom_group_queries as groups
from clara_flow.records.dicom_models import AeTitle, GroupState, InferenceState, InferenceStatus, SourceNode
from clara_flow.services.dicom import inference_move
from clara_flow.services.dicom.config_snapshot import SnapshotWriter
from clara_flow.services.dicom.grouping.grouper import Grouper
from clara_flow.services.dicom.listener_config import ListenerConfigFile
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.wire.listener import ListenerOptions

RETRIEVE, PACS = "RETRIEVE", "PACS"


class Receiving:
    """A platform with a listener and a grouper that run."""

    def __init__(self, house: House, listening: Listening) -> None:
        self.house, self.port = house, listening.port
        self.spool = Places.of(house.settings).spool

    def configure(
        self, *, title: str | None = RETRIEVE, sources: Sequence[str] = (PACS, AE_TITLE), **more: str
    ) -> None:
        """The AE title that C-MOVE sends to, and who may send."""
        if title is not None:
            row = AeTitle(name="for-requests", ae_title=title, processor="retrieve", processor_settings=more)
            dicom_config.add_aetitle(self.house.engine, row)
        for source in sources:
            dicom_config.add_source(self.house.engine, SourceNode(ae_title=source, host="127.0.0.1"))
        SnapshotWriter(self.house.engine, Places.of(self.house.settings).listener_config).look()

    def submit(self, port: int, *inputs: dict[str, Any], called: str = PACS) -> None:
        """A request `t-1` for that node."""
        node = {"interface": "DIMSE", "connectionDetails": {"uri": f"dimse://{called}@127.0.0.1:{port}"}}
        inference.submit(self.house.engine, "t-1", request_body(*inputs, resources=[node]))

    def files(self) -> list[Path]:
        """What lies in the spool."""
        return sorted(self.spool.rglob("*.dcm"))


@pytest.fixture
def receiving(house: House, tmp_path: Path) -> Iterator[Receiving]:
    here = with_pipeline(house, tmp_path)
    places = Places.of(here.settings)
    options = ListenerOptions(
        number=0, host="127.0.0.1", port=0, spool=places.spool, config=places.listener_config,
        heartbeats=tmp_path / "heartbeats", fsync=False, watermark_percent=100, reserve_mib=0, idle_timeout_s=20,
    )  # fmt: skip
    SnapshotWriter(here.engine, places.listener_config).look()
    stop, grouper = threading.Event(), Grouper(here, places.spool)
    thread = threading.Thread(target=grouper.run, args=(stop,))
    with ExitStack() as stack:
        listening = Listening(options, ListenerConfigFile(places.listener_config).current())
        stack.callback(listening.stop)
        thread.start()
        stack.callback(thread.join, 30)
        stack.callback(stop.set)
        yield Receiving(here, listening)
    assert not thread.is_alive()


class MoveOnly:
    """An archive of pynetdicom that has C-MOVE and no C-GET.

    fails       how many of its next sub-operations fail. before: called before each instance is sent.
    """

    def __init__(self, instances: Sequence[Dataset], port: int) -> None:
        self.instances, self.destination = list(instances), port
        self.fails = 0
        self.knows = RETRIEVE
        self.asked: list[tuple[str, str]] = []
        self.before: Callable[[int], None] = lambda number: None

    def move(self, event: evt.Event) -> Iterator[Any]:
        query = event.identifier
        self.asked.append((event.move_destination, query.QueryRetrieveLevel))
        if event.move_destination != self.knows:
            yield None, None
            return
        yield "127.0.0.1", self.destination, {"contexts": StoragePresentationContexts[:100]}
        keys = [key for key in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID") if key in query]
        found = [one for one in self.instances if all(one[key].value == query[key].value for key in keys)]
        yield len(found)
        for number, one in enumerate(found):
            self.before(number)
            if self.fails:
                self.fails -= 1
                one = Dataset()  # no instance: its sub-operation fails
                one.PatientID = "P1"
            yield 0xFF00, one


@contextmanager
def move_only(instances: Sequence[Dataset], port: int) -> Iterator[tuple[MoveOnly, int]]:
    """It runs on the port that is given, until the end of the block."""
    archive = MoveOnly(instances, port)
    node = AE(ae_title=PACS)
    node.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
    node.add_requested_context(CTImageStorage)
    server = node.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_MOVE, archive.move)])
    assert server is not None
    try:
        yield archive, server.server_address[1]
    finally:
        server.shutdown()


def names(instances: Sequence[Dataset]) -> set[str]:
    return {f"dcm/{one.SOPInstanceUID}.dcm" for one in instances}


@pytest.mark.parametrize("what", ["study", "instance"])
def test_what_c_move_brings_is_in_the_payload_and_no_copy(receiving: Receiving, what: str) -> None:
    study = slices(series=(2, 1))
    receiving.configure()
    with move_only([*study, *slices()], receiving.port) as (archive, port), working(receiving.house):
        receiving.submit(port, study_input(study) if what == "study" else instance_input(study[1]))
        row = wait_for_end(receiving.house)
    assert (row.status, row.message) == (InferenceStatus.SUCCESS, "")
    wanted = study if what == "study" else study[1:2]
    assert set(payload_files(receiving.house, row)) == names(wanted)
    assert archive.asked == [(RETRIEVE, "STUDY" if what == "study" else "IMAGE")]
    folder = receiving.house.store.folder(row.payload_id).input
    assert {path.stat().st_ino for path in folder.rglob("*.dcm")} == {path.stat().st_ino for path in receiving.files()}
    assert [group.state for group in groups.list_groups(receiving.house.engine)] == [GroupState.OPEN]


def test_what_nobody_asked_for_leaves_the_spool_without_a_job(receiving: Receiving) -> None:
    receiving.configure(timeout="0")
    with move_only([], receiving.port) as (_, port):
        del port
        node = AE(ae_title=PACS)
        node.add_requested_context(CTImageStorage)
        association = node.associate("127.0.0.1", receiving.port, ae_title=RETRIEVE)
        assert [association.send_c_store(one).Status for one in slices()] == [0, 0]
        association.release()
    engine = receiving.house.engine
    eventually(lambda: [one.state for one in groups.list_groups(engine)] == [GroupState.DISCARDED], within_s=30)
    eventually(lambda: receiving.files() == [], within_s=30)


def test_what_failed_is_asked_for_again(receiving: Receiving) -> None:
    study = slices(series=(3,))
    receiving.configure()
    with move_only(study, receiving.port) as (archive, port):
        archive.fails = 1
        receiving.submit(port, study_input(study))
        with working(receiving.house):
            row = wait_for_end(receiving.house)
    assert (row.status, row.attempts, row.message) == (InferenceStatus.SUCCESS, 1, "")
    assert set(payload_files(receiving.house, row)) == names(study)
    assert len(archive.asked) == 2


def test_after_the_last_try_the_job_has_what_came_and_the_request_says_so(receiving: Receiving) -> None:
    study = slices(series=(3,))
    receiving.configure()
    with move_only(study, receiving.port) as (archive, port):
        archive.before = lambda number: setattr(archive, "fails", 1 if number == 1 else 0)
        receiving.submit(port, study_input(study))
        with working(receiving.house):
            row = wait_for_end(receiving.house)
    assert row.status is InferenceStatus.SUCCESS
    assert (
        "DIMSE resource 1: it does not take C-GET; it could not send 1 instances to our AE title RETRIEVE"
        in row.message
    )
    assert len(payload_files(receiving.house, row)) == 2
    assert study[0].PatientID not in row.message


@pytest.mark.parametrize(
    ("facts", "knows", "told"),
    [
        ({"title": None}, RETRIEVE, "add one with the processor 'retrieve'"),
        ({}, "ANOTHER", "does not know our AE title RETRIEVE, or cannot send to it: register it there"),
        ({"sources": ()}, RETRIEVE, "(clara-flow dicom source add)"),
    ],
)
def test_what_is_not_set_up_is_told(receiving: Receiving, facts: dict[str, Any], knows: str, told: str) -> None:
    study = slices()
    receiving.configure(**facts)
    with move_only(study, receiving.port) as (archive, port):
        archive.knows = knows
        receiving.submit(port, study_input(study))
        with working(receiving.house):
            row = wait_for_end(receiving.house)
    assert row.status is InferenceStatus.FAIL
    assert told in row.message


def test_a_worker_that_ends_in_the_middle_leaves_the_request_to_the_next_one(receiving: Receiving) -> None:
    study = slices(series=(3,))
    receiving.configure()
    reached, go_on = threading.Event(), threading.Event()

    def hold(number: int) -> None:
        if number == 2 and not go_on.is_set():
            reached.set()
            go_on.wait(60)

    with move_only(study, receiving.port) as (archive, port):
        archive.before = hold
        receiving.submit(port, study_input(study))
        try:
            with working(receiving.house):
                assert reached.wait(60)
                eventually(lambda: row_of(receiving.house).message == "2 of 3 instances came by C-MOVE", within_s=30)
            assert row_of(receiving.house).state is InferenceState.IN_PROCESS
        finally:
            go_on.set()
        with working(receiving.house):
            row = wait_for_end(receiving.house)
    assert (row.status, row.attempts) == (InferenceStatus.SUCCESS, 0)
    assert set(payload_files(receiving.house, row)) == names(study)


def test_an_archive_that_says_nothing_is_given_up(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    study = slices()
    receiving.configure()
    monkeypatch.setattr(inference_move, "SILENCE_S", 1.0)
    go_on = threading.Event()
    with move_only(study, receiving.port) as (archive, port):
        archive.before = lambda number: go_on.wait(60) and None
        receiving.submit(port, study_input(study))
        try:
            with working(receiving.house):
                row = wait_for_end(receiving.house)
        finally:
            go_on.set()
    assert row.status is InferenceStatus.FAIL
    assert "it said nothing and sent nothing for 1 s during C-MOVE" in row.message


def test_a_node_that_has_neither_is_told(receiving: Receiving) -> None:
    receiving.configure()
    node = AE(ae_title=PACS)
    node.add_supported_context(CTImageStorage)
    server = node.start_server(("127.0.0.1", 0), block=False)
    assert server is not None
    try:
        receiving.submit(server.server_address[1], study_input(slices()))
        with working(receiving.house):
            row = wait_for_end(receiving.house)
    finally:
        server.shutdown()
    assert "DIMSE resource 1: it does not take C-GET; it does not take C-MOVE" in row.message


@pytest.mark.parametrize("may_get", [False, True])
def test_orthanc_by_c_move_where_it_gives_nothing_by_c_get(receiving: Receiving, tmp_path: Path, may_get: bool) -> None:
    study = slices(series=(3, 2))
    receiving.configure()
    with orthanc_fixture.running(tmp_path / "orthanc", DicomAlwaysAllowGet=may_get) as pacs:
        pacs.knows_node("clara", RETRIEVE, receiving.port)
        for one in study:
            pacs.web.post("/instances", content=encoded(one)).raise_for_status()
        receiving.submit(pacs.port, {"type": "DICOM_PATIENT_ID", "PatientID": "P1"}, called=AE_TITLE)
        with working(receiving.house):
            row = wait_for_end(receiving.house)
    assert (row.status, row.message) == (InferenceStatus.SUCCESS, "")
    assert set(payload_files(receiving.house, row)) == names(study)
    assert len(receiving.files()) == (0 if may_get else 5)
