"""Tries a destination from its name to a stored instance, and says in words what failed and what to do.

Over DIMSE it calls with the association of our exports, so that what passes here passes there.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from dicomweb_client.web import DICOMwebClient
from pydicom.uid import SecondaryCaptureImageStorage

from clara_flow.records.delivery_states import SENT
from clara_flow.records.dicom_models import Destination, DestinationKind
from clara_flow.services.dicom.credentials import authorization, secret_of
from clara_flow.services.dicom.export.dialing import tls_trouble
from clara_flow.services.dicom.export.link import Link
from clara_flow.services.dicom.export.proposals import Context, Node
from clara_flow.services.dicom.export.retry_policy import Verdict, verdict_of
from clara_flow.services.dicom.export.sender import DestinationFailed
from clara_flow.services.dicom.export.senders import client_context
from clara_flow.services.dicom.probe_remedies import CHECK_SPELLING, SEE_ITS_LOG, remedy_for
from clara_flow.services.dicom.synthetic import TRANSFER_SYNTAXES, encoded, synthetic_instance
from clara_flow.settings import Settings

VERIFICATION = "1.2.840.10008.1.1"
PORTS = {"http": 80, "https": 443}
STUDIES = "/studies"
LONGEST_S = 20.0  # somebody waits


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried. `remedy`: what to do, where it failed."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who tries: our AE title, how long each answer may take, how we speak TLS, the secret of the credentials.

    authorities     certificates (PEM file) of HTTPS servers; None: the system's.
    certificate     ours and its key (PEM files), for HTTPS servers that ask for one.
    """

    ae_title: str
    timeout_s: float
    tls: ssl.SSLContext | None = None
    secret: str = ""
    authorities: Path | None = None
    certificate: tuple[Path, Path] | None = None

    @classmethod
    def of(cls, settings: Settings, destination: Destination) -> Caller:
        """As exports call this destination. Raises SettingsError, ServiceError for credentials, DestinationFailed."""
        certificate, key = settings.dicom_tls_certificate, settings.dicom_tls_key
        return cls(
            ae_title=destination.calling_ae or settings.dicom_scu_ae_title,
            timeout_s=min(settings.dicom_export_timeout_s, LONGEST_S),
            tls=client_context(settings) if destination.tls else None,
            secret=secret_of(settings, destination.credentials),
            authorities=settings.dicom_tls_authorities,
            certificate=(certificate, key) if certificate and key else None,
        )


class Failed(Exception):
    """A step failed; those after it would too."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail, self.remedy = detail, remedy


Attempt = tuple[str, Callable[[], str]]


def probe(destination: Destination, caller: Caller, *, store: bool = True) -> Iterator[Step]:
    """Try one step after the other until one fails; each is told as soon as it is done.

    store   whether a small synthetic image is left there; it is the same one every time and says what it is.
    """
    tried = (
        DimseProbe(destination, caller) if destination.kind is DestinationKind.DIMSE else StowProbe(destination, caller)
    )
    try:
        for name, attempt in tried.attempts(store):
            try:
                yield Step(name, True, attempt())
            except Failed as failure:
                yield Step(name, False, failure.detail, failure.remedy)
                return
    finally:
        tried.close()


class DimseProbe:
    """Name, connection, association, C-ECHO, C-STORE."""

    def __init__(self, destination: Destination, caller: Caller) -> None:
        self.destination, self.caller = destination, caller
        self._link: Link | None = None

    def attempts(self, store: bool) -> list[Attempt]:
        """In their order."""
        host, port = self.destination.host, self.destination.port or 0
        attempts: list[Attempt] = [
            ("name", lambda: resolve(host)),
            ("connection", lambda: reach(host, port, self.caller.timeout_s)),
            ("association", self._associate),
            ("echo", self._echo),
        ]
        return [*attempts, ("store", self._store)] if store else attempts

    def close(self) -> None:
        """End the association in good order."""
        if self._link is not None:
            self._link.release()

    def _associate(self) -> str:
        row = self.destination
        node = Node(
            host=row.host,
            port=row.port or 0,
            called=row.ae_title,
            calling=self.caller.ae_title,
            timeout_s=self.caller.timeout_s,
            tls=self.caller.tls if row.tls else None,
        )
        wanted = [
            Context(VERIFICATION, TRANSFER_SYNTAXES),
            Context(str(SecondaryCaptureImageStorage), TRANSFER_SYNTAXES),
        ]
        self._link = self._asking(lambda: Link(node, wanted).open())
        return f"{node.called} takes us as {node.calling}" + (" over TLS" if node.tls else "")

    def _echo(self) -> str:
        number, _ = self._context(VERIFICATION)
        if not number:
            return "it does not answer C-ECHO, which storing does not need"
        status = self._asking(lambda: self._established().echo(number))
        if status:
            raise Failed(f"C-ECHO was answered with 0x{status:04X}", SEE_ITS_LOG)
        return "C-ECHO is answered"

    def _store(self) -> str:
        number, syntax = self._context(SecondaryCaptureImageStorage)
        if not number:
            raise Failed(
                "it does not take Secondary Capture images, which the test sends",
                "Other SOP classes may be taken all the same. Allow Secondary Capture there, or test with --no-store.",
            )
        instance = synthetic_instance(syntax)
        status = self._asking(
            lambda: self._established().store(
                number, instance.SOPClassUID, instance.SOPInstanceUID, BytesIO(encoded(instance))
            )
        )
        return _stored(verdict_of(status))

    def _context(self, sop_class: str) -> tuple[int, str]:
        """Number and transfer syntax of the context that the peer accepted for it; (0, "") without any."""
        contexts = self._established().contexts.items()
        return next(((number, syntax) for number, (accepted, syntax) in contexts if accepted == sop_class), (0, ""))

    def _established(self) -> Link:
        assert self._link is not None  # noqa: S101  the step before made it
        return self._link

    def _asking(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except DestinationFailed as error:
            called, calling = self.destination.ae_title, self.caller.ae_title
            raise Failed(str(error), remedy_for(str(error), error.kind, called=called, calling=calling)) from None


class StowProbe:
    """Name, connection, a request of STOW-RS."""

    def __init__(self, destination: Destination, caller: Caller) -> None:
        self.url = destination.url.rstrip("/").removesuffix(STUDIES)
        self.caller = caller
        self._session = requests.Session()
        self._session.trust_env = False  # else REQUESTS_CA_BUNDLE comes before the authorities
        self._session.proxies = requests.utils.get_environ_proxies(self.url)

    def attempts(self, store: bool) -> list[Attempt]:
        """In their order."""
        parts = urlsplit(self.url)
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        attempts: list[Attempt] = [
            ("name", lambda: resolve(host)),
            ("connection", lambda: reach(host, port, self.caller.timeout_s)),
        ]
        return [*attempts, ("store", self._store)] if store else attempts

    def close(self) -> None:
        """Let go of the connection."""
        self._session.close()

    def _store(self) -> str:
        client = DICOMwebClient(
            self.url,
            session=self._session,
            headers=authorization(self.caller.secret),
            timeout=self.caller.timeout_s,
        )
        client.set_http_retry_params(retry=False)
        system = ssl.get_default_verify_paths()
        self._session.verify = str(self.caller.authorities or system.cafile or system.capath or "") or True
        if self.caller.certificate is not None:
            certificate, key = self.caller.certificate
            self._session.cert = str(certificate), str(key)
        try:
            answer = client.store_instances([synthetic_instance(TRANSFER_SYNTAXES[0])])
        except requests.HTTPError as error:
            raise _refused(error.response) from None
        except requests.exceptions.SSLError as error:
            said = f"TLS with the destination failed: {tls_trouble(error)}"
            raise Failed(said, remedy_for(said)) from None
        except requests.Timeout:
            raise Failed(f"it did not answer within {self.caller.timeout_s:g} s", SEE_ITS_LOG) from None
        except requests.RequestException as error:
            raise Failed(f"the request failed ({type(error).__name__})", SEE_ITS_LOG) from None
        except Exception as error:  # noqa: BLE001  whatever the library makes of whatever a server answers
            raise Failed(f"its answer cannot be read ({type(error).__name__})", "Is it the DICOMweb root?") from None
        failed = answer.get("FailedSOPSequence")
        if failed:
            return _stored(verdict_of(int(failed[0].get("FailureReason", 0x0110))))
        return "the synthetic image is stored"


def resolve(host: str) -> str:
    """The addresses of a host. Raises Failed."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Failed(f"nobody knows the host {host!r}", CHECK_SPELLING) from None
    return f"{host} is {', '.join(dict.fromkeys(str(entry[4][0]) for entry in found))}"


def reach(host: str, port: int, timeout_s: float) -> str:
    """A connection, closed again. Raises Failed."""
    place = f"port {port} of {host}"
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except TimeoutError:
        raise Failed(
            f"{place} does not answer within {timeout_s:g} s",
            "Does the machine run? Does a firewall on the way let this connection through?",
        ) from None
    except ConnectionRefusedError:
        raise Failed(f"nobody listens on {place}", "Is the port right? Does the service run?") from None
    except OSError as error:
        raise Failed(f"{place} cannot be reached: {(error.strerror or 'error').lower()}", CHECK_SPELLING) from None
    return f"{place} takes connections"


def _stored(verdict: Verdict) -> str:
    if verdict.state not in SENT:
        raise Failed(f"it did not store the synthetic image: {verdict.reason}", SEE_ITS_LOG)
    return "the synthetic image is stored" + (f" ({verdict.reason})" if verdict.reason else "")


def _refused(response: requests.Response | None) -> Failed:
    if response is None:
        return Failed("the request failed", SEE_ITS_LOG)
    status = response.status_code
    detail = f"it answered {status} {response.reason or ''}".rstrip()
    if status in {401, 403}:
        return Failed(detail, "Its login is missing or wrong: see the destination's --credentials.")
    if status in {404, 405, 501}:
        return Failed(detail, "Is the URL the DICOMweb root, and does it offer STOW-RS?")
    return Failed(detail, SEE_ITS_LOG)
