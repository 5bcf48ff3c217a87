"""What Prefect is shown of a job, made of its record alone."""

from __future__ import annotations

import uuid

import pytest

from clara_flow.infra.history.truth import flow_run_request, flow_run_tags, origin_of
from clara_flow.records.models import Job


def job(**metadata: str) -> Job:
    return Job(
        id=uuid.uuid4(), name="brain", pipeline_id=uuid.uuid4(), payload_id=uuid.uuid4(), runtime="process",
        tenant="BRAIN", timeout_s=1, metadata_=metadata,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("metadata", "tags", "words"),
    [
        ({}, [], ""),
        (
            {"Trigger": "dicom", "AETitle": "BRAIN", "Instances": "181", "00100010": "Doe^Planted"},
            ["source:dicom", "aetitle:BRAIN"],
            "Triggered by DICOM: 181 instances came for AE title BRAIN.",
        ),
        (
            {"Trigger": "inference", "Source": "planted-transaction", "Instances": "3"},
            ["source:inference"],
            "Triggered by an inference request, with 3 files.",
        ),
    ],
)
def test_what_triggered_a_job_is_told_without_its_patient(
    metadata: dict[str, str], tags: list[str], words: str
) -> None:
    made = job(**metadata)
    assert flow_run_tags(made) == [*tags, "tenant:BRAIN", "runtime:process"]
    assert origin_of(made) == words
    assert "lanted" not in str(flow_run_request(made, pool="p", deployment_id=None))
