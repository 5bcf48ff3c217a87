"""Identifiers of a patient that nobody should tell, and every door through which they come in."""

from __future__ import annotations

import http.server
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dicom_mpps import begun, performed, tell
from dicom_peers import ROOT, associate, data_set_bytes, store, study_of
from platform_fixture import free_port
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import Tag
from services.dicom.adapter.adapter_world import AdapterWorld
from services.dicom.wire import scripted_peer as wire
from tiny.pipelines import scripted, write_definition

from clara_flow.deployments.trigger import compile_definition
from clara_flow.records import pipelines

CT = "1.2.840.10008.5.1.4.1.1.2"
MARK = b"zqx"  # in every part of every planted value, in some case
BORN = "19030609"
RULED, STUDY_DATE = "QDXDescription", "19470311"  # of attributes that rules may ask for: tables have them, nothing else
FILE_NAME = "ZQX-Surname-ZQXGiven"
SAYING = "ZQXSurname, ZQXGiven (ZQX-PATIENT-ID), born 1903-06-09"  # what peers and libraries say of a patient
QUERIES = {
    "/dicom-web/studies": {"PatientName": "ZQXSURNAME*", "PatientBirthDate": BORN},
    "/dicom-web/instances": {"PatientID": "ZQX-PATIENT-ID"},
    "/dicom-web/series": {"AccessionNumber": "ZQXACCESSION", "NoSuchAttribute": "ZQXVALUE"},
    "/dicom-web/studies/ZQX-PATIENT-ID": {},
    "/dicom-web/studies/ZQX-PATIENT-ID/series/ZQX/instances/ZQX": {},
    "/dicom-web/studies/ZQX-PATIENT-ID/metadata": {},
    "/dicom-web/ZQXSURNAME/studies": {},
    "/api/inference/status/ZQX-PATIENT-ID": {},
    "/api/tasks/ZQX-PATIENT-ID": {},
    "/api/tasks/ZQX_SURNAME/pending": {},
    "/api/config/claraaetitle/ZQXSURNAME": {},
    "/ZQX-PATIENT-ID": {"ZQXSurname": SAYING},
}


@pytest.fixture
def anything_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values are not all valid; the senders of the test do not mind."""
    import pydicom.config

    monkeypatch.setattr(pydicom.config.settings, "_writing_validation_mode", pydicom.config.IGNORE)
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)


def plant(made: FileDataset) -> FileDataset:
    """Identifiers in every attribute that holds some, a few of them not as the standard has them."""
    made.PatientName, made.PatientID = "ZQXSurname^ZQXGiven", "ZQX-PATIENT-ID"
    made.PatientBirthDate, made.PatientBirthTime = BORN, "zqx noon"
    made.OtherPatientIDs, made.OtherPatientNames = ["ZQXOTHER1", "ZQXOTHER2"], "ZQXMaiden"
    made.PatientAddress, made.PatientAge = "ZQX Street 1", "ZQXAGE"
    made.AccessionNumber, made.StudyID = "ZQXACCESSION-LONGER-THAN-ALLOWED", "ZQXSTUDYID"
    made.InstitutionName, made.InstitutionAddress = "ZQX Hospital", "ZQX Avenue"
    made.ReferringPhysicianName, made.OperatorsName = "ZQXDoctor", "ZQXOperator"
    made.StudyDescription = made.ProtocolName = RULED
    made.StudyDate = STUDY_DATE
    made.PatientComments = "ZQX was here"
    made.SeriesDate, made.AcquisitionTime = "zqx-date", "zqx-time"
    for keyword in ("PatientWeight", "SliceThickness"):  # as text that is no number
        tag = Tag(keyword)
        made[tag] = RawDataElement(tag, "DS", 6, b"zqx kg", 0, is_implicit_VR=False, is_little_endian=True)
    made.private_block(0x0011, "ZQXMAKER", create=True).add_new(0x01, "LO", "ZQXPRIVATE")
    return made


def planted(count: int = 2) -> list[FileDataset]:
    return [plant(made) for made in study_of(count)]


def written(made: FileDataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def refused_on_the_wire(adapter: AdapterWorld, called: str) -> None:
    """Associations, commands and commitment requests that are refused."""
    associate(adapter.port, "ZQXNOBODY").abort()
    associate(adapter.port, called, calling="ZQXSURNAME").abort()
    with wire.ScriptedPeer(adapter.port) as peer:
        identity = wire.user_identity(2, b"ZQXSurname", b"ZQX-PATIENT-ID")
        contexts = wire.context(1, CT, wire.EXPLICIT), wire.context(3, wire.COMMITMENT, wire.EXPLICIT)
        peer.associate(*contexts, called=called.encode(), user=wire.user_information(identity))
        data = data_set_bytes(planted(1)[0])
        assert peer.store(wire.store_rq(CT, "ZQX-PATIENT-ID"), data) != 0
        assert peer.store(wire.store_rq(CT, "1.2.3.4"), data) != 0
        information = Dataset()
        information.TransactionUID = "ZQX-PATIENT-ID"
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, "ZQX.1"
        information.ReferencedSOPSequence = [item]
        action = {
            0x0003: wire.COMMITMENT, 0x0100: 0x0130, 0x0110: 3, 0x0800: 0, 0x1001: "1.2.840.10008.1.20.1.1", 0x1008: 1,
        }  # fmt: skip
        command = wire.command_set(action)
        assert peer.store(command, wire.encoded(information, wire.EXPLICIT), context_id=3) != 0
        action[0x1001] = "ZQX-PATIENT-ID"
        assert peer.store(wire.command_set(action), b"", context_id=3) != 0
        peer.send(wire.data_pdu(1, b"ZQX is no command", command=True))
        peer.read_pdu()


def send_by_every_door(adapter: AdapterWorld, pipeline: str, folder: Path) -> list[str]:
    """A study by C-STORE to an AE title that groups by patient, one by STOW-RS, one by the watched folder, each with
    something that is refused; the AE titles."""
    listener, web, inbox = (
        adapter.aetitle(pipeline, groupBy="0010,0020"),
        adapter.aetitle(pipeline),
        adapter.aetitle(pipeline),
    )
    broken = planted(1)[0]
    broken.StudyInstanceUID = "ZQX no UID"
    broken.SeriesInstanceUID = ""
    assert store(adapter.port, listener, [*planted(), broken])[:2] == [0, 0]
    refused_on_the_wire(adapter, listener)

    parts = [written(made, folder / f"{n}.dcm").read_bytes() for n, made in enumerate([*planted(), broken])]
    head = f'Content-Type: application/dicom\r\nContent-Disposition: attachment; filename="{FILE_NAME}"\r\n\r\n'
    body = b"".join(b"--zqx\r\n" + head.encode() + part + b"\r\n" for part in parts)
    kind = {"content-type": 'multipart/related; type="application/dicom"; boundary=zqx', "user-agent": SAYING}
    body += b"--zqx\r\nContent-Type: application/dicom\r\n\r\nZQX is no DICOM\r\n--zqx--"
    answer = adapter.gateway.post(f"/dicom-web/{web}/studies", content=body, headers=kind)
    assert answer.status_code == 202
    odd = b"--zqx\r\nContent-Type: zqx/surname\r\n\r\nZQX\r\n--zqx--"
    assert adapter.gateway.post(f"/dicom-web/{web}/studies", content=odd, headers=kind).status_code == 400
    assert adapter.gateway.post(f"/dicom-web/{web}/studies/ZQX-PATIENT-ID", content=body, headers=kind).is_error
    assert adapter.gateway.post("/dicom-web/ZQXSURNAME/studies", content=body, headers=kind).is_error

    place = adapter.settings.dicom_inbox
    assert place is not None
    for number, made in enumerate([*planted(), broken]):
        written(made, place / inbox / FILE_NAME / f"{FILE_NAME}-{number}.dcm")
    (place / inbox / f"{FILE_NAME}.txt").write_text("ZQX is no DICOM")
    written(planted(1)[0], place / "ZQX-SURNAME" / "1.dcm")
    return [listener, web, inbox]


def tell_of_steps(adapter: AdapterWorld, aetitle: str, study: list[FileDataset]) -> None:
    """A modality's words on a study (MPPS), with all that it says of a patient, and words that are refused."""
    step = f"{ROOT}.5.{uuid.uuid4().int % 10**30}"
    begin = begun(str(study[0].StudyInstanceUID))
    begin.PatientName, begin.PatientID, begin.PatientBirthDate = "ZQXSurname^Given", "ZQX-PATIENT-ID", BORN
    begin.PerformedProcedureStepID, begin.StudyID = "ZQXSTEP", "ZQXSTUDYID"
    item = begin.ScheduledStepAttributesSequence[0]
    item.AccessionNumber, item.RequestedProcedureID, item.PatientComments = "ZQXACCESSION", "ZQXPROC", "ZQX was here"
    end = performed("COMPLETED", {str(study[0].SeriesInstanceUID): [str(one.SOPInstanceUID) for one in study]})
    series = end.PerformedSeriesSequence[0]
    series.OperatorsName, series.PerformingPhysicianName, series.ProtocolName = "ZQXOp", "ZQXDoctor", "ZQX Protocol"
    assert tell(adapter.port, aetitle, step, begin, begins=True).Status == 0
    assert tell(adapter.port, aetitle, step, begin, begins=True).Status == 0x0111
    assert tell(adapter.port, aetitle, step, end).Status == 0
    assert tell(adapter.port, aetitle, step, end).Status == 0x0110
    begin.PerformedProcedureStepStatus = "ZQXSTATUS"
    assert tell(adapter.port, aetitle, f"{step}.1", begin, begins=True).Status == 0x0106
    item.StudyInstanceUID = "ZQX no UID"
    begin.PerformedProcedureStepStatus = "IN PROGRESS"
    assert tell(adapter.port, aetitle, f"{step}.1", begin, begins=True).Status == 0x0106
    begin.ScheduledStepAttributesSequence = None
    assert tell(adapter.port, aetitle, f"{step}.1", begin, begins=True).Status == 0x0121


def ask_for_a_patient(adapter: AdapterWorld, folder: Path, gossip: int) -> list[str]:
    """Inference requests for a patient, from a peer that is away and from one that talks, and some that cannot be read;
    the requests' ids."""
    compiled = compile_definition(adapter.settings, write_definition(folder / "asked.yaml", scripted("a")), {})
    row = pipelines.create_pipeline(
        adapter.engine, name="asked", definition=compiled.text, plan=compiled.plan.model_dump(mode="json")
    )
    away = f"http://127.0.0.1:{free_port()}/ZQX-PATIENT-ID"
    talking = f"http://127.0.0.1:{gossip}/ZQX-PATIENT-ID"
    wanted: list[tuple[str, str, str, dict[str, Any]]] = [
        ("DICOMweb", away, "DICOM_PATIENT_ID", {"PatientID": "ZQX-PATIENT-ID"}),
        ("DICOMweb", talking, "ACCESSION_NUMBER", {"accessionNumber": ["ZQXACCESSION"]}),
        ("FHIR", talking, "FHIR_RESOURCE", {"resources": [{"resourceType": "Patient", "id": "ZQX-PATIENT-ID"}]}),
        ("DIMSE", f"dimse://ZQXSURNAME@127.0.0.1:{free_port()}", "DICOM_PATIENT_ID", {"PatientID": "ZQX-PATIENT-ID"}),
    ]
    ids = []
    for interface, uri, kind, values in wanted:
        ids.append(uuid.uuid4().hex)
        body = {
            "transactionID": ids[-1],
            "inputMetadata": {"details": {"type": kind, **values}},
            "inputResources": [
                {"interface": "Algorithm", "connectionDetails": {"name": "asked", "id": str(row.id)}},
                {"interface": interface, "connectionDetails": {"uri": uri, "operations": ["QUERY"]}},
            ],
        }
        answer = adapter.gateway.post("/api/inference", json=body)
        assert answer.status_code == 200, answer.text
    assert adapter.gateway.post("/api/inference", json={"PatientID": "ZQX-PATIENT-ID"}).status_code == 422
    assert adapter.gateway.post("/api/inference", content=b"{ZQX-PATIENT-ID").is_error
    return ids


def ask_the_gateway(adapter: AdapterWorld) -> None:
    """Questions with identifiers wherever one can put them, most of them wrong."""
    for path, query in QUERIES.items():
        answer = adapter.gateway.get(path, params=query)
        assert answer.status_code in {200, 204, 400, 404}, answer
        adapter.gateway.get(path, params=query, headers={"accept": "zqx/surname", "referer": f"http://{FILE_NAME}/"})
    for method, path in (("PUT", "/api/tasks/success/ZQX"), ("DELETE", "/api/config/claraaetitle/ZQXSURNAME")):
        assert adapter.gateway.request(method, path).is_error
    with socket.create_connection(("127.0.0.1", adapter.settings.gateway_port), timeout=10) as peer:
        peer.sendall(b"ZQXSurname\xff /ZQX-PATIENT-ID\r\n\r\n")
        assert b" 200 " not in peer.recv(65536)


class _Gossip(http.server.BaseHTTPRequestHandler):
    """Refuses everything, and tells of a patient in every way that HTTP has."""

    def do_GET(self) -> None:
        self._refuse()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self._refuse()

    def _refuse(self) -> None:
        body = b'{"00081198": "' + SAYING.encode() + b'", "detail": "' + SAYING.encode() + b'"}'
        self.send_response(400, SAYING)
        for name, value in {
            "Content-Type": "application/zqxsurname", "Content-Length": str(len(body)), "Warning": f'299 - "{SAYING}"',
            "Content-Disposition": f"attachment; filename={FILE_NAME}", "Location": "http://ZQXSURNAME/", "X-ZQX": "1",
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_: object) -> None:
        """Nowhere."""


@contextmanager
def gossip() -> Iterator[int]:
    """The port of an HTTP server that does."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Gossip) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


def refusing_with_a_comment(*_: object) -> Dataset:
    """What an SCP answers that tells of a patient (PS3.7 Annex C: Error Comment)."""
    answer = Dataset()
    answer.Status, answer.ErrorComment = 0xA900, SAYING
    return answer
