"""The JSON of inference requests: every field, every alias, every fault told at once and without a value."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_flow.records.inference import without_secrets
from clara_flow.records.state_machine import JobPriority
from clara_flow.services.dicom.inference_request import Inputs, Order, Wanted, parse, priority_of
from clara_flow.services.problems import Unprocessable

ALGORITHM = {"interface": "Algorithm", "connectionDetails": {"name": "brain", "id": "0"}}
WEB = {
    "interface": "DICOMweb",
    "connectionDetails": {
        "uri": "http://pacs/dicom-web/",
        "authType": "Basic",
        "authID": "dTpw",
        "operations": ["QUERY"],
    },
}
STUDY = {"type": "DICOM_UID", "studies": [{"StudyInstanceUID": "1.2"}]}


def body(*inputs: Any, resources: Any = (ALGORITHM, WEB), **more: Any) -> dict[str, Any]:
    return {
        "transactionID": "t-1",
        "inputMetadata": {"inputs": list(inputs or [STUDY])},
        "inputResources": list(resources),
        **more,
    }


def test_all_of_a_request_is_read() -> None:
    order = parse(body(outputResources=[WEB], priority=255))
    assert isinstance(order, Order)
    assert (order.transaction_id, order.priority) == ("t-1", JobPriority.IMMEDIATE)
    assert (order.name, order.pipeline) == ("brain", "0")
    (resource,) = order.resources
    assert resource.connection.uri == "http://pacs/dicom-web"
    assert resource.connection.headers() == {"authorization": "Basic dTpw"}
    assert len(order.outputs) == 1
    assert order.inputs == (Inputs(objects=(Wanted("1.2"),)),)


@pytest.mark.parametrize(
    ("given_input", "read"),
    [
        (
            {
                "type": "DICOM_UID",
                "studies": [
                    {
                        "StudyInstanceUID": "1.2",
                        "series": [
                            {"SeriesInstanceUID": "1.3"},
                            {"SeriesInstanceUID": "1.4", "instances": [{"SOPInstanceUID": ["1.5", "1.6"]}]},
                        ],
                    }
                ],
            },
            Inputs(objects=(Wanted("1.2", "1.3"), Wanted("1.2", "1.4", "1.5"), Wanted("1.2", "1.4", "1.6"))),
        ),
        ({"type": "DICOM_PATIENT_ID", "PatientID": "P 1"}, Inputs(patient_ids=("P 1",))),
        ({"type": "ACCESSION_NUMBER", "accessionNumber": ["A", "B"]}, Inputs(accession_numbers=("A", "B"))),
        (
            {
                "type": "FHIR_RESOURCE", "fhirFormat": "Xml", "fhirVersion": "R4",
                "resources": [{"resourceType": "Patient", "id": "p-1"}],
            },
            Inputs(fhir=(("Patient", "p-1"),), fhir_format="xml"),
        ),
    ],
)  # fmt: skip
def test_inputs(given_input: dict[str, Any], read: Inputs) -> None:
    assert parse(body(given_input)).inputs == (read,)


def test_aliases_and_any_case() -> None:
    legacy = body()
    legacy["inputMetadata"] = {"details": STUDY}
    legacy["inputResources"] = [
        ALGORITHM,
        {
            "Interface": "dicomWEB",
            "connectiondetails": {"baseUri": "https://pacs", "AuthType": "bearer", "apiKey": "k"},
        },
    ]
    legacy["TransactionId"] = legacy.pop("transactionID")
    order = parse(legacy)
    assert order.resources[0].connection.headers() == {"authorization": "Bearer k"}
    assert order.inputs[0].objects == (Wanted("1.2"),)


@pytest.mark.parametrize(
    ("number", "priority"),
    [
        (0, JobPriority.LOWER), (127, JobPriority.LOWER), (128, JobPriority.NORMAL), (129, JobPriority.HIGHER),
        (254, JobPriority.HIGHER), (255, JobPriority.IMMEDIATE),
    ],
)  # fmt: skip
def test_priorities(number: int, priority: JobPriority) -> None:
    assert priority_of(number) is priority


def with_connection(**changes: Any) -> dict[str, Any]:
    resource = copy.deepcopy(WEB)
    resource["connectionDetails"].update(changes)  # type: ignore[attr-defined]
    return body(resources=(ALGORITHM, resource))


FAULTS = [
    (body(priority=256), "priority"),
    (body(priority="high"), "priority"),
    (body(priority=True), "priority"),
    (body() | {"transactionID": ""}, "transactionID"),
    (body() | {"transactionID": 7}, "transactionID"),
    (body(resources=(WEB,)), "exactly one"),
    (body(resources=(ALGORITHM, ALGORITHM, WEB)), "exactly one"),
    (body(resources=(ALGORITHM,)), "besides"),
    (body(resources=(ALGORITHM, {"interface": "FTP", "connectionDetails": {}})), "interface"),
    (with_connection(uri="file:///etc/passwd"), "http://"),
    (with_connection(uri="http://u:p@pacs"), "http://"),
    (with_connection(authType="Digest"), "authType"),
    (with_connection(authID="two\r\nlines"), "authID"),
    (body(outputResources={}), "outputResources is a list"),
    (body(outputResources=[WEB, {"interface": "DIMSE"}]), r"outputResources\[1\].interface is one of DICOMweb, FHIR"),
    (body(outputResources=[{"interface": "DICOMweb"}]), r"outputResources\[0\].connectionDetails is an object"),
    (
        body(outputResources=[{"interface": "DICOMweb", "connectionDetails": {"uri": "pacs"}}]),
        r"outputResources\[0\].connectionDetails.uri is an address",
    ),
    (
        body(outputResources=[{**WEB, "connectionDetails": {"uri": "http://pacs", "authType": "Basic"}}]),
        r"outputResources\[0\].connectionDetails.authID",
    ),
    (body({"type": "DICOM_UID"}), "study"),
    (body({"type": "DICOM_UID", "studies": [{"StudyInstanceUID": "../x"}]}), "StudyInstanceUID"),
    (body({"type": "DICOM_PATIENT_ID"}), "PatientID"),
    (body({"type": "DICOM_PATIENT_ID", "PatientID": "*"}), "wildcards"),
    (body({"type": "ACCESSION_NUMBER", "accessionNumber": []}), "accessionNumber"),
    (body({"type": "FHIR_RESOURCE", "resources": [{"resourceType": "Patient", "id": ".."}]}), "FHIR"),
    (body({"type": "FHIR_RESOURCE", "resources": [{"resourceType": "a/b", "id": "1"}]}), "FHIR"),
    (body({"type": "ODD"}), "type"),
    ({"transactionID": "t"}, "inputMetadata"),
    ({}, "transactionID"),
    (body(resources=(ALGORITHM, {"interface": "DIMSE", "connectionDetails": {"uri": "pacs:104"}})), "dimse://"),
]


@pytest.mark.parametrize(("given_body", "word"), FAULTS)
def test_faults_are_told(given_body: dict[str, Any], word: str) -> None:
    with pytest.raises(Unprocessable, match=word):
        parse(given_body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["inputMetadata", "inputs", "type", "studies", "inputResources", "interface", "connectionDetails"]
            )
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["inputMetadata", "inputResources", "outputResources", "priority"]), JSON))
def test_rubbish_is_refused_and_breaks_nothing(content: dict[str, Any]) -> None:
    with pytest.raises(Unprocessable):
        parse(content)


def test_secrets_are_hidden_wherever_they_stand() -> None:
    hidden = without_secrets(body(outputResources=[WEB]))
    assert hidden["inputResources"][1]["connectionDetails"]["authID"] == "***"
    assert "dTpw" not in str(hidden)
