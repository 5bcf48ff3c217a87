"""A destination is tried: dcmtk and pynetdicom as peers that take it, refuse it, or say nothing; STOW-RS servers."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dcmtk import Storescp
from platform_fixture import free_port
from pydicom import dcmread
from pynetdicom import AE, evt

from clara_flow.records.dicom_models import Destination, DestinationKind
from clara_flow.services.dicom.probe import Caller, Step, probe
from clara_flow.services.dicom.synthetic import synthetic_instance

SECONDARY_CAPTURE, VERIFICATION = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.1.1"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
CALLER = Caller(ae_title="ClaraSCU", timeout_s=5)


def pacs(port: int, **more: Any) -> Destination:
    return Destination(**{"name": "PACS", "ae_title": "PACS", "host": "127.0.0.1", "port": port, **more})


def steps(destination: Destination, caller: Caller = CALLER, *, store: bool = True) -> list[Step]:
    return list(probe(destination, caller, store=store))


def said(tried: list[Step]) -> list[tuple[str, bool]]:
    return [(step.name, step.ok) for step in tried]


@contextlib.contextmanager
def pynetdicom_scp(
    prepare: Callable[[AE], None] = lambda ae: None, *, classes: tuple[str, ...] = (VERIFICATION, SECONDARY_CAPTURE),
    on_store: int = 0, on_echo: int = 0,
) -> Iterator[int]:  # fmt: skip
    """pynetdicom's, on a free port."""
    ae = AE("PACS")
    for sop_class in classes:
        ae.add_supported_context(sop_class)
    prepare(ae)
    handlers = [(evt.EVT_C_STORE, lambda event: on_store), (evt.EVT_C_ECHO, lambda event: on_echo)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)  # type: ignore[arg-type]
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def test_a_well_one_passes_every_step_and_holds_the_image_once(tmp_path: Path) -> None:
    with Storescp(tmp_path) as peer:
        tried = steps(pacs(peer.port))
        steps(pacs(peer.port))
    assert said(tried) == [(name, True) for name in ("name", "connection", "association", "echo", "store")]
    (stored,) = tmp_path.iterdir()
    instance = dcmread(stored)
    assert (instance.PatientID, instance.Rows, instance.SOPClassUID) == ("CLARA-FLOW-TEST", 16, SECONDARY_CAPTURE)
    assert "no patient" in instance.StudyDescription


def test_without_a_store_nothing_is_left_there(tmp_path: Path) -> None:
    with Storescp(tmp_path) as peer:
        assert said(steps(pacs(peer.port), store=False))[-1] == ("echo", True)
    assert list(tmp_path.iterdir()) == []


def test_the_image_is_the_same_every_time_and_has_what_its_class_asks_for() -> None:
    first, second = (synthetic_instance("1.2.840.10008.1.2.1") for _ in range(2))
    assert first == second
    assert len(first.PixelData) == first.Rows * first.Columns
    for keyword in ("PatientName", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "ConversionType"):
        assert keyword in first


def test_nobody_knows_the_name() -> None:
    (tried,) = steps(pacs(104, host="pacs.invalid"))
    assert (tried.name, tried.ok) == ("name", False)
    assert "pacs.invalid" in tried.detail
    assert "Check the spelling" in tried.remedy


def test_nobody_listens() -> None:
    tried = steps(pacs(free_port()))
    assert said(tried) == [("name", True), ("connection", False)]
    assert "nobody listens" in tried[-1].detail
    assert "Is the port right?" in tried[-1].remedy


def called_otherwise(ae: AE) -> None:
    ae.ae_title, ae.require_called_aet = "OTHER", True


def knows_others(ae: AE) -> None:
    ae.require_calling_aet = ["SOMEBODY"]


@pytest.mark.parametrize(
    ("prepare", "reason", "remedy"),
    [
        (called_otherwise, "called AE title not recognised", "Its AE title is not 'PACS'"),
        (knows_others, "calling AE title not recognised", "Register our AE title 'ClaraSCU'"),
    ],
)
def test_a_rejection_is_explained(prepare: Callable[[AE], None], reason: str, remedy: str) -> None:
    with pynetdicom_scp(prepare) as port:
        tried = steps(pacs(port))
    assert said(tried)[-1] == ("association", False)
    assert reason in tried[-1].detail
    assert remedy in tried[-1].remedy


def test_dcmtk_that_refuses_every_association(tmp_path: Path) -> None:
    with Storescp(tmp_path, "--refuse") as peer:
        tried = steps(pacs(peer.port))
    assert said(tried)[-1] == ("association", False)
    assert "rejected the association" in tried[-1].detail
    assert tried[-1].remedy


def test_our_calling_ae_title_there_is_the_destinations() -> None:
    def prepare(ae: AE) -> None:
        ae.require_calling_aet = ["US"]

    destination = pacs(0, calling_ae="US")
    with pynetdicom_scp(prepare) as port:
        destination.port = port
        caller = Caller(ae_title=destination.calling_ae, timeout_s=5)
        assert all(step.ok for step in steps(destination, caller))


def test_one_that_takes_no_such_images_says_so() -> None:
    with pynetdicom_scp(classes=(VERIFICATION, CT_IMAGE)) as port:
        tried = steps(pacs(port))
    assert said(tried)[-2:] == [("echo", True), ("store", False)]
    assert "Secondary Capture" in tried[-1].detail


def test_one_that_answers_no_echo_may_still_be_well() -> None:
    with pynetdicom_scp(classes=(SECONDARY_CAPTURE,)) as port:
        tried = steps(pacs(port))
    assert all(step.ok for step in tried)
    assert "does not answer C-ECHO" in tried[3].detail


@pytest.mark.parametrize(
    ("status", "ok", "words"),
    [
        (0xA700, False, "0xA700 out of resources"),
        (0xC000, False, "cannot be understood"),
        (0x0124, False, "not authorized"),
        (0xB000, True, "coercion"),
        (0x0111, True, "had it already"),
    ],
)
def test_what_it_answers_to_the_store_is_told(status: int, ok: bool, words: str) -> None:
    with pynetdicom_scp(on_store=status) as port:
        tried = steps(pacs(port))
    assert said(tried)[-1] == ("store", ok)
    assert words in tried[-1].detail


def test_an_echo_that_fails_ends_it() -> None:
    with pynetdicom_scp(on_echo=0x0122) as port:
        tried = steps(pacs(port))
    assert said(tried)[-1] == ("echo", False)


@contextlib.contextmanager
def bytes_peer(answer: bytes | None) -> Iterator[int]:
    """Takes connections, and answers with these bytes; None: it says nothing and keeps the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    held.append(connection)
                    if answer is not None and connection.recv(65536):
                        connection.sendall(answer)
                        connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for connection in held:
            connection.close()


@pytest.mark.parametrize(
    ("answer", "words", "remedy"),
    [
        (None, "did not answer within", "says nothing"),
        (b"", "closed the connection", "Does it want TLS"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "", "Is the port right?"),
        (bytes([7, 0, 0, 0, 0, 4, 0, 0, 2, 0]), "aborted the association", "no DICOM peer"),
        (bytes([3, 0, 0, 0, 0, 4, 0, 2, 3, 1]), "temporary congestion", "too much to do"),
        (bytes([3, 0, 0, 0, 0, 4, 0, 2, 3, 2]), "local limit exceeded", "too many associations"),
        (bytes([3, 0, 0, 0, 0, 4, 0, 1, 1, 1]), "no reason given", "registered there"),
    ],
    ids=["silent", "closes", "http", "aborts", "congestion", "limit", "no reason"],
)
def test_what_is_no_peer_is_told_from_one(answer: bytes | None, words: str, remedy: str) -> None:
    with bytes_peer(answer) as port:
        tried = steps(pacs(port), Caller(ae_title="ClaraSCU", timeout_s=0.5))
    assert said(tried)[-1] == ("association", False)
    assert words in tried[-1].detail
    assert remedy in tried[-1].remedy


@contextlib.contextmanager
def stow_server(status: int, body: bytes = b"<NativeDicomModel/>", kind: str = "application/dicom+xml") -> Any:
    """Answers every POST so; the paths and headers of requests are kept."""
    seen: list[tuple[str, dict[str, str], bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append((self.path, dict(self.headers), content))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1], seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def cloud(port: int, path: str = "/dicom-web") -> Destination:
    return Destination(name="CLOUD", kind=DestinationKind.STOW, url=f"http://127.0.0.1:{port}{path}")


FAILED_ITEM = (
    b'<NativeDicomModel><DicomAttribute tag="00081198" vr="SQ" keyword="FailedSOPSequence"><Item number="1">'
    b'<DicomAttribute tag="00081197" vr="US" keyword="FailureReason"><Value number="1">42752</Value></DicomAttribute>'
    b"</Item></DicomAttribute></NativeDicomModel>"
)


@pytest.mark.parametrize("path", ["/dicom-web", "/dicom-web/studies"])
def test_a_dicomweb_server_takes_the_image(path: str) -> None:
    with stow_server(200) as (port, seen):
        tried = steps(cloud(port, path), Caller(ae_title="x", timeout_s=5, secret="user:word"))  # noqa: S106
    assert said(tried) == [("name", True), ("connection", True), ("store", True)]
    ((requested, headers, content),) = seen
    assert requested == "/dicom-web/studies"
    assert headers["Authorization"] == "Basic dXNlcjp3b3Jk"
    assert b"CLARA-FLOW-TEST" in content


@pytest.mark.parametrize(
    ("status", "body", "words", "remedy"),
    [
        (401, b"", "401", "login is missing or wrong"),
        (403, b"", "403", "login is missing or wrong"),
        (404, b"", "404", "Is the URL the DICOMweb root"),
        (503, b"", "503", "log"),
        (200, b"<html>", "cannot be read", "Is it the DICOMweb root?"),
        (200, FAILED_ITEM, "0xA700 out of resources", "log"),
    ],
)
def test_a_dicomweb_server_that_does_not_is_explained(status: int, body: bytes, words: str, remedy: str) -> None:
    with stow_server(status, body) as (port, _):
        tried = steps(cloud(port))
    assert said(tried)[-1] == ("store", False)
    assert words in tried[-1].detail
    assert remedy in tried[-1].remedy


def test_a_dicomweb_server_that_is_silent() -> None:
    with bytes_peer(None) as port:
        tried = steps(cloud(port), Caller(ae_title="x", timeout_s=0.5))
    assert said(tried)[-1] == ("store", False)
    assert "did not answer within" in tried[-1].detail


def test_without_a_store_a_dicomweb_server_is_not_asked() -> None:
    with stow_server(500) as (port, seen):
        assert said(steps(cloud(port), store=False)) == [("name", True), ("connection", True)]
    assert seen == []
