"""Who wants to harm by HTTP, files or answers: nothing is written elsewhere, memory stays flat, others are served."""

from __future__ import annotations

import http.server
import io
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi import FastAPI
from platform_fixture import free_port
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian
from services.dicom.web.studies import BRAIN, Archive, encoded, slices
from services.gateway.serving import client, served

from clara_flow.deployments.trigger import House
from clara_flow.services import body_limit, problems
from clara_flow.services.body_limit import BodyLimit
from clara_flow.services.dicom import inference_fetch, inference_routes, web_store
from clara_flow.services.dicom.inference_basket import Basket, NoRoom
from clara_flow.services.dicom.inference_fetch import fetch_dicomweb, fetch_fhir
from clara_flow.services.dicom.inference_request import Connection, Inputs, Resource, Wanted
from clara_flow.services.dicom.space import SpaceCheck

MIB = 2**20
BOUND = 192 * MIB  # generous: buffers that are had once are in it; what would be kept or inflated is more
PARTS = {"content-type": 'multipart/related; type="application/dicom"; boundary=b0'}
STUDIES = f"/dicom-web/{BRAIN}/studies"
UPWARDS = ("../../../../tmp/x", "..", "/etc/passwd", "..\\..\\x", "1.2/../../x", "%2e%2e%2fx", "a\0b", "x" * 5000)


@contextmanager
def flat_memory() -> Iterator[None]:
    """Resident memory of this process, in which the gateway runs, grows by no more than BOUND."""
    process, most, over = psutil.Process(), 0, threading.Event()
    before = process.memory_info().rss

    def look() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, process.memory_info().rss - before)
            over.wait(0.01)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert most < BOUND, f"{most / MIB:.0f} MiB more"


def zeros(mib: int, window_bits: int, head: bytes = b"") -> Iterator[bytes]:
    """What inflates to `head` and so many MiB of zeros; window_bits: 31 gzip, 15 zlib, -15 deflate alone."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, window_bits)
    yield deflater.compress(head)
    for _ in range(mib):
        yield deflater.compress(bytes(MIB))
    yield deflater.flush()


def tree(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def still_serves(archive: Archive, web: httpx.Client) -> None:
    """A sound instance is taken."""
    body = b"--b0\r\n\r\n" + encoded(slices(series=(1,))[0]) + b"\r\n--b0--"
    assert web.post(STUDIES, content=body, headers=PARTS).status_code == 200
    assert [line["kind"] for line in archive.journal()][-2:] == ["stored", "closed"]


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID"])
@pytest.mark.parametrize("value", UPWARDS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_attribute_leads_out_of_the_spool(
    archive: Archive, web: httpx.Client, tmp_path: Path, keyword: str, value: str
) -> None:
    made = slices(series=(1,))[0]
    made.add_new(keyword, "LO", value)
    if keyword == "SOPInstanceUID":
        made.file_meta.MediaStorageSOPInstanceUID = value
    content = io.BytesIO()
    made.save_as(content, enforce_file_format=False)
    before = tree(tmp_path)
    body = b"--b0\r\n\r\n" + content.getvalue() + b"\r\n--b0--"
    answer = web.post(STUDIES, content=body, headers=PARTS)
    assert answer.status_code in {200, 409}, answer.text
    new = tree(tmp_path) - before
    assert all(
        re.fullmatch(r"spool/(journals|instances)/[0-9a-z.-]+(/[0-9a-z.-]+)*", name) for name in below(new, archive)
    )


def below(paths: set[Path], archive: Archive) -> list[str]:
    """By their names below the data folder."""
    return [path.relative_to(archive.spool.parent).as_posix() for path in paths]


@pytest.mark.parametrize(
    "value", ["../../etc", "..%2f..%2fetc%2fpasswd", "%2e%2e", "%00", "x" * 5000, "1.2.3/../../.."]
)
def test_no_address_leads_out_of_the_store(archive: Archive, web: httpx.Client, tmp_path: Path, value: str) -> None:
    archive.receive(slices())
    before = tree(tmp_path)
    for path in (
        f"/dicom-web/studies/{value}", f"/dicom-web/{value}/studies", f"/dicom-web/studies/{value}/series/{value}",
        f"/dicom-web/studies/1.2/series/{value}/instances/{value}", f"/dicom-web/studies/{value}/metadata",
    ):  # fmt: skip
        answer = web.get(path)
        assert answer.status_code in {204, 400, 404}, (path, answer.text)
        assert b"root:" not in answer.content
    answer = web.post(f"/dicom-web/{value}/studies", content=b"--b0--", headers=PARTS)
    assert answer.status_code in {400, 404, 405}
    assert tree(tmp_path) == before


# ---------------------------------------------------------------- bombs


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, gzip"])
def test_compressed_bodies_are_refused(archive: Archive, web: httpx.Client, coding: str) -> None:
    bomb = b"".join(zeros(300, 15 if coding == "deflate" else 31))
    with flat_memory():
        answer = web.post(STUDIES, content=bomb, headers={**PARTS, "content-encoding": coding})
    assert (answer.status_code, answer.headers["content-type"]) == (415, "application/problem+json")
    still_serves(archive, web)


def test_a_million_parts(archive: Archive, web: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_store, "MOST_PARTS", 500)
    part = b"--b0\r\n\r\nx\r\n"

    def body() -> Iterator[bytes]:
        for _ in range(1000):
            yield part * 1000
        yield b"--b0--"

    with flat_memory(), suppress(httpx.WriteError):  # it hung up while the rest was being sent
        assert web.post(STUDIES, content=body(), headers=PARTS).status_code == 400
    assert not list((archive.spool / "instances").rglob("*.dcm"))
    still_serves(archive, web)


@pytest.mark.parametrize("line", [b"X-Long: " + b"x" * MIB, b"X-Many: y\r\n" * 100_000, b"\xff" * MIB])
def test_huge_headers_of_a_part(archive: Archive, web: httpx.Client, line: bytes) -> None:
    with flat_memory():
        answer = web.post(STUDIES, content=b"--b0\r\n" + line + b"\r\n\r\nx\r\n--b0--", headers=PARTS)
    assert answer.status_code == 400
    still_serves(archive, web)


def with_bomb(made: FileDataset) -> bytes:
    """Its file, deflated, with 300 MB of zeros before the pixels: behind what is looked at when it comes."""
    plain = io.BytesIO()
    del made.PixelData, made.DataSetTrailingPadding
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    made.save_as(plain)
    content = plain.getvalue()
    start = 144 + int.from_bytes(content[140:144], "little")
    inflated = zlib.decompress(content[start:], -zlib.MAX_WBITS)
    head = inflated + b"\x13\x70\x10\x10OB\0\0" + (300 * MIB).to_bytes(4, "little")
    return content[:start] + b"".join(zeros(300, -15, head))


def test_a_deflated_bomb_is_kept_and_never_inflated(archive: Archive, web: httpx.Client) -> None:
    """By whoever sends it, it comes back as it was; questions about it are answered, or it is left out."""
    study = slices(series=(2,))
    archive.receive(study)
    bomb = with_bomb(study[1])
    assert len(bomb) < MIB
    place = next(archive.spool.glob("instances/*/1.dcm"))
    place.write_bytes(bomb)
    uid = study[0].StudyInstanceUID
    with flat_memory():
        assert len(web.get(f"/dicom-web/studies/{uid}/instances").json()) == 1
        assert web.get("/dicom-web/studies", params={"includefield": "all"}).status_code in {200, 204}
        answer = web.get(f"/dicom-web/studies/{uid}", headers={"accept": "multipart/related; type=application/dicom"})
    assert bomb in answer.content


def deep(levels: int) -> bytes:
    """A private sequence that holds a sequence that holds ..., all of undefined length."""
    begin = b"\x13\x00\x10\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    return begin * levels + end * levels


def test_a_deep_nest_is_refused_or_left_out(archive: Archive, web: httpx.Client) -> None:
    """Ten thousand sequences within each other, before and behind what is looked at when it comes."""
    one, other = slices(series=(2,))
    early, late = (encoded(made) for made in (one, other))
    early = early.replace(b"\x10\x00\x10\x00PN", deep(10_000) + b"\x10\x00\x10\x00PN", 1)
    at = late.index(b"\xe0\x7f\x10\x00OW")
    late = late[:at] + deep(10_000).replace(b"\x13\x00\x10\x10", b"\x51\x70\x10\x10") + late[at:]
    with flat_memory():
        for content in (early, late):
            answer = web.post(STUDIES, content=b"--b0\r\n\r\n" + content + b"\r\n--b0--", headers=PARTS)
            assert answer.status_code in {200, 409}, answer.text
        archive.receive([one, other])
        next(archive.spool.glob("instances/*/1.dcm")).write_bytes(late)
        uid = one.StudyInstanceUID
        assert len(web.get(f"/dicom-web/studies/{uid}/instances").json()) >= 1
        assert web.get(f"/dicom-web/studies/{uid}").status_code == 200
    still_serves(archive, web)


def test_a_nest_of_known_lengths_has_no_metadata_and_breaks_nothing(archive: Archive, web: httpx.Client) -> None:
    one = slices(series=(1,))[0]
    inner = Dataset()
    for _ in range(200):
        outer = Dataset()
        outer.RequestAttributesSequence = Sequence([inner])
        inner = outer
    one.RequestAttributesSequence = Sequence([inner])
    archive.receive([one])
    assert web.get(f"/dicom-web/studies/{one.StudyInstanceUID}/instances").status_code == 200
    still_serves(archive, web)


# ---------------------------------------------------------------- JSON


@pytest.fixture
def rest(house: House) -> Iterator[httpx.Client]:
    """A client of the API of inference requests, in the order of the gateway."""
    app = FastAPI()
    app.include_router(inference_routes.router(house))
    problems.install(app)
    app.add_middleware(BodyLimit)
    with served(app, free_port()) as url, client(url) as asking:
        yield asking


@pytest.mark.parametrize("depth", [40, 400, 900, 100_000])
def test_deep_json_is_refused(rest: httpx.Client, depth: int) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        inner = opening * depth + "1" + closing * depth
        answer = rest.post("/api/inference", content=f'{{"transactionID": "t", "inputMetadata": {inner}}}')
        assert answer.status_code in {400, 422}, answer.text


def test_a_body_without_end_is_not_read(rest: httpx.Client) -> None:
    def body() -> Iterator[bytes]:
        yield b'{"transactionID": "'
        for _ in range(100 * body_limit.MOST_BYTES // MIB):
            yield b"x" * MIB

    with flat_memory(), suppress(httpx.WriteError):  # it hung up while the rest was being sent
        assert rest.post("/api/inference", content=body()).status_code == 413
    assert rest.get("/api/inference/status/t").status_code == 404


# ---------------------------------------------------------------- servers that are asked for inputs


@dataclass
class Server:
    """Answers every GET with `answer(handler)`. asked: (path, authorization) of each."""

    port: int = 0
    answer: Callable[[Any], None] = lambda handler: None
    asked: list[tuple[str, str]] = field(default_factory=list)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(answer: Callable[[Any], None]) -> Iterator[Server]:
    made = Server(answer=answer)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append((self.path, self.headers.get("authorization", "")))
            with suppress(OSError):  # the client has had enough
                made.answer(self)

        def log_request(self, *_: object) -> None:
            """Nowhere."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        made.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield made
        server.shutdown()
        thread.join()


def say(handler: Any, status: int, content: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


@pytest.fixture
def basket(tmp_path: Path) -> Basket:
    space = SpaceCheck(tmp_path, 100, 0)
    return Basket(tmp_path / "basket", (), lambda item: None, lambda text: None, space=space, stop=threading.Event())


def fetched(server: Server, basket: Basket, *, fhir: bool = False) -> list[str]:
    """Ask it for a study, or a FHIR resource, with a secret; the faults."""
    faults: list[str] = []
    connection = Connection(server.uri, "bearer", "s3cret")
    if fhir:
        fetch_fhir(1, Resource("fhir", connection), Inputs(fhir=(("Patient", "1"),)), basket, faults.append)
    else:
        wanted = Inputs(objects=(Wanted("1.2.3"),), patient_ids=("1",))
        fetch_dicomweb(1, Resource("dicomweb", connection), wanted, basket, faults.append)
    return faults


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize("fhir", [False, True])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed_and_no_secret_goes_elsewhere(basket: Basket, status: int, fhir: bool) -> None:
    with serving(lambda handler: say(handler, 200, b"{}")) as other:
        with serving(lambda handler: say(handler, status, Location=f"{other.uri}/stolen")) as server:
            faults = fetched(server, basket, fhir=fhir)
        assert server.asked
        assert {secret for _, secret in server.asked} == {"Bearer s3cret"}
        assert faults
        assert other.asked == []
    assert basket.files() == {}


def test_what_a_server_says_of_a_patient_is_not_repeated(basket: Basket) -> None:
    def gossip(handler: Any) -> None:
        handler.send_response(403, "Doe^Jane may not be seen")
        handler.send_header("Location", "http://Doe/")
        handler.end_headers()
        handler.wfile.write(b"Doe^Jane")

    with serving(gossip) as server:
        faults = [*fetched(server, basket), *fetched(server, basket, fhir=True)]
    assert faults
    assert all("403 Forbidden" in fault and "Doe" not in fault for fault in faults)


@pytest.mark.parametrize("fhir", [False, True])
def test_compressed_answers_are_not_inflated(basket: Basket, fhir: bool) -> None:
    bomb = b"".join(zeros(300, 31))
    kind = 'multipart/related; type="application/dicom"; boundary=b0'
    answer = partial(say, status=200, content=bomb, Content_Encoding="gzip", Content_Type=kind)
    with serving(answer) as server, flat_memory():
        faults = fetched(server, basket, fhir=fhir)
    assert all("compressed" in fault for fault in faults)
    assert faults
    assert basket.files() == {}


def endless(handler: Any, piece: bytes, start: bytes = b"") -> None:
    say(handler, 200, start, Content_Type='multipart/related; type="application/dicom"; boundary=b0')
    while True:
        handler.wfile.write(piece)


def test_endless_answers_end(basket: Basket, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of what is taken, when the disk is nearly full, when the time is over."""
    monkeypatch.setattr(inference_fetch, "LARGEST_RECORD_BYTES", 4 * MIB)
    with serving(lambda handler: endless(handler, b"x" * MIB)) as server, flat_memory():
        assert "too large" in fetched(server, basket, fhir=True)[0]

    looks = iter([*[False] * 20, *[True] * 20])
    monkeypatch.setattr(SpaceCheck, "is_short", lambda self: next(looks))
    with (
        serving(lambda handler: endless(handler, b"x" * MIB, b"--b0\r\n\r\n")) as server,
        flat_memory(),
        pytest.raises(NoRoom),
    ):
        fetched(server, basket)
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(inference_fetch, "DICOMWEB_LIMIT_S", 2.0)
    with serving(lambda handler: endless(handler, b"x" * 1000)) as server, flat_memory():
        assert "the time is over" in fetched(server, basket)[0]
    assert basket.files() == {}


@pytest.mark.parametrize(
    "kind", ["text/html", "multipart/related", "application/json", "", "multipart/related; boundary="]
)
def test_answers_of_another_kind(basket: Basket, kind: str) -> None:
    with serving(lambda handler: say(handler, 200, b"<html>root:</html>", Content_Type=kind)) as server:
        assert fetched(server, basket)
    assert basket.files() == {}


@pytest.mark.parametrize("value", UPWARDS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files_of_a_server_lie_in_the_basket(basket: Basket, tmp_path: Path, value: str) -> None:
    made = slices(series=(1,))[0]
    made.add_new("SOPInstanceUID", "LO", value)
    content = io.BytesIO()
    made.save_as(content)
    body = b"--b0\r\nContent-Location: ../../../x\r\n\r\n" + content.getvalue() + b"\r\n--b0--"
    kind = 'multipart/related; type="application/dicom"; boundary=b0'
    before = tree(tmp_path)
    with serving(lambda handler: say(handler, 200, body, Content_Type=kind)) as server:
        assert any("SOP Instance UID" in fault for fault in fetched(server, basket))
    assert tree(tmp_path) == before
