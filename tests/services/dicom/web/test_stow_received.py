"""STOW-RS with somebody else's client: what is answered, what is in the spool by then, and what is refused."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian
from services.dicom.web.studies import BRAIN, Archive, application, encoded, slices
from services.gateway.serving import client, served

from clara_flow.services.dicom.web_multipart import parts

KIND = "application/dicom"
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"


def post(web: httpx.Client, files: Sequence[bytes], path: str = f"/dicom-web/{BRAIN}/studies") -> httpx.Response:
    body = b"".join(parts("b0", [(KIND, iter([file])) for file in files]))
    return web.post(path, content=body, headers={"content-type": f'multipart/related; type="{KIND}"; boundary=b0'})


def stored(archive: Archive) -> list[bytes]:
    """The files that journals tell of."""
    return [(archive.spool / str(line["path"])).read_bytes() for line in archive.journal() if line["kind"] == "stored"]


def instance_files(archive: Archive) -> list[Path]:
    return list(archive.spool.glob("instances/*/*"))


def answer_of(answer: httpx.Response) -> Dataset:
    assert answer.headers["content-type"] == "application/dicom+json"
    return Dataset.from_json(answer.json())


def test_a_study_is_stored_like_one_by_c_store(archive: Archive, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    study = slices(series=(2, 1))
    answer = DICOMwebClient(f"{url}/dicom-web/{BRAIN}").store_instances(study)
    assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == [
        one.SOPInstanceUID for one in study
    ]
    assert "FailedSOPSequence" not in answer
    assert answer.RetrieveURL.endswith(f"/dicom-web/studies/{study[0].StudyInstanceUID}")
    lines = archive.journal()
    assert [line["kind"] for line in lines] == ["open", "stored", "stored", "stored", "closed"]
    assert (lines[0]["aetitle"], lines[0]["called"], lines[0]["peer"]) == ("brain-ct", BRAIN, "127.0.0.1")
    assert {line["study"] for line in lines[1:4]} == {study[0].StudyInstanceUID}
    assert lines[4]["how"] == "released"


def test_every_byte_is_kept(archive: Archive, web: httpx.Client) -> None:
    files = [encoded(one) for one in slices(series=(3,))]
    answer = post(web, files)
    assert answer.status_code == 200
    assert sorted(stored(archive)) == sorted(files)


def test_a_big_endian_file_is_kept_too(archive: Archive, web: httpx.Client) -> None:
    (one,) = slices(series=(1,))
    one.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    file = io.BytesIO()
    pydicom.dcmwrite(file, one, implicit_vr=False, little_endian=False)
    assert post(web, [file.getvalue()]).status_code == 200
    assert stored(archive) == [file.getvalue()]


def without(keyword: str) -> bytes:
    (one,) = slices(series=(1,))
    delattr(one, keyword)
    return encoded(one)


def changed(**meta: str) -> bytes:
    (one,) = slices(series=(1,))
    for keyword, value in meta.items():
        setattr(one.file_meta, keyword, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, one, enforce_file_format=False)
    return file.getvalue()


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"", 0xC000),
        (b"rubbish" * 100, 0xC000),
        (encoded(slices(series=(1,))[0])[:200], 0xC000),
        (without("StudyInstanceUID"), 0xA900),
        (without("SeriesInstanceUID"), 0xA900),
        (changed(MediaStorageSOPInstanceUID="1.2.3"), 0xA900),
        (changed(MediaStorageSOPInstanceUID="../../x"), 0x0117),
        (changed(MediaStorageSOPClassUID="1.2.840.10008.1.1"), 0x0122),
    ],
    ids=["empty", "rubbish", "cut", "no-study", "no-series", "other-uid", "no-uid", "no-storage-class"],
)
def test_a_file_that_cannot_be_taken_is_named_and_the_others_are_stored(
    archive: Archive, web: httpx.Client, file: bytes, reason: int
) -> None:
    (good,) = slices(series=(1,))
    alone = post(web, [file])
    assert alone.status_code == 409
    assert answer_of(alone).FailedSOPSequence[0].FailureReason == reason
    assert instance_files(archive) == []
    beside = post(web, [file, encoded(good)])
    assert beside.status_code == 202
    assert answer_of(beside).FailedSOPSequence[0].FailureReason == reason
    assert answer_of(beside).ReferencedSOPSequence[0].ReferencedSOPInstanceUID == good.SOPInstanceUID
    assert stored(archive) == [encoded(good)]


def test_a_study_in_the_address_takes_no_other(archive: Archive, web: httpx.Client) -> None:
    mine, other = slices(series=(1,)), slices(series=(1,))
    path = f"/dicom-web/{BRAIN}/studies/{mine[0].StudyInstanceUID}"
    answer = post(web, [encoded(mine[0]), encoded(other[0])], path)
    assert answer.status_code == 202
    assert answer_of(answer).FailedSOPSequence[0].ReferencedSOPInstanceUID == other[0].SOPInstanceUID
    assert stored(archive) == [encoded(mine[0])]


def test_an_ignored_sop_class_is_success_without_a_file(archive: Archive, web: httpx.Client) -> None:
    archive.configure(ignored_sop_classes=(CT_CLASS,))
    answer = post(web, [encoded(slices(series=(1,))[0])])
    assert answer.status_code == 200
    assert len(answer_of(answer).ReferencedSOPSequence) == 1
    assert instance_files(archive) == []


def test_what_is_cut_off_is_not_stored_and_what_was_whole_is(archive: Archive, web: httpx.Client) -> None:
    first, second = (encoded(one) for one in slices(series=(2,)))
    body = b"".join(parts("b0", [(KIND, iter([first])), (KIND, iter([second]))]))[:-1000]
    header = {"content-type": f'multipart/related; type="{KIND}"; boundary=b0'}
    answer = web.post(f"/dicom-web/{BRAIN}/studies", content=body, headers=header)
    assert answer.status_code == 400
    assert stored(archive) == [first]
    assert len(instance_files(archive)) == 1
    assert archive.journal()[-1]["how"] == "aborted"


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [
        ("/dicom-web/studies", f'multipart/related; type="{KIND}"; boundary=b0', 404),
        ("/dicom-web/NOBODY/studies", f'multipart/related; type="{KIND}"; boundary=b0', 404),
        (f"/dicom-web/{BRAIN}/studies", KIND, 415),
        (f"/dicom-web/{BRAIN}/studies", 'multipart/related; type="application/dicom+json"; boundary=b0', 415),
        (f"/dicom-web/{BRAIN}/studies", "multipart/related", 415),
        (f"/dicom-web/{BRAIN}/studies", f'multipart/related; type="{KIND}"; boundary=other', 400),
    ],
)
def test_a_request_that_cannot_be_taken_is_a_problem(web: httpx.Client, path: str, kind: str, status: int) -> None:
    body = b"".join(parts("b0", [(KIND, iter([b"x"]))]))
    answer = web.post(path, content=body, headers={"content-type": kind})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def test_a_disk_that_is_short_is_asked_again_later(archive: Archive) -> None:
    house = replace(archive.house, settings=archive.house.settings.model_copy(update={"dicom_reserve_mib": 2**40}))
    with served(application(house), house.settings.gateway_port) as url, client(url) as web:
        answer = post(web, [encoded(slices(series=(1,))[0])])
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
    assert instance_files(archive) == []
