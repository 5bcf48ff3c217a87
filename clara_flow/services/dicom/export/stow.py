"""STOW-RS (PS3.18 section 10.5): files as they are, ten in a request, each with its own outcome."""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from pydicom import dcmwrite

from clara_flow.errors import ClaraFlowError
from clara_flow.records.dicom_models import ItemState
from clara_flow.services.dicom.export.dialing import tls_trouble
from clara_flow.services.dicom.export.files import Outgoing, Unsendable
from clara_flow.services.dicom.export.leases import Hold
from clara_flow.services.dicom.export.retry_policy import Verdict, verdict_of
from clara_flow.services.dicom.export.sender import REST_S, Deidentify, DestinationFailed, Tell, cleaned
from clara_flow.services.dicom.http_deadline import CuttableConnection

FILES_PER_REQUEST = 10
CHUNK_BYTES = 128 * 1024
SLOWEST_BYTES_S = 16 * 1024  # of a destination; beyond the time for these, a request has that of two answers
JSON = "application/dicom+json"
# Attributes of the response (PS3.18 Table 10.5.3-1 and PS3.3 C.12.1.1.3.1), as DICOM JSON names them.
FAILED_SEQUENCE, OTHER_FAILURES, STORED_SEQUENCE = "00081198", "0008119A", "00081199"
INSTANCE, FAILURE_REASON, WARNING_REASON = "00081155", "00081197", "00081196"
REFUSES_ALL = {400, 409, 413, 415, 422}  # because of something in the request: one file alone may be to blame
TRY_SINGLY = {400, 413, 415, 422}


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a request; `content` where it is not the file as it lies on the disk."""

    file: Outgoing
    content: bytes | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        return self.file.path.stat().st_size if self.content is None else len(self.content)

    def chunks(self) -> Iterator[bytes]:
        """Its bytes. Raises OSError."""
        if self.content is not None:
            yield self.content
            return
        with self.file.path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


class StowSender:
    """Sends to the studies resource of a DICOMweb server; connections are kept by the client.

    url             of the service (`/studies` is appended) or of its studies resource.
    login           gives the headers that authorize what is held; raises a ClaraFlowError when it cannot.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        verify: Any = True,
        login: Callable[[Hold], Mapping[str, str]] = lambda hold: {},
        profile: str = "",
        deidentify: Deidentify | None = None,
    ) -> None:
        base = url.rstrip("/")
        self.url = base if base.endswith("/studies") else f"{base}/studies"
        self.profile, self.deidentify = profile, deidentify
        one = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        self._client = httpx.Client(timeout=timeout_s, verify=verify, follow_redirects=False, limits=one)
        self._connection = CuttableConnection()
        self._timeout_s, self._login = timeout_s, login
        self._authorization: Mapping[str, str] = {}
        self._rests_until = 0.0

    def probe(self) -> None:
        """There is nothing to ask for: the first request is the probe. See `Sender`."""

    def send(self, files: Sequence[Outgoing], tell: Tell, hold: Hold) -> None:
        """See `Sender`."""
        self._authorization = self._authorized(hold)
        for start in range(0, len(files), FILES_PER_REQUEST):
            parts = []
            for file in files[start : start + FILES_PER_REQUEST]:
                hold.check()
                try:
                    parts.append(self._part(file))
                except Unsendable as reason:
                    tell(file, Verdict(ItemState.POISON, str(reason)))
                except OSError as error:
                    why = (error.strerror or "error").lower()
                    tell(file, Verdict(ItemState.FAILED, f"it cannot be read: {why}"))
            if parts:
                self._store(parts, tell, hold)
        self._rests_until = time.monotonic() + REST_S

    def rest(self) -> float | None:
        """See `Sender`."""
        left = self._rests_until - time.monotonic()
        return left if left > 0 else None

    def close(self) -> None:
        """See `Sender`."""
        self._client.close()

    def _part(self, file: Outgoing) -> Part:
        if not self.profile:
            return Part(file)
        data_set, file = cleaned(file, self.profile, self.deidentify)
        content = io.BytesIO()
        try:
            dcmwrite(content, data_set, enforce_file_format=True)
        except Exception as error:  # noqa: BLE001 - whatever a library makes of whatever a file holds
            raise Unsendable(f"it cannot be encoded ({type(error).__name__})") from None
        return Part(file, content.getvalue())

    def _store(self, parts: list[Part], tell: Tell, hold: Hold) -> None:
        response = self._post(parts, hold)
        status = response.status_code
        if 200 <= status < 300 and not _speaks_dicomweb(response):
            raise DestinationFailed(
                "server",
                f"the destination answered {_status_in_words(status)}, but not in DICOMweb's way: is its URL right?",
            )
        if status in TRY_SINGLY and len(parts) > 1:
            for part in parts:
                self._store([part], tell, hold)
        elif status in REFUSES_ALL or 200 <= status < 300:
            for part in parts:
                tell(part.file, _verdict(response, part.file, is_alone=len(parts) == 1))
        else:
            kind = "credentials" if status in {401, 403} else "server"
            raise DestinationFailed(kind, f"the destination answered {_status_in_words(status)}")

    def _post(self, parts: Sequence[Part], hold: Hold) -> httpx.Response:
        boundary = uuid.uuid4().hex
        heads = [f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()] * len(parts)
        tail = f"--{boundary}--\r\n".encode()
        length = sum(len(head) + part.size + 2 for head, part in zip(heads, parts, strict=True)) + len(tail)

        limit_s = 2 * self._timeout_s + length / SLOWEST_BYTES_S

        def body() -> Iterator[bytes]:
            for head, part in zip(heads, parts, strict=True):
                yield head
                for chunk in part.chunks():
                    hold.check()
                    yield chunk
                yield b"\r\n"
            yield tail

        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Content-Length": str(length),
            "Accept": JSON,
            **self._authorization,
        }
        late = DestinationFailed("silent", f"the destination did not take and answer a request within {limit_s:.0f} s")
        with hold.cutting(self._connection.cut), self._connection.within(limit_s) as is_over:
            try:
                extensions = self._connection.extensions
                response = self._client.post(self.url, content=body(), headers=headers, extensions=extensions)
            except (httpx.HTTPError, OSError) as error:
                hold.check()  # perhaps it was we who cut it
                raise (late if is_over() else self._failure(error)) from None
            if is_over():  # an answer without a length ends where it is cut
                raise late
        return response

    def _failure(self, error: Exception) -> DestinationFailed:
        if isinstance(error, httpx.TimeoutException):
            kind = "unreachable" if isinstance(error, httpx.ConnectTimeout) else "silent"
            return DestinationFailed(kind, f"the destination did not answer within {self._timeout_s:g} s")
        if isinstance(error, httpx.ConnectError):
            why = tls_trouble(error)
            said = f"TLS with the destination failed: {why}" if why else "the destination cannot be reached"
            return DestinationFailed("unreachable", said)
        if isinstance(error, OSError):
            return DestinationFailed("lost", f"a file cannot be read: {(error.strerror or 'error').lower()}")
        return DestinationFailed("lost", f"the destination broke the connection ({type(error).__name__})")

    def _authorized(self, hold: Hold) -> Mapping[str, str]:
        """The header, with the secret as it is now: it may have been renewed."""
        try:
            return self._login(hold)
        except ClaraFlowError as error:
            raise DestinationFailed("credentials", str(error)) from None


def _speaks_dicomweb(response: httpx.Response) -> bool:
    """Whether this may be what a STOW-RS service says to success: DICOM JSON, XML, or nothing; no page for people."""
    if not response.content:
        return True
    kind: str = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind.endswith(("json", "xml")) and kind != "application/xhtml+xml"


def _verdict(response: httpx.Response, file: Outgoing, *, is_alone: bool) -> Verdict:
    """What the response says of one file (PS3.18 section 10.5.3). Silence about it is success only with status 200."""
    outcome = _outcomes(response)
    if (told := outcome.get(file.sop_instance)) is not None:
        return told
    if response.status_code == 200:
        return Verdict(ItemState.SENT)
    if is_alone and response.status_code in TRY_SINGLY:
        return Verdict(ItemState.POISON, f"the destination answered {_status_in_words(response.status_code)}")
    return Verdict(ItemState.FAILED, f"not confirmed ({_status_in_words(response.status_code)})")


def _outcomes(response: httpx.Response) -> dict[str, Verdict]:
    """By SOP Instance UID; empty when the response is no DICOM JSON."""
    try:
        content = response.json()
        content = content[0] if isinstance(content, list) and content else content
        outcomes: dict[str, Verdict] = {}
        for item in _items(content, STORED_SEQUENCE):
            warning = _value(item, WARNING_REASON)
            outcomes[str(_value(item, INSTANCE))] = verdict_of(int(warning)) if warning else Verdict(ItemState.SENT)
        for sequence in (FAILED_SEQUENCE, OTHER_FAILURES):
            for item in _items(content, sequence):
                reason = _value(item, FAILURE_REASON)
                outcomes[str(_value(item, INSTANCE))] = verdict_of(0x0110 if reason is None else int(reason))
    except (ValueError, TypeError, AttributeError, LookupError):
        return {}
    return outcomes


def _items(content: Any, tag: str) -> list[Any]:
    return list(content.get(tag, {}).get("Value", [])) if isinstance(content, dict) else []


def _value(item: Any, tag: str) -> Any:
    values = item.get(tag, {}).get("Value", [])
    return values[0] if values else None


def _status_in_words(status: int) -> str:
    return f"{status} {httpx.codes.get_reason_phrase(status)}".strip()
