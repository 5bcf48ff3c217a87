"""No patient's attribute is told anywhere: planted identifiers come in by every door, and nothing repeats one.

What is looked at: every file of the platform but instances and payloads themselves and the database's own, the tables,
what the gateway answers, what commands print, and all that Prefect was told.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pydicom.config
import pytest
import sqlalchemy as sa
from dicom_peers import ROOT, associate, store, study_of
from platform_fixture import clara_flow, free_port
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.tag import Tag
from services.dicom.adapter.adapter_world import SETTLED_S, AdapterWorld, answering, registering
from services.dicom.export import peers
from tiny.pipelines import scripted, write_definition
from waiting import eventually

from clara_flow.deployments.trigger import compile_definition
from clara_flow.records import pipelines
from clara_flow.records.dicom_models import DeliveryState, GroupState
from clara_flow.records.state_machine import JobState

CT = "1.2.840.10008.5.1.4.1.1.2"
MARK = b"zqx"  # in every planted value, in some case
BORN = "19030609"
FILE_NAME = "ZQX-Surname-Given"
TABLES = (
    "dicom_journals", "dicom_associations", "dicom_groups", "dicom_instances", "dicom_submissions", "deliveries",
    "delivery_items", "jobs", "job_operators", "pipelines", "payloads",
)  # fmt: skip
QUERIES = {
    "/dicom-web/studies": {"PatientName": "ZQXSURNAME*"},
    "/dicom-web/instances": {"PatientID": "ZQX-PATIENT-ID"},
    "/dicom-web/series": {"AccessionNumber": "ZQXACCESSION", "NoSuchAttribute": "ZQXVALUE"},
    "/dicom-web/studies/ZQX-PATIENT-ID": {},
    "/api/inference/status/ZQX-PATIENT-ID": {},
}


def plant(made: FileDataset) -> FileDataset:
    """Identifiers in every attribute that holds some, a few of them not as the standard has them."""
    made.PatientName, made.PatientID = "ZQXSurname^Given", "ZQX-PATIENT-ID"
    made.PatientBirthDate, made.PatientBirthTime = BORN, "zqx noon"
    made.OtherPatientIDs, made.OtherPatientNames = ["ZQXOTHER1", "ZQXOTHER2"], "ZQXMaiden"
    made.PatientAddress, made.PatientAge = "ZQX Street 1", "ZQXAGE"
    made.AccessionNumber, made.StudyID = "ZQXACCESSION-LONGER-THAN-ALLOWED", "ZQXSTUDYID"
    made.InstitutionName, made.InstitutionAddress = "ZQX Hospital", "ZQX Avenue"
    made.ReferringPhysicianName, made.OperatorsName = "ZQXDoctor", "ZQXOperator"
    made.PatientComments = "ZQX was here"
    made.SeriesDate, made.AcquisitionTime = "zqx-date", "zqx-time"
    for keyword in ("PatientWeight", "SliceThickness"):  # as text that is no number
        tag = Tag(keyword)
        made[tag] = RawDataElement(tag, "DS", 6, b"zqx kg", 0, is_implicit_VR=False, is_little_endian=True)
    made.private_block(0x0011, "ZQXMAKER", create=True).add_new(0x01, "LO", "ZQXPRIVATE")
    return made


def planted(count: int = 2) -> list[FileDataset]:
    return [plant(made) for made in study_of(count)]


@pytest.fixture
def anything_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values are not all valid; the senders of the test do not mind."""
    monkeypatch.setattr(pydicom.config.settings, "_writing_validation_mode", pydicom.config.IGNORE)
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)


def written(made: FileDataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def send_by_every_door(adapter: AdapterWorld, pipeline: str, folder: Path) -> list[str]:
    """A study by C-STORE to an AE title that groups by patient, one by STOW-RS, one by the watched folder, each with
    something that is refused; the AE titles."""
    wire, web, inbox = (
        adapter.aetitle(pipeline, groupBy="0010,0020"),
        adapter.aetitle(pipeline),
        adapter.aetitle(pipeline),
    )
    broken = planted(1)[0]
    broken.StudyInstanceUID = "ZQX no UID"
    broken.SeriesInstanceUID = ""
    assert store(adapter.port, wire, [*planted(), broken])[:2] == [0, 0]
    associate(adapter.port, "ZQXNOBODY").abort()

    parts = [written(made, folder / f"{n}.dcm").read_bytes() for n, made in enumerate([*planted(), broken])]
    body = b"".join(b"--zqx\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in parts)
    answer = adapter.gateway.post(
        f"/dicom-web/{web}/studies",
        content=body + b"--zqx\r\nContent-Type: application/dicom\r\n\r\nZQX is no DICOM\r\n--zqx--",
        headers={"content-type": 'multipart/related; type="application/dicom"; boundary=zqx'},
    )
    assert answer.status_code == 202

    place = adapter.settings.dicom_inbox
    assert place is not None
    for number, made in enumerate([*planted(), broken]):
        written(made, place / inbox / FILE_NAME / f"{FILE_NAME}-{number}.dcm")
    (place / inbox / f"{FILE_NAME}.txt").write_text("ZQX is no DICOM")
    written(planted(1)[0], place / "ZQX-SURNAME" / "1.dcm")
    return [wire, web, inbox]


def ask_for_a_patient(adapter: AdapterWorld, folder: Path) -> list[str]:
    """Inference requests for a patient from a peer that is away, and one that cannot be read; the requests' ids."""
    compiled = compile_definition(adapter.settings, write_definition(folder / "asked.yaml", scripted("a")), {})
    row = pipelines.create_pipeline(
        adapter.engine, name="asked", definition=compiled.text, plan=compiled.plan.model_dump(mode="json")
    )
    ids = []
    for kind, values in {"DICOM_PATIENT_ID": "PatientID", "ACCESSION_NUMBER": "accessionNumber"}.items():
        value: Any = "ZQX-PATIENT-ID" if values == "PatientID" else ["ZQXACCESSION"]
        ids.append(uuid.uuid4().hex)
        body = {
            "transactionID": ids[-1],
            "inputMetadata": {"details": {"type": kind, values: value}},
            "inputResources": [
                {"interface": "Algorithm", "connectionDetails": {"name": "asked", "id": str(row.id)}},
                {
                    "interface": "DICOMweb",
                    "connectionDetails": {"uri": f"http://127.0.0.1:{free_port()}/", "operations": ["QUERY"]},
                },
            ],
        }
        assert adapter.gateway.post("/api/inference", json=body).status_code == 200
    assert adapter.gateway.post("/api/inference", json={"PatientID": "ZQX-PATIENT-ID"}).status_code == 422
    return ids


def is_over(adapter: AdapterWorld, transaction_id: str) -> bool:
    answer = adapter.gateway.get(f"/api/inference/status/{transaction_id}").json()
    return bool(answer["dicom"]["state"] == "Completed")


def files_told(adapter: AdapterWorld) -> Iterator[tuple[str, bytes]]:
    """Every file that is neither an instance, nor a job's own, nor the database's, nor of Prefect's pages."""
    root = adapter.settings.data_dir
    own = (adapter.house.store.root, adapter.places.spool / "instances", root / "postgres", root / "prefect" / "ui")
    for path in root.rglob("*"):
        if not any(path.is_relative_to(place) for place in own):
            yield f"name of {path}", str(path.relative_to(root)).encode()
            with suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    yield str(path), path.read_bytes()


def rows_told(adapter: AdapterWorld) -> Iterator[tuple[str, bytes]]:
    with adapter.engine.connect() as connection:
        for table in TABLES:
            rows = connection.execute(
                sa.select(sa.literal_column("t::text")).select_from(sa.text(f"{table} t"))
            ).scalars()
            yield f"table {table}", "\n".join(rows).encode()


def answers_told(adapter: AdapterWorld) -> Iterator[tuple[str, bytes]]:
    paths = ["/metrics", "/health/status", "/health/ready", "/api/config/claraaetitle", "/api/config/sourceaetitle"]
    paths += [f"/api/tasks/{agent}/pending?size=0" for agent in ("ClaraSCU", "DICOMweb")]
    for path in paths:
        answer = adapter.gateway.get(path)
        yield f"GET {path}", answer.content + repr(answer.headers).encode()


def commands_told(adapter: AdapterWorld, study: str) -> Iterator[tuple[str, bytes]]:
    for command in (
        "status", "status --json", "queue", "queue --json", "dicom groups list --all -n 200",
        "dicom groups list --all --json", "results list", "results list --json", "dicom aetitle list",
        "dicom source list", "dicom destination list", f"dicom explain {study}",
    ):  # fmt: skip
        done = clara_flow(adapter.settings, *command.split())
        yield command, (done.stdout + done.stderr).encode()
    for delivery in json.loads(clara_flow(adapter.settings, "results", "list", "--json").stdout)[:3]:
        done = clara_flow(adapter.settings, "results", "show", delivery["id"])
        yield "results show", (done.stdout + done.stderr).encode()


def prefect_told(adapter: AdapterWorld) -> Iterator[tuple[str, bytes]]:
    """Everything of the platform's Prefect server."""
    with httpx.Client(base_url=f"{adapter.handle.prefect_api_url}/", trust_env=False, timeout=60) as client:
        for kind in ("flows", "flow_runs", "task_runs", "logs", "artifacts", "deployments", "variables"):
            offset, page = 0, [None] * 200
            while len(page) == 200:
                page = client.post(f"{kind}/filter", json={"limit": 200, "offset": offset}).raise_for_status().json()
                offset += len(page)
                yield f"Prefect's {kind}", json.dumps(page, ensure_ascii=False).encode()
        events = client.post("events/filter", json={"limit": 50}).raise_for_status().json()
        yield "Prefect's events", json.dumps(events, ensure_ascii=False).encode()


def leaks(where: str, told: bytes, wanted: bytes) -> list[str]:
    lower = told.lower()
    if (at := lower.find(wanted)) < 0:
        return []
    return [f"{where} ({lower.count(wanted)} times): ...{told[max(0, at - 150) : at + 60]!r}"]


def delivered(adapter: AdapterWorld, destination: str, state: DeliveryState) -> None:
    eventually(lambda: [one.state for one in adapter.deliveries(destination)] == [state] * 3, within_s=SETTLED_S)


@pytest.mark.usefixtures("anything_goes")
def test_no_planted_identifier_is_told(adapter: AdapterWorld, tmp_path: Path) -> None:
    with ExitStack() as stack:
        pacs, strict = (stack.enter_context(peers.scp(classes=[CT])) for _ in range(2))
        refusing = stack.enter_context(peers.scp(lambda event, number: 0xA900, classes=[CT]))
        good = [adapter.destination(pacs.port), adapter.destination(strict.port, deidentify="basic")]
        bad, away = adapter.destination(refusing.port), adapter.destination(free_port())
        pipeline = adapter.pipeline(answering(), registering("answer", *good, bad, away))
        aetitles = send_by_every_door(adapter, pipeline, tmp_path)
        reader = scripted("reader", container={"image": "clara/dicom-reader"}, requests={"cpu": 1, "memory": 1024})
        failing = adapter.aetitle(adapter.pipeline(reader), adapter.pipeline(scripted("a", script="fail:3")))
        unknown = adapter.aetitle("/nowhere/zq.yaml")
        study = planted()
        adapter.send(failing, study)
        adapter.send(unknown, planted())
        requests = ask_for_a_patient(adapter, tmp_path)
        asked = [adapter.gateway.get(path, params=query) for path, query in QUERIES.items()]
        assert {answer.status_code for answer in asked} <= {200, 204, 400, 404}, asked

        for aetitle in aetitles:
            adapter.completed(aetitle, 1)
        eventually(lambda: [job.state for job in adapter.jobs(failing)] == [JobState.STOPPED] * 2, within_s=SETTLED_S)
        adapter.group_is(unknown, GroupState.FAILED)
        eventually(lambda: all(is_over(adapter, one) for one in requests), within_s=SETTLED_S)
        for name in good:
            delivered(adapter, name, DeliveryState.SUCCEEDED)
        delivered(adapter, bad, DeliveryState.FAILED)
        eventually(lambda: any(one.message for one in adapter.deliveries(away)), within_s=SETTLED_S)
        assert len(pacs.received) == len(strict.received) == 6
        assert all(b"ZQX" in content for _, content in pacs.received)
        assert not [content for _, content in strict.received if MARK in content.lower()]

    found, read = [], 0
    for source in (
        files_told(adapter), rows_told(adapter), answers_told(adapter), prefect_told(adapter),
        commands_told(adapter, str(study[0].StudyInstanceUID)),
    ):  # fmt: skip
        for where, told in source:
            read += len(told)
            found += leaks(where, told, MARK) + leaks(where, told, BORN.encode())
            if "/logs/" in where or where.startswith("Prefect"):  # UIDs of instances are people's, too
                found += leaks(where, told, ROOT.encode())
    assert read > 100_000
    assert not found, "\n".join(found)
