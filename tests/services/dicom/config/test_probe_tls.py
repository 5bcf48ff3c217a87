"""Destinations that speak TLS are tried: what is wrong with certificates is told, and whose they are."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dcmtk
import pytest
from certificates import Authority, Certificate
from cryptography import x509
from services.dicom.export.stow_peer import stow_peer

from clara_flow.records.dicom_models import Destination, DestinationKind
from clara_flow.services.dicom.probe import Caller, Step, probe
from clara_flow.settings import load_settings

ELSEWHERE = (x509.DNSName("other.hospital.example"),)


@dataclass(frozen=True)
class Certificates:
    """What the tests' peers and we show each other."""

    authority: Authority
    elsewhere: Authority
    peer: Certificate
    ours: Certificate


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Two authorities; peer and we are of the first."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    elsewhere = Authority(tmp_path_factory.mktemp("elsewhere"), "elsewhere")
    return Certificates(authority, elsewhere, authority.issue("pacs"), authority.issue("ours"))


def tried(
    destination: Destination, folder: Path, *, trusts: Authority | None = None, shows: Certificate | None = None
) -> list[Step]:
    """Try it as exports would, with these settings."""
    settings = load_settings(
        data_dir=folder,
        dicom_export_timeout_s=5,
        dicom_tls_authorities=trusts and trusts.certificate,
        dicom_tls_certificate=shows and shows.certificate,
        dicom_tls_key=shows and shows.key,
    )
    return list(probe(destination, Caller.of(settings, destination)))


def pacs(port: int, *, tls: bool = True) -> Destination:
    return Destination(name="PACS", ae_title="PACS", host="127.0.0.1", port=port, tls=tls)


def storescp(folder: Path, known: Certificates, *options: str, shows: Certificate | None = None) -> dcmtk.Storescp:
    """dcmtk's with TLS; it wants certificates of the first authority."""
    own = shows or known.peer
    return dcmtk.Storescp(folder, "+tls", own.key, own.certificate, "+cf", known.authority.certificate, *options)


@pytest.mark.parametrize("options", [(), ("--ignore-peer-cert",)], ids=["wants ours", "wants none"])
def test_one_that_is_well(options: tuple[str, ...], known: Certificates, tmp_path: Path) -> None:
    with storescp(tmp_path / "received", known, *options) as peer:
        steps = tried(pacs(peer.port), tmp_path, trusts=known.authority, shows=None if options else known.ours)
    assert [step.name for step in steps if step.ok] == ["name", "connection", "association", "echo", "store"]
    assert steps[2].detail.endswith("over TLS")
    assert len(peer.received) == 1


@pytest.mark.parametrize(
    ("days", "names", "words", "remedy"),
    [
        (-1, None, "certificate has expired", "has run out"),
        (2, ELSEWHERE, "not valid for '127.0.0.1'", "names another host"),
    ],
    ids=["expired", "of another host"],
)
def test_its_certificate_is_not_good(
    days: int,
    names: tuple[x509.GeneralName, ...] | None,
    words: str,
    remedy: str,
    known: Certificates,
    tmp_path: Path,
) -> None:
    bad = known.authority.issue(f"bad{days}", days=days, **({"names": names} if names else {}))
    with storescp(tmp_path / "received", known, shows=bad) as peer:
        failed = tried(pacs(peer.port), tmp_path, trusts=known.authority, shows=known.ours)[-1]
    assert (failed.name, failed.ok) == ("association", False)
    assert words in failed.detail
    assert remedy in failed.remedy


@pytest.mark.parametrize("is_set", [True, False], ids=["another", "the system's"])
def test_its_authority_is_not_known(is_set: bool, known: Certificates, tmp_path: Path) -> None:
    with storescp(tmp_path / "received", known) as peer:
        failed = tried(pacs(peer.port), tmp_path, trusts=known.elsewhere if is_set else None, shows=known.ours)[-1]
    assert (failed.name, failed.ok) == ("association", False)
    assert "certificate is not trusted" in failed.detail
    assert "dicom_tls_authorities" in failed.remedy


@pytest.mark.parametrize("whose", ["none", "a stranger's", "expired"])
def test_it_does_not_take_our_certificate(whose: str, known: Certificates, tmp_path: Path) -> None:
    shown = {
        "none": lambda: None,
        "a stranger's": lambda: known.elsewhere.issue("stranger"),
        "expired": lambda: known.authority.issue("late", days=-1),
    }[whose]()
    with storescp(tmp_path / "received", known) as peer:
        failed = tried(pacs(peer.port), tmp_path, trusts=known.authority, shows=shown)[-1]
    assert (failed.name, failed.ok) == ("association", False)
    assert "dicom_tls_certificate" in failed.remedy
    assert peer.received == []


@pytest.mark.parametrize("profile", ["--profile-aes", "--profile-null"])
def test_it_speaks_old_profiles_alone(profile: str, known: Certificates, tmp_path: Path) -> None:
    """Those that PS3.15 has retired."""
    with storescp(tmp_path / "received", known, profile) as peer:
        failed = tried(pacs(peer.port), tmp_path, trusts=known.authority, shows=known.ours)[-1]
    assert (failed.name, failed.ok) == ("association", False)
    assert "TLS (1.2 and newer, BCP 195)" in failed.remedy


def test_one_side_alone_speaks_tls(known: Certificates, tmp_path: Path) -> None:
    with dcmtk.Storescp(tmp_path / "plain") as peer:
        failed = tried(pacs(peer.port), tmp_path, trusts=known.authority)[-1]
    assert (failed.name, failed.ok) == ("association", False)
    assert "speaks no TLS" in failed.remedy
    with storescp(tmp_path / "secure", known) as peer:
        failed = tried(pacs(peer.port, tls=False), tmp_path)[-1]
    assert (failed.name, failed.ok) == ("association", False)
    assert "Does it want TLS (--tls)" in failed.remedy


@contextlib.contextmanager
def hangs_up() -> Iterator[int]:
    """A port where every connection is closed as soon as something has come."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65536)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_a_connection_that_ends_within_the_handshake(known: Certificates, tmp_path: Path) -> None:
    with hangs_up() as port:
        failed = tried(pacs(port), tmp_path, trusts=known.authority)[-1]
    assert "TLS with the destination failed: within TLS, without a reason" in failed.detail
    assert "speaks no TLS" in failed.remedy


@pytest.mark.parametrize("is_known", [True, False])
def test_a_dicomweb_server_with_tls(
    is_known: bool, known: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment says for other programs."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str((known.elsewhere if is_known else known.authority).certificate))
    files = {"ssl_certfile": str(known.peer.certificate), "ssl_keyfile": str(known.peer.key)}
    with stow_peer(**files) as peer:
        destination = Destination(name="WEB", kind=DestinationKind.STOW, url=peer.url)
        last = tried(destination, tmp_path, trusts=known.authority if is_known else known.elsewhere)[-1]
    assert (last.name, last.ok) == ("store", is_known)
    if not is_known:
        assert "TLS with the destination failed: its certificate is not trusted" in last.detail
        assert "dicom_tls_authorities" in last.remedy
