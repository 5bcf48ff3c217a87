"""`clara-flow dicom groups` and `explain`: what they print and what they refuse."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import typer
from postgres_fixture import database_url  # noqa: F401
from typer.testing import CliRunner

from clara_flow.cli import dicom_groups
from clara_flow.errors import Conflict, NotFound
from clara_flow.records import database, deliveries, dicom_config, dicom_ingest, jobs, payloads, pipelines
from clara_flow.records import dicom_groups as dicom_groups_records
from clara_flow.records.dicom_groups import PlannedJob
from clara_flow.records.dicom_ingest import Opened, Stored
from clara_flow.records.dicom_models import AeTitle

NOW = datetime(2026, 1, 2, tzinfo=UTC)
TABLES = (
    "dicom_groups, dicom_instances, dicom_submissions, dicom_associations, dicom_journals, dicom_aetitles, deliveries"
)


@pytest.fixture
def engine(database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:  # noqa: F811
    """With one open group of the study 1.2."""
    monkeypatch.setenv("CLARA_FLOW_DATABASE_URL", database_url)
    monkeypatch.setenv("CLARA_FLOW_DATA_DIR", str(tmp_path))
    engine = database.connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"TRUNCATE {TABLES} CASCADE"))
    settings = {"pipeline-mr": "brain-extraction", "rule-mr": 'Modality == "MR"', "timeout": "600"}
    row = AeTitle(name="BRAIN", ae_title="BRAIN", processor_settings=settings, created=NOW, updated=NOW)
    dicom_config.add_aetitle(engine, row)
    one = Opened(association=uuid.uuid4(), at=NOW, calling_ae="MR-1", called_ae="BRAIN", aetitle="BRAIN")
    stored = Stored(
        association=one.association, at=NOW, path="instances/x/1.dcm", size_bytes=3, sop_class_uid="1", study_uid="1.2",
        sop_instance_uid="5", series_uid="6", transfer_syntax="7", attributes={"Modality": "MR"},
    )  # fmt: skip
    dicom_ingest.ingest(engine, "j", [one, stored], offset=0, new_offset=2, rules={})
    yield engine
    engine.dispose()


def run(*arguments: str) -> str:
    """Standard output of `clara-flow dicom ARGUMENTS`; raises what it raises."""
    app = typer.Typer()
    dicom_groups.register(app)
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_list(engine: sa.Engine) -> None:
    (row,) = json.loads(run("groups", "list", "--json"))
    assert (row["aetitle"], row["callingAe"], row["state"], row["instances"]) == ("BRAIN", "MR-1", "OPEN", 1)
    assert row["id"][:8] in run("groups", "list")
    assert "There is no group." in run("groups", "list", "--aetitle", "OTHER")


def test_explain_tries_the_rules_and_changes_nothing(engine: sa.Engine) -> None:
    (told,) = json.loads(run("explain", "1.2", "--json"))
    assert told["pipelines"] == [
        {"label": "mr", "pipeline": "brain-extraction", "rule": 'Modality == "MR"', "chosen": True}
    ]
    assert (told["state"], told["why"], told["jobs"]) == ("OPEN", "waits for 600 s of silence", [])
    text = run("explain", "1.2")
    assert 'pipeline    mr (brain-extraction): its rule holds: Modality == "MR"' in text
    assert ": takes instances\n" in text
    assert "  waits       for 600 s of silence\n" in text
    with pytest.raises(NotFound, match="no instance of that study"):
        run("explain", "9.9")


def test_explain_follows_a_study_to_its_deliveries(engine: sa.Engine) -> None:
    """Its jobs and what became of their results, in words; the Platform API's states are in the JSON."""
    (row,) = json.loads(run("groups", "list", "--json"))
    group_id = uuid.UUID(row["id"])
    dicom_groups_records.retry(engine, group_id)
    (planned,) = dicom_groups_records.plan(engine, group_id, [PlannedJob("mr", "brain-extraction")]).submissions
    assert f"job         {planned.job_id} of mr is not made yet" in run("explain", "1.2")
    pipeline = pipelines.create_pipeline(engine, name="p", definition="", plan={})
    payload = payloads.create_payload(engine)
    jobs.create_job(
        engine, name="p", pipeline_id=pipeline.id, payload_id=payload.id, operators=[], runtime="process",
        timeout_s=60, job_id=planned.job_id,
    )  # fmt: skip
    dicom_groups_records.note_submitted(engine, group_id, "mr")
    assert f"job         {planned.job_id} of mr waits for its turn" in run("explain", "1.2")
    (delivery,) = deliveries.register(
        engine, job_id=planned.job_id, agent="ClaraSCU", parameters='"PACS"', uris=["a"], own_agents=["ClaraSCU"]
    )
    deliveries.fail(engine, delivery.id, False, "there is no destination")
    text = run("explain", "1.2")
    assert f"  delivery    {str(delivery.id)[:8]} to PACS: Failed: there is no destination" in text
    (told,) = json.loads(run("explain", "1.2", "--json"))
    (job,) = told["jobs"]
    assert job["state"] == "PENDING/HEALTHY"
    assert job["deliveries"] == [
        {"id": str(delivery.id), "destination": "PACS", "state": "Failed", "reason": "there is no destination"}
    ]


def test_retry_and_discard(engine: sa.Engine) -> None:
    (row,) = json.loads(run("groups", "list", "--json"))
    assert "are made now" in run("groups", "retry", row["id"][:8])
    assert json.loads(run("groups", "list", "--json"))[0]["state"] == "COMPLETE"
    assert "is discarded" in run("groups", "discard", row["id"], "--reason", "a test")
    assert json.loads(run("groups", "list", "--json")) == []
    assert json.loads(run("groups", "list", "--all", "--json"))[0]["message"] == "a test"
    with pytest.raises(Conflict, match="is DISCARDED: it cannot be retried"):
        run("groups", "retry", row["id"])
