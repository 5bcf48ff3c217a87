"""QIDO-RS and WADO-RS with somebody else's client: what is found, and every byte of it."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import httpx
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset
from services.dicom.web.studies import BRAIN, LUNG, Archive, encoded, slices

from clara_flow.records.database import transaction
from clara_flow.records.dicom_models import Delivery
from clara_flow.services.dicom.web_multipart import MultipartReader, PartBegin, boundary_of


def uids(results: list[dict[str, object]], keyword: str) -> list[str]:
    return [str(Dataset.from_json(one)[keyword].value) for one in results]


def parts_of(answer: httpx.Response) -> list[bytes]:
    """The contents of a multipart answer."""
    reader, found = MultipartReader(boundary_of(answer.headers["content-type"])), []
    for event in reader.feed(answer.content):
        if isinstance(event, PartBegin):
            found.append(b"")
        elif isinstance(event, bytes):
            found[-1] += event
    reader.close()
    return found


def test_studies_are_found_with_what_is_counted(archive: Archive, peer: DICOMwebClient) -> None:
    one, other = slices(series=(2, 3)), slices(patient="P2", name="Roe^Rick")
    archive.receive(one)
    archive.receive(other, LUNG)
    found = [Dataset.from_json(result) for result in peer.search_for_studies()]
    assert [result.StudyInstanceUID for result in found] == [other[0].StudyInstanceUID, one[0].StudyInstanceUID]
    assert (found[1].NumberOfStudyRelatedSeries, found[1].NumberOfStudyRelatedInstances) == (2, 5)
    assert found[1].ModalitiesInStudy == "CT"
    assert found[1].PatientID == "P1"
    assert found[1].RetrieveURL.endswith(f"/dicom-web/studies/{one[0].StudyInstanceUID}")


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"PatientID": "P2"}, 1),
        ({"00100020": "P2"}, 1),
        ({"PatientID": "P*"}, 2),
        ({"PatientID": "p2"}, 0),
        ({"PatientName": "roe^*"}, 1),
        ({"PatientName": "*"}, 2),
        ({"ModalitiesInStudy": "CT"}, 2),
        ({"ModalitiesInStudy": "MR"}, 0),
        ({"StudyDate": "20200101-20201231"}, 1),
        ({"StudyDate": "-20200101"}, 1),
        ({"StudyDate": "20200614"}, 1),
        ({"AccessionNumber": "A?1"}, 1),
        ({"NumberOfStudyRelatedInstances": "2"}, 2),
        ({"StudyInstanceUID": "1.2.3"}, 0),
    ],
    ids=str,
)
def test_studies_are_matched(archive: Archive, peer: DICOMwebClient, filters: dict[str, str], count: int) -> None:
    archive.receive(slices(StudyDate="20200614", AccessionNumber="A11"))
    archive.receive(slices(patient="P2", name="Roe^Rick", StudyDate="20190101", AccessionNumber="B"))
    assert len(peer.search_for_studies(search_filters=filters)) == count


def test_series_and_instances_are_found_below_and_beside(archive: Archive, peer: DICOMwebClient) -> None:
    study = slices(series=(2, 3))
    archive.receive(study)
    archive.receive(slices(patient="P2"))
    uid = study[0].StudyInstanceUID
    series = peer.search_for_series(uid)
    assert sorted(Dataset.from_json(one).NumberOfSeriesRelatedInstances for one in series) == [2, 3]
    assert len(peer.search_for_series()) == 3
    instances = peer.search_for_instances(uid, study[0].SeriesInstanceUID)
    assert sorted(uids(instances, "SOPInstanceUID")) == sorted(one.SOPInstanceUID for one in study[:2])
    assert len(peer.search_for_instances()) == 7
    (one,) = peer.search_for_instances(search_filters={"SOPInstanceUID": study[3].SOPInstanceUID})
    assert Dataset.from_json(one).StudyInstanceUID == uid
    (numbered,) = peer.search_for_instances(uid, search_filters={"InstanceNumber": "3"})
    assert uids([numbered], "SOPInstanceUID") == [study[4].SOPInstanceUID]


def test_limit_offset_and_fields(archive: Archive, web: httpx.Client) -> None:
    for number in range(5):
        archive.receive(slices(series=(1,), patient=f"P{number}"))
    answer = web.get("/dicom-web/studies", params={"limit": 2, "offset": 1, "includefield": "Manufacturer"})
    assert answer.headers["content-type"] == "application/dicom+json"
    found = [Dataset.from_json(one) for one in answer.json()]
    assert [one.PatientID for one in found] == ["P3", "P2"]
    assert found[0].Manufacturer
    assert "KVP" not in found[0]
    everything = web.get("/dicom-web/studies", params={"limit": 1, "includefield": "all"}).json()
    assert "KVP" in Dataset.from_json(everything[0])
    assert web.get("/dicom-web/studies", params={"offset": 5}).status_code == 204


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/dicom-web/studies?NoSuchThing=1", 400),
        ("/dicom-web/studies?limit=many", 400),
        ("/dicom-web/studies?includefield=00081115.00081150", 400),
        ("/dicom-web/studies/1.2.3", 404),
        ("/dicom-web/studies/1.2.3/metadata", 404),
        ("/dicom-web/NOBODY/studies", 404),
        ("/dicom-web/studies/../../etc/passwd", 404),
    ],
)
def test_what_cannot_be_answered_is_a_problem(archive: Archive, web: httpx.Client, path: str, status: int) -> None:
    archive.receive(slices())
    answer = web.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def test_an_ae_title_shows_what_came_in_through_it(archive: Archive, web: httpx.Client) -> None:
    mine, others = slices(), slices()
    archive.receive(mine)
    archive.receive(others, LUNG)
    assert uids(web.get(f"/dicom-web/{BRAIN}/studies").json(), "StudyInstanceUID") == [mine[0].StudyInstanceUID]
    assert web.get(f"/dicom-web/{BRAIN}/studies/{others[0].StudyInstanceUID}").status_code == 404
    assert web.get(f"/dicom-web/{LUNG}/studies/{others[0].StudyInstanceUID}").status_code == 200


def test_files_come_byte_for_byte(archive: Archive, web: httpx.Client, peer: DICOMwebClient) -> None:
    study = slices(series=(2, 1))
    archive.receive(study)
    uid, series, instance = study[0].StudyInstanceUID, study[0].SeriesInstanceUID, study[0].SOPInstanceUID
    assert sorted(parts_of(web.get(f"/dicom-web/studies/{uid}"))) == sorted(map(encoded, study))
    assert sorted(parts_of(web.get(f"/dicom-web/studies/{uid}/series/{series}"))) == sorted(map(encoded, study[:2]))
    path = f"/dicom-web/studies/{uid}/series/{series}/instances/{instance}"
    assert parts_of(web.get(path)) == [encoded(study[0])]
    assert web.get(path, headers={"accept": "application/dicom"}).content == encoded(study[0])
    assert peer.retrieve_instance(uid, series, instance) == study[0]
    assert len(peer.retrieve_study(uid)) == 3


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ('multipart/related; type="application/dicom"; transfer-syntax=*', 200),
        ('multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1', 200),
        ('multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.90', 406),
        ('multipart/related; type="application/octet-stream"', 406),
        ("image/jpeg", 406),
        ("image/jpeg, */*;q=0.1", 200),
        ("application/dicom", 406),
    ],
)
def test_what_is_taken_is_asked_for(archive: Archive, web: httpx.Client, accept: str, status: int) -> None:
    study = slices()
    archive.receive(study)
    answer = web.get(f"/dicom-web/studies/{study[0].StudyInstanceUID}", headers={"accept": accept})
    assert answer.status_code == status


def test_metadata_has_no_pixels(archive: Archive, peer: DICOMwebClient) -> None:
    study = slices(series=(2, 1))
    archive.receive(study)
    found = [Dataset.from_json(one) for one in peer.retrieve_study_metadata(study[0].StudyInstanceUID)]
    assert sorted(one.SOPInstanceUID for one in found) == sorted(one.SOPInstanceUID for one in study)
    assert all("PixelData" not in one and one.Rows == 128 for one in found)


def produce(archive: Archive, datasets: list[Dataset], job: uuid.UUID | None = None) -> None:
    """As if a job had registered these for delivery."""
    payload = archive.house.store.create()
    names = []
    for number, dataset in enumerate(datasets):
        name = f"operators/writer/{number}.dcm"
        (payload.path / name).parent.mkdir(exist_ok=True)
        (payload.path / name).write_bytes(encoded(dataset))
        names.append(name)
    (payload.path / "operators/writer/notes.txt").write_text("no DICOM")
    now = datetime.now(UTC)
    with transaction(archive.house.engine) as session:
        session.add(
            Delivery(
                job_id=str(job or uuid.uuid4()), payload_id=str(payload.id), agent="ClaraSCU", created=now, updated=now,
                uris=[*names, "operators/writer/notes.txt", "../../secret.dcm", "operators/none.dcm"],
            )
        )  # fmt: skip


def test_produced_objects_stand_beside_received_ones(archive: Archive, web: httpx.Client, peer: DICOMwebClient) -> None:
    study = slices()
    made = slices(series=(1,), Modality="SEG", StudyInstanceUID=study[0].StudyInstanceUID)
    alone = slices(series=(1,), patient="P9")
    archive.receive(study)
    (archive.house.settings.data_dir / "secret.dcm").write_bytes(encoded(slices()[0]))
    assert len(peer.search_for_studies()) == 1
    produce(archive, made)
    produce(archive, alone)
    found = {one.StudyInstanceUID: one for one in map(Dataset.from_json, peer.search_for_studies())}
    assert set(found) == {study[0].StudyInstanceUID, alone[0].StudyInstanceUID}
    mixed = found[study[0].StudyInstanceUID]
    assert (mixed.NumberOfStudyRelatedSeries, mixed.NumberOfStudyRelatedInstances) == (2, 3)
    assert sorted(mixed.ModalitiesInStudy) == ["CT", "SEG"]
    got = parts_of(web.get(f"/dicom-web/studies/{study[0].StudyInstanceUID}"))
    assert sorted(got) == sorted(map(encoded, [*study, *made]))
    assert web.get(f"/dicom-web/{BRAIN}/studies/{alone[0].StudyInstanceUID}").status_code == 404


def test_what_lies_in_a_payload_alone_is_found(archive: Archive, web: httpx.Client) -> None:
    from clara_flow.records import jobs, payloads, pipelines
    from clara_flow.records.dicom_models import Submission

    study, house = slices(), archive.house
    group = archive.receive(study)
    files = {f"{number}.dcm": path for number, path in enumerate(sorted(archive.spool.glob("instances/*/*.dcm")))}
    folder = house.store.link(files)
    pipeline = pipelines.create_pipeline(house.engine, name="brain", definition="api-version: 0.4.0", plan={})
    payloads.create_payload(house.engine, payload_id=folder.id)
    job = jobs.create_job(
        house.engine, name="brain", pipeline_id=pipeline.id, payload_id=folder.id, operators=[], runtime="process",
        timeout_s=60,
    )  # fmt: skip
    with transaction(house.engine) as session:
        session.add(Submission(group_id=group, label="brain", pipeline="brain", job_id=job.id))
    for path in files.values():
        path.unlink()
    got = parts_of(web.get(f"/dicom-web/studies/{study[0].StudyInstanceUID}"))
    assert sorted(got) == sorted(map(encoded, study))
