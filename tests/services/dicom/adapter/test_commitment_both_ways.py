"""Storage commitment through the whole adapter, both ways, each report on an association of its own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from dicom_peers import MODALITY, produced, study_of
from orthanc_fixture import Orthanc
from platform_fixture import free_port
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.sop_class import StorageCommitmentPushModel
from services.dicom.adapter.adapter_world import AdapterWorld, answering, registering
from services.dicom.export import peers
from waiting import eventually

from clara_flow.records import commitment_reports, dicom_config
from clara_flow.records.delivery_queries import list_items
from clara_flow.records.dicom_models import DeliveryState, Destination, ItemState, SourceNode

INSTANCE = "1.2.840.10008.1.20.1.1"
SETTLED_S = 60.0


class LaterReporter:
    """A PACS that answers N-ACTION, and reports on an association that it opens to our listener."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.statuses: list[int] = []

    def __call__(self, event: evt.Event) -> tuple[int, None]:
        threading.Thread(target=self.report, args=(event.action_information,)).start()
        return 0, None

    def report(self, request: Dataset) -> None:
        association = AE(ae_title="PEER").associate(
            "127.0.0.1",
            self.port,
            [build_context(StorageCommitmentPushModel)],
            ae_title="ClaraSCU",
            ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)],
        )
        information = Dataset()
        information.TransactionUID = request.TransactionUID
        information.ReferencedSOPSequence = request.ReferencedSOPSequence
        status, _ = association.send_n_event_report(information, 1, StorageCommitmentPushModel, INSTANCE)
        self.statuses.append(status.get("Status", -1))
        association.release()


def committing(adapter: AdapterWorld, port: int, **keys: Any) -> str:
    """A destination that is asked for commitment, known to the listeners. Its name."""
    name = adapter.destination(port, storage_commitment=True, **keys)
    row = dicom_config.get_destination(adapter.engine, name)
    eventually(lambda: f'"ae_title": "{row.ae_title}"' in adapter.places.listener_config.read_text())
    return name


def is_committed(adapter: AdapterWorld, destination: str) -> bool:
    """Whether its one delivery is, with all files."""
    [delivery] = adapter.deliveries(destination)
    states = {item.state for item in list_items(adapter.engine, delivery)}
    return delivery.state is DeliveryState.SUCCEEDED and states == {ItemState.COMMITTED}


def test_a_pacs_reports_on_an_association_of_its_own(adapter: AdapterWorld) -> None:
    reporter = LaterReporter(adapter.port)
    with peers.scp(classes=[CTImageStorage], commitment=reporter) as pacs:
        destination = committing(adapter, pacs.port)
        aetitle = adapter.aetitle(adapter.pipeline(answering(), registering("answer", destination)))
        adapter.send(aetitle, study_of(3))
        adapter.completed(aetitle, 1)
        eventually(lambda: is_committed(adapter, destination), within_s=SETTLED_S)
    assert reporter.statuses == [0]
    assert len(pacs.received) == 3


def test_a_modality_that_does_not_wait_is_told(adapter: AdapterWorld) -> None:
    told: list[tuple[int, Dataset]] = []

    def report(event: evt.Event) -> tuple[int, None]:
        told.append((event.event_type, event.event_information))
        return 0, None

    port, study = free_port(), study_of(2)
    modality = AE(ae_title=MODALITY)
    modality.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    server = modality.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, report)])
    row = Destination(name="MOD-CONSOLE", ae_title=MODALITY, host="127.0.0.1", port=port)
    dicom_config.add_destination(adapter.engine, row)
    try:
        aetitle = adapter.aetitle()
        contexts = [build_context(CTImageStorage, ExplicitVRLittleEndian), build_context(StorageCommitmentPushModel)]
        association = modality.associate("127.0.0.1", adapter.port, contexts, ae_title=aetitle)
        assert {association.send_c_store(one).Status for one in study} == {0}
        asked = Dataset()
        asked.TransactionUID = generate_uid()
        asked.ReferencedSOPSequence = [_reference(one) for one in study]
        status, _ = association.send_n_action(asked, 1, StorageCommitmentPushModel, INSTANCE)
        association.abort()  # the report on this association has no chance
        assert status.Status == 0
        eventually(lambda: told, within_s=SETTLED_S)
        eventually(lambda: not commitment_reports.list_reports(adapter.engine), within_s=SETTLED_S)
    finally:
        server.shutdown()
        dicom_config.delete_destination(adapter.engine, row.name)
    event_type, information = told[0]
    assert (event_type, information.TransactionUID) == (1, asked.TransactionUID)
    kept = {item.ReferencedSOPInstanceUID for item in information.ReferencedSOPSequence}
    assert kept == {one.SOPInstanceUID for one in study}


def _reference(one: FileDataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = one.SOPClassUID, one.SOPInstanceUID
    return reference


def test_orthanc_commits_itself(adapter: AdapterWorld, orthanc: Orthanc) -> None:
    orthanc.knows_node("clara", "ClaraSCU", adapter.port, AllowStorageCommitment=True)
    destination = committing(adapter, orthanc.port, ae_title=orthanc.ae_title)
    aetitle, study = adapter.aetitle(adapter.pipeline(answering(), registering("answer", destination))), study_of(3)
    adapter.send(aetitle, study)
    adapter.completed(aetitle, 1)
    eventually(lambda: is_committed(adapter, destination), within_s=SETTLED_S)
    dicom_config.delete_destination(adapter.engine, destination)
    found = {one["MainDicomTags"]["SOPInstanceUID"] for one in orthanc.web.get("/instances?expand").json()}
    assert found == {produced(str(one.SOPInstanceUID)) for one in study}


def test_orthanc_asks_and_is_told(adapter: AdapterWorld, orthanc: Orthanc, tmp_path: Path) -> None:
    aetitle, study = adapter.aetitle(), study_of(2)
    orthanc.knows_node("clara", aetitle, adapter.port, AllowStorageCommitment=True)
    row = Destination(name="ORTHANC-ASKS", ae_title=orthanc.ae_title, host="127.0.0.1", port=orthanc.port)
    dicom_config.add_source(adapter.engine, SourceNode(ae_title=orthanc.ae_title, host="127.0.0.1"))
    dicom_config.add_destination(adapter.engine, row)
    eventually(lambda: orthanc.ae_title in adapter.places.listener_config.read_text())
    try:
        stored = []
        for one in study:
            one.save_as(tmp_path / "one.dcm", enforce_file_format=True)
            stored.append(orthanc.upload(tmp_path / "one.dcm"))
        question = {"Resources": stored, "StorageCommitment": True, "Synchronous": True}
        transaction = orthanc.ask("/modalities/clara/store", question)["StorageCommitmentTransactionUID"]

        def report() -> dict[str, Any]:
            found: dict[str, Any] = orthanc.web.get(f"/storage-commitment/{transaction}").raise_for_status().json()
            return found

        eventually(lambda: report()["Status"] != "Pending", within_s=SETTLED_S)
        told = report()
        assert told["Status"] == "Success", told
        assert {one["SOPInstanceUID"] for one in told["Success"]} == {str(one.SOPInstanceUID) for one in study}
        eventually(lambda: not commitment_reports.list_reports(adapter.engine), within_s=SETTLED_S)
    finally:
        dicom_config.delete_destination(adapter.engine, row.name)
        dicom_config.delete_source(adapter.engine, orthanc.ae_title)
