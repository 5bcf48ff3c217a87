"""Fetches the inputs of inference requests by HTTP: DICOMweb (QIDO-RS, WADO-RS) and FHIR.

By httpx and our own multipart reader: files go to the disk as they come, byte for byte, however many there are.
Sentences of errors name resources by their number: addresses may hold what leads to a patient.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx

from clara_flow.errors import InputError
from clara_flow.services.dicom.http_deadline import CuttableConnection
from clara_flow.services.dicom.inference_basket import Basket
from clara_flow.services.dicom.inference_request import Inputs, Resource, Wanted
from clara_flow.services.dicom.web_multipart import MultipartReader, PartBegin, PartEnd, boundary_of, content_type
from clara_flow.services.dicom.wire.negotiation import is_uid

DICOMWEB_LIMIT_S = 3600.0
OTHER_LIMIT_S = 300.0
CONNECT_S, SILENCE_S = 30.0, 300.0
LARGEST_RECORD_BYTES = 64 * 2**20
LARGEST_ANSWER_BYTES = 64 * 2**20
ACCEPT_DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'
ACCEPT_JSON = "application/dicom+json"
FHIR_KIND = {"json": "application/fhir+json", "xml": "application/fhir+xml"}
STUDY = "0020000D"

Fault = Callable[[str], None]


def fetch_dicomweb(number: int, resource: Resource, inputs: Inputs, basket: Basket, on_fault: Fault) -> None:
    """Everything of `inputs` that a DICOMweb server has. What cannot be fetched is told to `on_fault`.

    number      of the resource, for people.
    """
    with _client(resource, DICOMWEB_LIMIT_S) as client:
        for wanted in _wanted(client, inputs, lambda text: on_fault(f"DICOMweb resource {number}: {text}")):
            basket.check()
            path = _path(wanted)
            if basket.has(f"{number}{path}"):
                continue
            with _telling(f"DICOMweb resource {number}", on_fault):
                _retrieve(client, path, basket)
                basket.note(f"{number}{path}")


def fetch_fhir(number: int, resource: Resource, inputs: Inputs, basket: Basket, on_fault: Fault) -> None:
    """Every FHIR resource of `inputs`, as `<type>-<id>.json|xml` in lower case."""
    with _client(resource, OTHER_LIMIT_S) as client:
        for kind, identity in inputs.fhir:
            basket.check()
            path = f"/{kind}/{identity}"
            if basket.has(f"{number}{path}"):
                continue
            with _telling(f"FHIR resource {number}", on_fault):
                content = _small(client, path, {}, FHIR_KIND[inputs.fhir_format], LARGEST_RECORD_BYTES)
                with basket.record(f"{kind}-{identity}.{inputs.fhir_format}".lower()) as file:
                    file.write(content)
                basket.note(f"{number}{path}")


@contextmanager
def _client(resource: Resource, limit_s: float) -> Iterator[_Client]:
    timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
    one = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    with httpx.Client(headers=resource.connection.headers(), timeout=timeout, limits=one) as client:
        yield _Client(client, resource.connection.uri, time.monotonic() + limit_s)


class _Client:
    """A client of one address, until `deadline` of the monotonic clock."""

    def __init__(self, client: httpx.Client, address: str, deadline: float) -> None:
        self._client, self._address, self._deadline = client, address, deadline
        self._connection = CuttableConnection()

    @contextmanager
    def get(self, path: str, accept: str, parameters: dict[str, str] | None = None) -> Iterator[httpx.Response]:
        """An answer to be read in pieces. Raises InputError for one that is no success, or takes too long."""
        headers = {"accept": accept, "accept-encoding": "identity"}
        with self._connection.within(self._deadline - time.monotonic()) as is_over:
            try:
                with self._client.stream(
                    "GET",
                    self._address + path,
                    params=parameters,
                    headers=headers,
                    extensions=self._connection.extensions,
                ) as answer:
                    if answer.status_code not in {200, 204, 206}:
                        raise InputError(f"the answer is {_in_words(answer.status_code)}")
                    if answer.headers.get("content-encoding", "identity").lower() != "identity":
                        raise InputError("the answer is compressed, which was not asked for")  # perhaps a bomb
                    yield answer
            except httpx.HTTPError:
                if is_over():
                    raise InputError("the time is over") from None
                raise

    def pieces(self, answer: httpx.Response) -> Iterator[bytes]:
        """Its body. Raises InputError when it takes too long."""
        yield from answer.iter_raw()
        if time.monotonic() >= self._deadline:  # one without a length ends where it is cut
            raise InputError("the time is over")


def _in_words(status: int) -> str:
    """With the standard's words, not the server's: those may tell of a patient."""
    return f"{status} {httpx.codes.get_reason_phrase(status)}".strip()


def _wanted(client: _Client, inputs: Inputs, on_fault: Fault) -> Iterator[Wanted]:
    """What is named, then the studies that QIDO-RS finds."""
    yield from inputs.objects
    queries = [("PatientID", one) for one in inputs.patient_ids]
    queries += [("AccessionNumber", one) for one in inputs.accession_numbers]
    for keyword, value in queries:
        studies: list[Wanted] = []
        with _telling(f"the query for {keyword}", on_fault):
            content = _small(client, "/studies", {keyword: value}, ACCEPT_JSON, LARGEST_ANSWER_BYTES)
            studies = [Wanted(uid) for uid in _studies(content)]
            if not studies:
                raise InputError("nothing was found")
        yield from studies


def _studies(content: bytes) -> list[str]:
    """Study Instance UIDs of a QIDO-RS answer."""
    if not content:
        return []
    try:
        results: list[dict[str, Any]] = json.loads(content)
        uids = [result[STUDY]["Value"][0] for result in results]
    except (ValueError, KeyError, IndexError, TypeError):
        raise InputError("the answer is no DICOM JSON") from None
    return list(dict.fromkeys(uid for uid in uids if isinstance(uid, str) and is_uid(uid)))


def _path(wanted: Wanted) -> str:
    levels = (("studies", wanted.study), ("series", wanted.series), ("instances", wanted.instance))
    return "".join(f"/{level}/{quote(uid, safe='')}" for level, uid in levels if uid)


def _retrieve(client: _Client, path: str, basket: Basket) -> None:
    """WADO-RS: every part becomes a file."""
    count = 0
    with client.get(path, ACCEPT_DICOM) as answer:
        kind = answer.headers.get("content-type", "")
        if content_type(kind)[0] == "application/dicom":  # one file alone, as some servers send it
            with basket.instance() as only:
                for piece in client.pieces(answer):
                    basket.check()
                    only.write(piece)
            return
        reader = MultipartReader(boundary_of(kind))
        with ExitStack() as part:
            file: BinaryIO | None = None
            for piece in client.pieces(answer):
                basket.check()  # a file may be without end
                for event in reader.feed(piece):
                    if isinstance(event, PartBegin):
                        file = part.enter_context(basket.instance())
                    elif isinstance(event, PartEnd):
                        part.pop_all().close()
                        count, file = count + 1, None
                    elif file is not None:
                        file.write(event)
            reader.close()
    if not count:
        raise InputError("nothing was sent")


def _small(client: _Client, path: str, parameters: dict[str, str], accept: str, limit_bytes: int) -> bytes:
    """A whole answer."""
    content = bytearray()
    with client.get(path, accept, parameters) as answer:
        for piece in client.pieces(answer):
            content += piece
            if len(content) > limit_bytes:
                raise InputError("the answer is too large")
    return bytes(content)


@contextmanager
def _telling(what: str, on_fault: Fault) -> Iterator[None]:
    """A fault of the other side ends one item, not the request."""
    try:
        yield
    except InputError as error:
        on_fault(f"{what}: {error}")
    except httpx.TimeoutException:
        on_fault(f"{what} does not answer in time")
    except httpx.HTTPError as error:
        on_fault(f"{what} cannot be reached: {type(error).__name__}")
