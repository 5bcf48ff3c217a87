"""Orthanc's DICOMweb as a client of ours: it looks for studies, fetches them, and stores by STOW-RS."""

from __future__ import annotations

from pathlib import Path

from orthanc_fixture import Orthanc
from pydicom import dcmread
from services.dicom.web.studies import BRAIN, Archive, encoded, slices


def test_it_searches_and_retrieves(orthanc: Orthanc, archive: Archive, url: str) -> None:
    study, other = slices(series=(2, 1), AccessionNumber="A11"), slices(patient="P2", AccessionNumber="B")
    for received in (study, other):
        archive.receive(received)
    orthanc.knows_server("ours", f"{url}/dicom-web")
    wanted = {"Uri": "/studies", "Arguments": {"AccessionNumber": "A11"}}
    (found,) = orthanc.ask("/dicom-web/servers/ours/qido", wanted)
    uid = study[0].StudyInstanceUID
    assert (found["0020000D"]["Value"], found["00100010"]["Value"]) == (uid, "Doe^Jane")
    orthanc.ask("/dicom-web/servers/ours/retrieve", {"Resources": [{"Study": uid}], "Synchronous": True})
    assert sorted(orthanc.files()) == sorted(map(encoded, study))


def test_it_retrieves_one_instance(orthanc: Orthanc, archive: Archive, url: str) -> None:
    study = slices()
    archive.receive(study)
    orthanc.knows_server("ours", f"{url}/dicom-web")
    one = {
        "Study": study[0].StudyInstanceUID,
        "Series": study[0].SeriesInstanceUID,
        "Instance": study[1].SOPInstanceUID,
    }
    orthanc.ask("/dicom-web/servers/ours/retrieve", {"Resources": [one], "Synchronous": True})
    assert orthanc.files() == [encoded(study[1])]


def test_it_stores(orthanc: Orthanc, archive: Archive, url: str, tmp_path: Path) -> None:
    study, numbers = slices(series=(3,)), []
    for number, one in enumerate(study):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(encoded(one))
        numbers.append(orthanc.upload(path))
    orthanc.knows_server("ours", f"{url}/dicom-web/{BRAIN}")
    orthanc.ask("/dicom-web/servers/ours/stow", {"Resources": numbers, "Synchronous": True})
    stored = [line for line in archive.journal() if line["kind"] == "stored"]
    files = [dcmread(archive.spool / str(line["path"])) for line in stored]
    assert sorted(files, key=lambda one: one.InstanceNumber) == study
    assert archive.journal()[-1]["how"] == "released"
