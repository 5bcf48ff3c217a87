"""Inference requests, from the POST to the job: DICOMweb, FHIR and a real C-GET server; restarts, retries, faults."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI, Request, Response
from platform_fixture import free_port
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
from services.dicom.web.studies import Archive, application, encoded, slices
from services.gateway.serving import client, served
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.records import inference, jobs, pipelines
from clara_flow.records.dicom_models import InferenceState, InferenceStatus
from clara_flow.services import problems
from clara_flow.services.dicom import inference_routes
from clara_flow.services.dicom.grouping.pipelines import Pipelines
from clara_flow.services.dicom.inference import OUTPUTS

SECRET = base64.b64encode(b"user:secret").decode()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers are on this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def here(house: House, tmp_path: Path) -> House:
    """A platform with one pipeline, whose retries do not wait."""
    return with_pipeline(house, tmp_path)


@pytest.fixture
def rest(here: House) -> Iterator[httpx.Client]:
    """A client of the API."""
    app = FastAPI()
    app.include_router(inference_routes.router(here))
    problems.install(app)
    with served(app, free_port()) as url, client(url) as asking:
        yield asking


class Peer:
    """A hospital's server: DICOMweb of ours behind a password, and FHIR resources. It counts, and fails when told."""

    def __init__(self, house: House) -> None:
        self.app = application(house)
        self.asked: list[str] = []
        self.fails: dict[str, int] = {}  # path's end -> how often

        @self.app.middleware("http")
        async def guard(request: Request, pass_on: Any) -> Response:
            self.asked.append(request.url.path)
            if request.headers.get("authorization") not in {f"Basic {SECRET}", f"Bearer {SECRET}"}:
                return Response(status_code=401)
            for end, left in self.fails.items():
                if request.url.path.endswith(end) and left:
                    self.fails[end] = left - 1
                    return Response(status_code=503)
            return await pass_on(request)  # type: ignore[no-any-return]

        @self.app.get("/fhir/{kind}/{number}")
        def resource(kind: str, number: str, request: Request) -> Response:
            accept = request.headers["accept"]
            return Response(f"{kind} {number} as {accept}", media_type=accept)


@pytest.fixture
def peer(archive: Archive) -> Peer:
    return Peer(archive.house)


@pytest.fixture
def address(peer: Peer) -> Iterator[str]:
    with served(peer.app, free_port()) as url:
        yield url


def request_of(address: str, *inputs: dict[str, Any], fhir: bool = False, **more: Any) -> dict[str, Any]:
    connection = {"uri": f"{address}/dicom-web", "authType": "Basic", "authID": SECRET}
    resources = [{"interface": "DICOMweb", "connectionDetails": connection}]
    if fhir:
        bearer = {"uri": f"{address}/fhir", "authType": "Bearer", "authID": SECRET}
        resources.append({"interface": "FHIR", "connectionDetails": bearer})
    outputs = [{"interface": "DICOMweb", "connectionDetails": connection}]
    return request_body(*inputs, resources=resources, outputResources=outputs, **more)


def test_a_request_becomes_a_job_with_all_of_its_inputs(
    here: House, rest: httpx.Client, archive: Archive, address: str
) -> None:
    one, other, third = slices(), slices(patient="P2"), slices(AccessionNumber="A1")
    for study in (one, other, third):
        archive.receive(study)
    body = request_of(
        address,
        study_input(one),
        {"type": "DICOM_PATIENT_ID", "PatientID": "P2"},
        {"type": "ACCESSION_NUMBER", "accessionNumber": ["A1"]},
        {"type": "FHIR_RESOURCE", "resources": [{"resourceType": "Patient", "id": "p-1"}]},
        {"type": "FHIR_RESOURCE", "fhirFormat": "Xml", "resources": [{"resourceType": "Condition", "id": "C2"}]},
        fhir=True,
    )
    answer = rest.post("/api/inference", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["transactionId"] == "t-1"
    before = rest.get("/api/inference/status/t-1").json()
    assert before["dicom"] == {"state": "Queued", "status": "Unknown"}
    assert before["platform"]["priority"] == "HIGHER"
    with working(here):
        row = wait_for_end(here)
    assert (row.status, row.message) == (InferenceStatus.SUCCESS, "")
    files = payload_files(here, row)
    assert {name: files.pop(name) for name in list(files) if name.startswith("ehr/")} == {
        "ehr/patient-p-1.json": b"Patient p-1 as application/fhir+json",
        "ehr/condition-c2.xml": b"Condition C2 as application/fhir+xml",
    }
    assert files == {f"dcm/{slice_.SOPInstanceUID}.dcm": encoded(slice_) for slice_ in (*one, *other, *third)}
    job = jobs.get_job(here.engine, answer.json()["jobId"])
    assert str(job.payload_id) == answer.json()["payloadId"]
    assert job.name.startswith("t-1-tiny-one-")
    assert job.metadata_["Source"] == "t-1"
    assert "uri" in job.metadata_[OUTPUTS]
    status = rest.get(f"/api/inference/status/{answer.json()['jobId']}").json()
    assert status["transactionId"] == "t-1"
    assert status["dicom"] == {"state": "Completed", "status": "Success"}
    assert (status["platform"]["state"], status["platform"]["jobId"]) == ("PENDING", str(job.id))
    assert not list((here.settings.data_dir / "dicom" / "inference").iterdir())


def test_secrets_are_forgotten_and_in_no_metadata(
    here: House, rest: httpx.Client, archive: Archive, address: str
) -> None:
    study = slices()
    archive.receive(study)
    assert rest.post("/api/inference", json=request_of(address, study_input(study))).status_code == 200
    assert SECRET not in str(row_of(here).body["outputResources"])
    with working(here):
        row = wait_for_end(here)
    assert SECRET not in str(row.body)
    assert SECRET in str(row.outputs)  # deliveries still need it
    assert SECRET not in str(jobs.get_job(here.engine, str(row.job_id)).metadata_)


def test_the_same_request_again_is_the_same_job_and_another_one_is_refused(rest: httpx.Client) -> None:
    body = request_of("http://nowhere", {"type": "DICOM_UID", "studies": [{"StudyInstanceUID": "1.2"}]})
    first, again = (rest.post("/api/inference", json=body) for _ in range(2))
    assert again.json() == first.json()
    other = rest.post("/api/inference", json=body | {"priority": 1})
    assert (other.status_code, other.headers["content-type"]) == (409, "application/problem+json")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"transactionID": ""}, 422),
        ({"priority": 300}, 422),
        ({"inputMetadata": {}}, 422),
        ({"inputResources": [{"interface": "Algorithm", "connectionDetails": {"id": "nothing"}}]}, 422),
    ],
)
def test_what_cannot_be_done_is_422(rest: httpx.Client, change: dict[str, Any], status: int) -> None:
    body = request_of("http://nowhere", {"type": "DICOM_PATIENT_ID", "PatientID": "Doe"})
    answer = rest.post("/api/inference", json=body | change)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert "Doe" not in answer.text


def test_an_unknown_pipeline_is_422_and_other_bodies_are_no_requests(rest: httpx.Client) -> None:
    body = request_of("http://nowhere", {"type": "DICOM_PATIENT_ID", "PatientID": "Doe"})
    body["inputResources"][0]["connectionDetails"]["id"] = str(uuid.uuid4())
    assert rest.post("/api/inference", json=body).status_code == 422
    assert rest.post("/api/inference", json=[1]).status_code == 422
    assert rest.get("/api/inference/status/nothing").status_code == 404
    assert rest.get(f"/api/inference/status/{uuid.uuid4()}").status_code == 404


def test_outputs_that_get_nothing_are_told(here: House, rest: httpx.Client, archive: Archive, address: str) -> None:
    study = slices()
    archive.receive(study)
    fhir = {"interface": "FHIR", "connectionDetails": {"uri": "http://fhir.example"}}
    body = request_of(address, study_input(study))
    body["outputResources"].append(fhir)
    assert rest.post("/api/inference", json=body).status_code == 200
    with working(here):
        row = wait_for_end(here)
    assert row.status is InferenceStatus.SUCCESS
    assert row.message == "outputResources[1] gets nothing: results go to DICOMweb alone"


def test_a_pipeline_is_named_by_its_id_or_name_and_never_by_a_file(here: House, rest: httpx.Client) -> None:
    known = Pipelines(here)
    registered = known.named("tiny")
    assert registered.plan.name == "tiny"
    newest = pipelines.newest_named(here.engine, "tiny")
    assert newest is not None
    assert known.named(str(newest.id)) == registered
    assert known.named("brain-extraction").plan.name == "brain-extraction"
    body = request_of("http://nowhere", {"type": "DICOM_PATIENT_ID", "PatientID": "Doe"})
    body["inputResources"][0]["connectionDetails"]["id"] = str(here.settings.data_dir.parent / "tiny.yaml")
    assert rest.post("/api/inference", json=body).status_code == 422


def test_what_was_fetched_is_not_fetched_again(here: House, archive: Archive, peer: Peer, address: str) -> None:
    one, other = slices(), slices()
    archive.receive(one)
    archive.receive(other)
    peer.fails = {other[0].StudyInstanceUID: 2}
    inference.submit(here.engine, "t-1", request_of(address, study_input(one), study_input(other)))
    with working(here):
        row = wait_for_end(here)
    assert (row.status, row.attempts) == (InferenceStatus.SUCCESS, 2)
    assert len(payload_files(here, row)) == 4
    assert sum(path.endswith(one[0].StudyInstanceUID) for path in peer.asked) == 1
    assert sum(path.endswith(other[0].StudyInstanceUID) for path in peer.asked) == 3


def test_after_the_last_try_the_job_gets_what_there_is(here: House, archive: Archive, peer: Peer, address: str) -> None:
    one, other = slices(), slices()
    archive.receive(one)
    archive.receive(other)
    peer.fails = {other[0].StudyInstanceUID: 99}
    inference.submit(here.engine, "t-1", request_of(address, study_input(one), study_input(other)))
    with working(here):
        row = wait_for_end(here)
    assert row.status is InferenceStatus.SUCCESS
    assert "DICOMweb resource 1: the answer is 503" in row.message
    assert len(payload_files(here, row)) == 2


@pytest.mark.parametrize("what", ["nothing there", "nobody there", "wrong secret"])
def test_nothing_at_all_fails(here: House, peer: Peer, address: str, what: str) -> None:
    del peer
    body = request_of(address, {"type": "DICOM_PATIENT_ID", "PatientID": "Doe^Jane"})
    connection = body["inputResources"][1]["connectionDetails"]
    if what == "nobody there":
        connection["uri"] = f"http://127.0.0.1:{free_port()}"
    elif what == "wrong secret":
        connection["authID"] = "wrong"
    inference.submit(here.engine, "t-1", body)
    with working(here):
        row = wait_for_end(here)
    assert row.status is InferenceStatus.FAIL
    assert "DICOMweb resource 1" in row.message
    assert "Doe" not in row.message
    assert jobs.find_job(here.engine, row.job_id) is None


def test_a_request_that_a_killed_process_had_in_hand_goes_on(here: House, archive: Archive, address: str) -> None:
    study = slices()
    archive.receive(study)
    inference.submit(here.engine, "t-1", request_of(address, study_input(study)))
    inference.begin(here.engine, "t-1")
    half = here.settings.data_dir / "dicom" / "inference" / str(row_of(here).job_id) / "dcm"
    half.mkdir(parents=True)
    (half / ".half").write_bytes(b"half")
    here.store.create(row_of(here).payload_id)  # it was killed while it made the job
    with working(here):
        row = wait_for_end(here)
    assert row.status is InferenceStatus.SUCCESS
    assert len(payload_files(here, row)) == 2


def test_a_job_that_was_made_is_not_made_again(here: House, archive: Archive, address: str) -> None:
    study = slices()
    archive.receive(study)
    inference.submit(here.engine, "t-1", request_of(address, study_input(study)))
    with working(here):
        wait_for_end(here)
    with here.engine.begin() as connection:
        connection.execute(sa.text("UPDATE inference_requests SET state = 'InProcess', status = 'Unknown'"))
    with working(here):
        row = wait_for_end(here)
    assert row.status is InferenceStatus.SUCCESS
    with here.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM jobs")).scalar_one() == 1


def test_nothing_is_fetched_while_the_disk_is_short(here: House, archive: Archive, peer: Peer, address: str) -> None:
    study = slices()
    archive.receive(study)
    inference.submit(here.engine, "t-1", request_of(address, study_input(study)))
    short = replace(here, settings=here.settings.model_copy(update={"dicom_reserve_mib": 2**40}))
    with working(short):
        eventually(lambda: "nearly full" in row_of(here).message, within_s=30)
    row = row_of(here)
    assert (row.state, row.attempts, row.not_before is not None) == (InferenceState.QUEUED, 0, True)
    assert peer.asked == []


@contextmanager
def dcmqrscp(folder: Path, files: list[bytes]) -> Iterator[int]:
    """DCMTK's archive with these files, on the port that is given."""
    port = free_port()
    (folder / "db").mkdir(parents=True)
    (folder / "dcmqrscp.cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        "HostTable BEGIN\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nARCHIVE {folder / 'db'} RW (200, 1024mb) ANY\nAETable END\n"
    )
    environment = {**os.environ, "TCP_NODELAY": "1"}
    process = subprocess.Popen(["dcmqrscp", "-c", str(folder / "dcmqrscp.cfg")], env=environment)
    try:
        echo = ["echoscu", "-aec", "ARCHIVE", "127.0.0.1", str(port)]
        eventually(lambda: subprocess.run(echo, env=environment, capture_output=True).returncode == 0, within_s=20)
        for number, content in enumerate(files):
            (folder / f"{number}.dcm").write_bytes(content)
        subprocess.run(
            ["storescu", "-aec", "ARCHIVE", "127.0.0.1", str(port), *(str(path) for path in folder.glob("*.dcm"))],
            env=environment, check=True,
        )  # fmt: skip
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.skipif(shutil.which("dcmqrscp") is None, reason="needs DCMTK's dcmqrscp")
@pytest.mark.parametrize("what", ["study", "instance", "patient"])
def test_inputs_come_from_a_dicom_node_by_c_get(here: House, tmp_path: Path, what: str) -> None:
    study = slices(series=(2, 1))
    wanted = {
        "study": study_input(study),
        "patient": {"type": "DICOM_PATIENT_ID", "PatientID": "P1"},
        "instance": instance_input(study[1]),
    }
    with dcmqrscp(tmp_path / "archive", [encoded(one) for one in study]) as port:
        body = request_of("http://nowhere", wanted[what])
        body["inputResources"][1] = {
            "interface": "DIMSE",
            "connectionDetails": {"uri": f"dimse://ARCHIVE@127.0.0.1:{port}"},
        }
        inference.submit(here.engine, "t-1", body)
        with working(here):
            row = wait_for_end(here)
    assert (row.status, row.message) == (InferenceStatus.SUCCESS, "")
    expected = study[1:2] if what == "instance" else study
    assert set(payload_files(here, row)) == {f"dcm/{one.SOPInstanceUID}.dcm" for one in expected}
