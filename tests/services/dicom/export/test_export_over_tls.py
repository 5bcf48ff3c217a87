"""TLS with destinations: authorities, our own certificate, and what is said when they do not fit."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from certificates import Authority, Certificate
from dcmtk import Storescp
from services.dicom.export.export_world import MakeWorld
from services.dicom.export.peers import scp
from services.dicom.export.stow_peer import stow_peer

from clara_flow.records.dicom_models import DeliveryState

SUCCEEDED, FAILED = DeliveryState.SUCCEEDED, DeliveryState.FAILED


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Known to us and to our peers."""
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    """A peer's."""
    return authority.issue("peer")


def server(authority: Authority, certificate: Certificate, *, asks_for_ours: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    if asks_for_ours:
        context.load_verify_locations(authority.certificate)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.mark.parametrize("asks_for_ours", [False, True])
def test_c_store_over_tls(
    asks_for_ours: bool, authority: Authority, certificate: Certificate, make_world: MakeWorld
) -> None:
    own = authority.issue("ours")
    ours = {"dicom_tls_certificate": own.certificate, "dicom_tls_key": own.key} if asks_for_ours else {}
    world = make_world(dicom_tls_authorities=authority.certificate, **ours)
    context = server(authority, certificate, asks_for_ours=asks_for_ours)
    with scp(ssl_context=context) as peer, world.exporting():
        world.destination("PACS", peer.port, tls=True)
        (delivery,) = world.register("PACS", *world.images(2, side=512))
        assert world.ended(delivery).state is SUCCEEDED
    assert len(peer.received) == 2


def test_a_certificate_of_somebody_else_is_refused(
    authority: Authority, certificate: Certificate, make_world: MakeWorld
) -> None:
    world = make_world(dicom_export_retries=0)
    with scp(ssl_context=server(authority, certificate)) as peer, world.exporting():
        world.destination("PACS", peer.port, tls=True)
        (delivery,) = world.register("PACS", *world.images(1))
        ended = world.ended(delivery)
    assert ended.state is FAILED
    assert "its certificate is not trusted" in ended.message
    assert peer.received == []


@pytest.mark.parametrize("profile", ["--profile-bcp195", "--profile-bcp195-nd", "--profile-bcp195-ex"])
def test_secure_profiles_of_dcmtk(
    profile: str, authority: Authority, certificate: Certificate, make_world: MakeWorld, tmp_path: Path
) -> None:
    own = authority.issue("ours")
    world = make_world(
        dicom_tls_authorities=authority.certificate, dicom_tls_certificate=own.certificate, dicom_tls_key=own.key
    )
    options = ["+tls", certificate.key, certificate.certificate, "+cf", authority.certificate, profile]
    with Storescp(tmp_path / "received", *options) as peer, world.exporting():
        world.destination("PACS", peer.port, tls=True)
        (delivery,) = world.register("PACS", *world.images(2))
        assert world.ended(delivery).state is SUCCEEDED
    assert len(peer.received) == 2


def test_a_peer_without_tls_is_no_secret(authority: Authority, make_world: MakeWorld) -> None:
    world = make_world(dicom_export_retries=0, dicom_export_timeout_s=1, dicom_tls_authorities=authority.certificate)
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


def test_stow_over_https(authority: Authority, certificate: Certificate, make_world: MakeWorld) -> None:
    world = make_world(dicom_tls_authorities=authority.certificate)
    files = {"ssl_certfile": str(certificate.certificate), "ssl_keyfile": str(certificate.key)}
    with stow_peer(**files) as peer, world.exporting():
        world.stow("WEB", peer.url)
        (delivery,) = world.register("WEB", *world.images(1), agent="DICOMweb")
        assert world.ended(delivery).state is SUCCEEDED
    assert len(peer.requests) == 1


def test_a_dicomweb_server_that_is_not_trusted_is_told_from_one_that_is_away(
    certificate: Certificate, make_world: MakeWorld
) -> None:
    world = make_world(dicom_export_retries=0)
    files = {"ssl_certfile": str(certificate.certificate), "ssl_keyfile": str(certificate.key)}
    with stow_peer(**files) as peer, world.exporting():
        world.stow("WEB", peer.url)
        (delivery,) = world.register("WEB", *world.images(1), agent="DICOMweb")
        assert "TLS with the destination failed: its certificate is not trusted" in world.ended(delivery).message
    assert peer.requests == []
