"""DICOM over TLS: TLS 1.2 and newer (PS3.15 Annex B), certificates of peers where authorities are set."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pynetdicom import AE, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from services.dicom.wire.conftest import Listening
from services.dicom.wire.scripted_peer import ABORT, ScriptedPeer, data_pdu, data_set, store_rq
from waiting import eventually

from clara_flow.errors import SettingsError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by openssl")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of localhost that is its own authority, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return paths


@pytest.fixture
def secure(listen: Callable[..., Listening], certificate: tuple[Path, Path]) -> Listening:
    """A listener with a TLS port beside the plain one."""
    return listen(tls_port=0, tls_certificate=certificate[0], tls_key=certificate[1])


class SecurePeer(ScriptedPeer):
    """A scripted peer behind TLS."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        super().__init__(port)
        self.socket = context.wrap_socket(self.socket, server_hostname="localhost")


def client(certificate: tuple[Path, Path], *, own: bool = False) -> ssl.SSLContext:
    """Trusts the listener; own: shows a certificate itself."""
    context = ssl.create_default_context(cafile=str(certificate[0]))
    if own:
        context.load_cert_chain(*certificate)
    return context


def test_stored_over_tls(secure: Listening, certificate: tuple[Path, Path]) -> None:
    data = data_set(PixelData=bytes(3_000_000))
    assert secure.listener.tls_port is not None
    with SecurePeer(secure.listener.tls_port, client(certificate)) as peer:
        peer.associate()
        peer.send(data_pdu(1, store_rq(), command=True))
        for at in range(0, len(data), 100_000):
            peer.send(data_pdu(1, data[at : at + 100_000], command=False, last=at + 100_000 >= len(data)))
        assert peer.read_status() == 0
        peer.release()
    assert secure.data_sets() == [data]
    assert [closed.how for closed in secure.closed()] == ["released"]
    with secure.peer() as plain:  # the plain port is still one
        plain.associate()
        plain.release()


def test_pynetdicom_over_tls(secure: Listening, certificate: tuple[Path, Path]) -> None:
    ae = AE(ae_title="MODALITY")
    association = ae.associate(
        "127.0.0.1",
        secure.listener.tls_port,
        [build_context(Verification)],
        ae_title="BRAIN",
        tls_args=(client(certificate), "localhost"),
    )
    assert association.is_established
    assert association.send_c_echo().Status == 0
    association.release()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_and_plain_text_are_refused(secure: Listening, certificate: tuple[Path, Path]) -> None:
    port = secure.listener.tls_port
    assert port is not None
    old = client(certificate)
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        SecurePeer(port, old)
    with ScriptedPeer(port) as peer:
        peer.send(ABORT)
        assert peer.read_pdu()[:1] != b"\2"
    eventually(lambda: secure.listener.counters.rejections["tls"] >= 2)


def test_certificates_of_peers(listen: Callable[..., Listening], certificate: tuple[Path, Path]) -> None:
    listening = listen(
        tls_port=0, tls_certificate=certificate[0], tls_key=certificate[1], tls_authorities=certificate[0]
    )
    port = listening.listener.tls_port
    assert port is not None
    with SecurePeer(port, client(certificate, own=True)) as peer:
        peer.associate()
        peer.release()
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)), SecurePeer(port, client(certificate)) as peer:
        peer.associate()


def test_a_handshake_that_never_ends(listen: Callable[..., Listening], certificate: tuple[Path, Path]) -> None:
    listening = listen(tls_port=0, tls_certificate=certificate[0], tls_key=certificate[1], request_timeout_s=0.2)
    assert listening.listener.tls_port is not None
    with socket.create_connection(("127.0.0.1", listening.listener.tls_port), timeout=5) as silent:
        assert silent.recv(1) == b""


@pytest.mark.parametrize("missing", ["tls_certificate", "tls_key"])
def test_settings_that_do_not_do(
    listen: Callable[..., Listening], certificate: tuple[Path, Path], missing: str, tmp_path: Path
) -> None:
    paths = {"tls_certificate": certificate[0], "tls_key": certificate[1]}
    for value in (None, tmp_path / "nowhere.pem"):
        with pytest.raises(SettingsError):
            listen(tls_port=0, **(paths | {missing: value}))
