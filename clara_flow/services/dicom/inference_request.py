"""The JSON of a REST inference request (ACR's draft API, as Clara takes it), read and checked.

Names of members are taken in any case. All faults are told together; no value is repeated in them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from clara_flow.records.inference import Output
from clara_flow.records.state_machine import JobPriority
from clara_flow.services.dicom.wire.negotiation import is_uid
from clara_flow.services.problems import Unprocessable

LONGEST_TRANSACTION_ID = 200
DEEPEST = 32  # objects and lists within each other
USUAL_PRIORITY, HIGHEST_PRIORITY = 128, 255
FHIR_VERSIONS = ("R1", "R2", "R3", "R4")
FHIR_TYPE = re.compile(r"[A-Za-z]{1,64}")
FHIR_ID = re.compile(r"(?!\.+$)[A-Za-z0-9.-]{1,64}")  # FHIR R4, 2.24.0.1; never `..`
DIMSE = re.compile(r"dimse://(?P<called>[^/@:]{1,16})@(?P<host>\[[0-9a-f:.]+\]|[^/@:\[\]]+):(?P<port>\d{1,5})/?", re.I)

Interface = Literal["algorithm", "dicomweb", "fhir", "dimse"]
NAMES: dict[Interface, str] = {"algorithm": "Algorithm", "dicomweb": "DICOMweb", "fhir": "FHIR", "dimse": "DIMSE"}


@dataclass(frozen=True, slots=True)
class Connection:
    """How something is reached, and with what secret."""

    uri: str
    auth_type: Literal["none", "basic", "bearer"] = "none"
    auth_id: str = ""
    operations: tuple[str, ...] = ()

    def headers(self) -> dict[str, str]:
        """What goes with an HTTP request. `auth_id` is what follows `Basic` or `Bearer`."""
        return {} if self.auth_type == "none" else {"authorization": f"{self.auth_type.title()} {self.auth_id}"}


@dataclass(frozen=True, slots=True)
class Resource:
    """Where inputs are fetched from, or outputs go."""

    interface: Interface
    connection: Connection


@dataclass(frozen=True, slots=True)
class Wanted:
    """A study, or a series of it, or an instance of that; "" means all."""

    study: str
    series: str = ""
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is to be fetched."""

    objects: tuple[Wanted, ...] = ()
    patient_ids: tuple[str, ...] = ()
    accession_numbers: tuple[str, ...] = ()
    fhir: tuple[tuple[str, str], ...] = ()  # type and id
    fhir_format: Literal["json", "xml"] = "json"

    @property
    def has_dicom(self) -> bool:
        """Whether there is something that DICOM services have."""
        return bool(self.objects or self.patient_ids or self.accession_numbers)


@dataclass(frozen=True, slots=True)
class Order:
    """A request that makes sense."""

    transaction_id: str
    priority: JobPriority
    name: str
    pipeline: str
    inputs: tuple[Inputs, ...]
    resources: tuple[Resource, ...]
    outputs: tuple[Resource, ...]

    @property
    def unused(self) -> list[int]:
        """Numbers of its outputResources that get nothing, as in Clara: those of FHIR."""
        return [number for number, one in enumerate(self.outputs) if one.interface != "dicomweb"]

    @property
    def destinations(self) -> list[Output]:
        """Where its results go."""
        return [
            Output(one.connection.uri, one.connection.headers().get("authorization", ""))
            for one in self.outputs
            if one.interface == "dicomweb"
        ]


def parse(body: Mapping[str, Any]) -> Order:
    """What a request asks for. Raises Unprocessable."""
    return _Reader().order(body)


def priority_of(number: int) -> JobPriority:
    """Clara's: below 128 lower, 128 normal, above that higher, 255 immediate."""
    if number == HIGHEST_PRIORITY:
        return JobPriority.IMMEDIATE
    if number == USUAL_PRIORITY:
        return JobPriority.NORMAL
    return JobPriority.LOWER if number < USUAL_PRIORITY else JobPriority.HIGHER


class _Reader:
    """Collects faults while it reads."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def order(self, body: Mapping[str, Any]) -> Order:
        content = _lower(body)
        transaction_id = self.text(content, "transactionid", "transactionID")
        if not 0 < len(transaction_id) <= LONGEST_TRANSACTION_ID or not transaction_id.isprintable():
            self.faults.append(f"transactionID is a text of 1 to {LONGEST_TRANSACTION_ID} characters")
        priority = content.get("priority", USUAL_PRIORITY)
        if type(priority) is not int or not 0 <= priority <= HIGHEST_PRIORITY:
            self.faults.append(f"priority is a whole number from 0 to {HIGHEST_PRIORITY}")
            priority = USUAL_PRIORITY
        resources, algorithms = self.resources(content)
        outputs = [
            self.resource(one, f"outputResources[{number}]", ("dicomweb", "fhir"))
            for number, one in enumerate(self.items(content, "outputresources", "outputResources"))
        ]
        inputs = self.inputs(content)
        name, pipeline = algorithms[0] if len(algorithms) == 1 else ("", "")
        if len(algorithms) != 1:
            self.faults.append("inputResources has exactly one of interface Algorithm")
        elif not pipeline:
            self.faults.append("the Algorithm's connectionDetails.id is the pipeline's id")
        if not resources:
            self.faults.append("inputResources has at least one resource besides the Algorithm")
        if self.faults:
            raise Unprocessable("; ".join(self.faults))
        return Order(
            transaction_id=transaction_id,
            priority=priority_of(priority),
            name=name or pipeline,
            pipeline=pipeline,
            inputs=tuple(inputs),
            resources=tuple(resources),
            outputs=tuple(one for one in outputs if one is not None),
        )

    def resources(self, content: Mapping[str, Any]) -> tuple[list[Resource], list[tuple[str, str]]]:
        """Those that inputs come from, and (name, pipeline) of the algorithms."""
        found, algorithms = [], []
        for number, one in enumerate(self.items(content, "inputresources", "inputResources")):
            where = f"inputResources[{number}]"
            if str(one.get("interface", "")).lower() == "algorithm":
                details = self.object(one, "connectiondetails", f"{where}.connectionDetails")
                algorithms.append((self.text(details, "name", where), self.text(details, "id", where)))
            elif (resource := self.resource(one, where, ("algorithm", "dicomweb", "fhir", "dimse"))) is not None:
                found.append(resource)
        return found, algorithms

    def resource(self, content: Mapping[str, Any], where: str, kinds: tuple[Interface, ...]) -> Resource | None:
        interface = str(content.get("interface", "")).lower()
        kind = next((one for one in kinds if one == interface), None)
        if kind is None:
            self.faults.append(f"{where}.interface is one of {', '.join(NAMES[one] for one in kinds)}")
            return None
        details = self.object(content, "connectiondetails", f"{where}.connectionDetails")
        uri = self.text(details, "uri", where) or self.text(details, "baseuri", where)
        if kind == "dimse":
            if not DIMSE.fullmatch(uri):
                self.faults.append(f"{where}.connectionDetails.uri is an address dimse://AETITLE@host:port")
        elif not _is_http(uri):
            self.faults.append(f"{where}.connectionDetails.uri is an address http://... or https://...")
        asked = str(details.get("authtype") or "None").lower()
        auth_type = next((one for one in ("none", "basic", "bearer") if one == asked), None)
        if auth_type is None:
            self.faults.append(f"{where}.connectionDetails.authType is one of None, Basic, Bearer")
            auth_type = "none"
        auth_id = self.text(details, "authid", where) or self.text(details, "apikey", where)
        if auth_type != "none" and (not auth_id or not auth_id.isascii() or not auth_id.isprintable()):
            self.faults.append(f"{where}.connectionDetails.authID is what follows Basic or Bearer")
        operations = tuple(str(one) for one in details.get("operations") or ())
        return Resource(kind, Connection(uri.rstrip("/"), auth_type, auth_id, operations))

    def inputs(self, content: Mapping[str, Any]) -> list[Inputs]:
        metadata = self.object(content, "inputmetadata", "inputMetadata")
        given = self.items(metadata, "inputs", "inputMetadata.inputs")
        if isinstance(details := metadata.get("details"), Mapping):
            given = [*given, details]
        else:
            given = [*given, *self.items(metadata, "details", "inputMetadata.details")]
        if not given:
            self.faults.append("inputMetadata.inputs says what to fetch")
        return [self.input(one, f"inputMetadata.inputs[{number}]") for number, one in enumerate(given)]

    def input(self, content: Mapping[str, Any], where: str) -> Inputs:
        kind = str(content.get("type", "")).upper()
        if kind == "DICOM_UID":
            return Inputs(objects=tuple(self.objects(content, where)))
        if kind == "DICOM_PATIENT_ID":
            return Inputs(patient_ids=self.texts([content.get("patientid")], f"{where}.PatientID"))
        if kind == "ACCESSION_NUMBER":
            return Inputs(accession_numbers=self.texts(content.get("accessionnumber"), f"{where}.accessionNumber"))
        if kind == "FHIR_RESOURCE":
            return self.fhir(content, where)
        self.faults.append(f"{where}.type is one of DICOM_UID, DICOM_PATIENT_ID, ACCESSION_NUMBER, FHIR_RESOURCE")
        return Inputs()

    def objects(self, content: Mapping[str, Any], where: str) -> list[Wanted]:
        wanted = []
        for study in self.items(content, "studies", f"{where}.studies"):
            study_uid = self.uid(study.get("studyinstanceuid"), f"{where}: StudyInstanceUID")
            series = self.items(study, "series", f"{where}.series")
            if not series:
                wanted.append(Wanted(study_uid))
            for one in series:
                series_uid = self.uid(one.get("seriesinstanceuid"), f"{where}: SeriesInstanceUID")
                instances = [
                    uid
                    for instance in self.items(one, "instances", f"{where}.instances")
                    for uid in _as_list(instance.get("sopinstanceuid"))
                ]
                checked = [self.uid(uid, f"{where}: SOPInstanceUID") for uid in instances]
                wanted += [Wanted(study_uid, series_uid, uid) for uid in checked] or [Wanted(study_uid, series_uid)]
        if not wanted:
            self.faults.append(f"{where}.studies names at least one study")
        return wanted

    def fhir(self, content: Mapping[str, Any], where: str) -> Inputs:
        resources = []
        for one in self.items(content, "resources", f"{where}.resources"):
            kind, number = str(one.get("resourcetype") or one.get("type") or ""), str(one.get("id") or "")
            if not FHIR_TYPE.fullmatch(kind) or not FHIR_ID.fullmatch(number):
                self.faults.append(f"{where}.resources have a resourceType and an id of FHIR")
            resources.append((kind, number))
        if not resources:
            self.faults.append(f"{where}.resources names at least one resource")
        shape = str(content.get("fhirformat") or "Json").lower()
        if shape not in {"json", "xml"}:
            self.faults.append(f"{where}.fhirFormat is Json or Xml")
        if str(content.get("fhirversion") or "R3").upper() not in FHIR_VERSIONS:
            self.faults.append(f"{where}.fhirVersion is one of {', '.join(FHIR_VERSIONS)}")
        return Inputs(fhir=tuple(resources), fhir_format="xml" if shape == "xml" else "json")

    def uid(self, value: Any, what: str) -> str:
        if not isinstance(value, str) or not is_uid(value):
            self.faults.append(f"{what} is a UID")
            return ""
        return value

    def texts(self, value: Any, what: str) -> tuple[str, ...]:
        found = tuple(one for one in _as_list(value) if isinstance(one, str) and one.strip() and one.isprintable())
        if not found or len(found) != len(_as_list(value)) or any(set("*?\\") & set(one) for one in found):
            self.faults.append(f"{what} is a text, without wildcards")
        return found

    def text(self, content: Mapping[str, Any], name: str, where: str) -> str:
        value = content.get(name)
        if value is not None and not isinstance(value, str):
            self.faults.append(f"{where}: {name} is a text")
            return ""
        return value or ""

    def object(self, content: Mapping[str, Any], name: str, what: str) -> Mapping[str, Any]:
        value = content.get(name)
        if not isinstance(value, Mapping):
            self.faults.append(f"{what} is an object")
            return {}
        return value

    def items(self, content: Mapping[str, Any], name: str, what: str) -> list[Mapping[str, Any]]:
        value = content.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
            self.faults.append(f"{what} is a list of objects")
            return []
        return value


def _lower(value: Any, depth: int = 0) -> Any:
    """The value with the names of all members in lower case. Raises Unprocessable for what is too deep."""
    if depth > DEEPEST:
        raise Unprocessable(f"objects and lists are within each other more than {DEEPEST} times")
    if isinstance(value, Mapping):
        return {str(name).lower(): _lower(inner, depth + 1) for name, inner in value.items()}
    return [_lower(inner, depth + 1) for inner in value] if isinstance(value, list) else value


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _is_http(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and not parts.query and not parts.username
    except ValueError:
        return False
