"""DICOM over TLS: TLS 1.2 and newer (PS3.15 Annex B), certificates of peers where authorities are set."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import dcmtk
import pytest
from certificates import Authority, Certificate
from pydicom.data import get_testdata_file
from pynetdicom import AE, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from services.dicom.wire.conftest import Listening
from services.dicom.wire.scripted_peer import ABORT, ScriptedPeer, data_pdu, data_set, store_rq
from waiting import eventually

from clara_flow.errors import SettingsError


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Known to the listener and its peers."""
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    """The listener's."""
    return authority.issue("listener")


@pytest.fixture
def secure(listen: Callable[..., Listening], certificate: Certificate) -> Listening:
    """A listener with a TLS port beside the plain one."""
    return listen(tls_port=0, tls_certificate=certificate.certificate, tls_key=certificate.key)


class SecurePeer(ScriptedPeer):
    """A scripted peer behind TLS."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        super().__init__(port)
        self.socket = context.wrap_socket(self.socket, server_hostname="localhost")


def client(authority: Authority, own: Certificate | None = None) -> ssl.SSLContext:
    """Trusts the listener; shows its own certificate where it has one."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if own is not None:
        context.load_cert_chain(own.certificate, own.key)
    return context


def test_stored_over_tls(secure: Listening, authority: Authority) -> None:
    data = data_set(PixelData=bytes(3_000_000))
    assert secure.listener.tls_port is not None
    with SecurePeer(secure.listener.tls_port, client(authority)) as peer:
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


def test_pynetdicom_over_tls(secure: Listening, authority: Authority) -> None:
    ae = AE(ae_title="MODALITY")
    association = ae.associate(
        "127.0.0.1",
        secure.listener.tls_port,
        [build_context(Verification)],
        ae_title="BRAIN",
        tls_args=(client(authority), "localhost"),
    )
    assert association.is_established
    assert association.send_c_echo().Status == 0
    association.release()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_and_plain_text_are_refused(secure: Listening, authority: Authority) -> None:
    port = secure.listener.tls_port
    assert port is not None
    old = client(authority)
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        SecurePeer(port, old)
    with ScriptedPeer(port) as peer:
        peer.send(ABORT)
        assert peer.read_pdu()[:1] != b"\2"
    eventually(lambda: secure.listener.counters.rejections["tls"] >= 2)


@pytest.fixture
def choosy(listen: Callable[..., Listening], authority: Authority, certificate: Certificate) -> Listening:
    """A listener that wants to see certificates."""
    return listen(
        tls_port=0,
        tls_certificate=certificate.certificate,
        tls_key=certificate.key,
        tls_authorities=authority.certificate,
    )


def test_certificates_of_peers(choosy: Listening, authority: Authority, tmp_path: Path) -> None:
    port = choosy.listener.tls_port
    assert port is not None
    with SecurePeer(port, client(authority, authority.issue("modality"))) as peer:
        peer.associate()
        peer.release()
    for own in (None, Authority(tmp_path, "elsewhere").issue("stranger"), authority.issue("late", days=-1)):
        refused = pytest.raises((ssl.SSLError, ConnectionError, AssertionError))
        with refused, SecurePeer(port, client(authority, own)) as peer:
            peer.associate()
    eventually(lambda: choosy.listener.counters.rejections["tls"] == 3)


def storescu(port: int | None, *options: str | Path) -> tuple[int, str]:
    """dcmtk's sends a file; its exit status, and what it says."""
    node = ["-aet", "MODALITY", "-aec", "BRAIN", "127.0.0.1", str(port), str(get_testdata_file("CT_small.dcm"))]
    sent = dcmtk.run("storescu", *options, *node)
    return sent.returncode, sent.stderr


@pytest.mark.parametrize("profile", ["--profile-bcp195", "--profile-bcp195-nd", "--profile-bcp195-ex"])
def test_secure_profiles_of_dcmtk(choosy: Listening, authority: Authority, profile: str) -> None:
    """PS3.15 Annex B.9 to B.12."""
    own = authority.issue("modality")
    options = ["+tls", own.key, own.certificate, "+cf", authority.certificate, profile]
    assert storescu(choosy.listener.tls_port, *options) == (0, "")
    assert len(choosy.stored()) == 1


def test_dcmtk_that_shows_no_certificate(secure: Listening, authority: Authority) -> None:
    assert storescu(secure.listener.tls_port, "+tla", "+cf", authority.certificate) == (0, "")
    assert len(secure.stored()) == 1


def test_dcmtk_that_shows_no_certificate_to_whom_wants_one(choosy: Listening, authority: Authority) -> None:
    status, said = storescu(choosy.listener.tls_port, "+tla", "+cf", authority.certificate)
    assert status != 0
    assert said
    assert choosy.files() == []


def test_dcmtk_that_knows_another_authority_or_no_tls(secure: Listening, tmp_path: Path) -> None:
    elsewhere = Authority(tmp_path, "elsewhere")
    status, said = storescu(secure.listener.tls_port, "+tla", "+cf", elsewhere.certificate)
    assert status != 0
    assert "certificate verify failed" in said
    assert storescu(secure.listener.tls_port)[0] != 0
    assert secure.files() == []


def test_a_handshake_that_never_ends(listen: Callable[..., Listening], certificate: Certificate) -> None:
    listening = listen(
        tls_port=0, tls_certificate=certificate.certificate, tls_key=certificate.key, request_timeout_s=0.2
    )
    assert listening.listener.tls_port is not None
    with socket.create_connection(("127.0.0.1", listening.listener.tls_port), timeout=5) as silent:
        assert silent.recv(1) == b""


@pytest.mark.parametrize("missing", ["tls_certificate", "tls_key"])
def test_settings_that_do_not_do(
    listen: Callable[..., Listening], certificate: Certificate, missing: str, tmp_path: Path
) -> None:
    paths = {"tls_certificate": certificate.certificate, "tls_key": certificate.key}
    for value in (None, tmp_path / "nowhere.pem"):
        with pytest.raises(SettingsError):
            listen(tls_port=0, **(paths | {missing: value}))
