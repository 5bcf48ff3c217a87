"""TLS with destinations: authorities, our own certificate, and what is said when they do not fit."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest
from services.dicom.export.export_world import MakeWorld
from services.dicom.export.peers import scp
from services.dicom.export.stow_peer import stow_peer

from clara_flow.records.dicom_models import DeliveryState

SUCCEEDED, FAILED = DeliveryState.SUCCEEDED, DeliveryState.FAILED


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of its own authority for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "peer.crt", folder / "peer.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=peer", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def server(certificate: tuple[Path, Path], *, asks_for_ours: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    if asks_for_ours:
        context.load_verify_locations(certificate[0])
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.mark.parametrize("asks_for_ours", [False, True])
def test_c_store_over_tls(asks_for_ours: bool, certificate: tuple[Path, Path], make_world: MakeWorld) -> None:
    ours = {"dicom_tls_certificate": certificate[0], "dicom_tls_key": certificate[1]} if asks_for_ours else {}
    world = make_world(dicom_tls_authorities=certificate[0], **ours)
    with scp(ssl_context=server(certificate, asks_for_ours=asks_for_ours)) as peer, world.exporting():
        world.destination("PACS", peer.port, tls=True)
        (delivery,) = world.register("PACS", *world.images(2, side=512))
        assert world.ended(delivery).state is SUCCEEDED
    assert len(peer.received) == 2


def test_a_certificate_of_somebody_else_is_refused(certificate: tuple[Path, Path], make_world: MakeWorld) -> None:
    world = make_world(dicom_export_retries=0)
    with scp(ssl_context=server(certificate)) as peer, world.exporting():
        world.destination("PACS", peer.port, tls=True)
        (delivery,) = world.register("PACS", *world.images(1))
        ended = world.ended(delivery)
    assert ended.state is FAILED
    assert "its certificate is not trusted" in ended.message
    assert peer.received == []


def test_a_peer_without_tls_is_no_secret(certificate: tuple[Path, Path], make_world: MakeWorld) -> None:
    world = make_world(dicom_export_retries=0, dicom_export_timeout_s=1, dicom_tls_authorities=certificate[0])
    with scp() as peer, world.exporting():
        world.destination("PACS", peer.port, tls=True)
        (delivery,) = world.register("PACS", *world.images(1))
        assert "TLS with the destination failed" in world.ended(delivery).message
    assert peer.received == []


def test_certificates_that_cannot_be_used_fail_the_destinations_that_need_them(
    tmp_path: Path, make_world: MakeWorld
) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    world = make_world(dicom_export_retries=0, dicom_tls_authorities=tmp_path / "no.pem")
    with scp() as peer, world.exporting():
        world.destination("SAFE", peer.port, tls=True)
        world.destination("PLAIN", peer.port)
        safe, plain = world.register(["SAFE", "PLAIN"], *world.images(1))
        assert "authorities cannot be used" in world.ended(safe).message
        assert world.ended(plain).state is SUCCEEDED


def test_stow_over_https(certificate: tuple[Path, Path], make_world: MakeWorld) -> None:
    world = make_world(dicom_tls_authorities=certificate[0])
    files = {"ssl_certfile": str(certificate[0]), "ssl_keyfile": str(certificate[1])}
    with stow_peer(**files) as peer, world.exporting():
        world.stow("WEB", peer.url)
        (delivery,) = world.register("WEB", *world.images(1), agent="DICOMweb")
        assert world.ended(delivery).state is SUCCEEDED
    assert len(peer.requests) == 1
