"""A REST inference request through a whole platform: from Orthanc by WADO-RS, to Orthanc and another by STOW-RS."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import orthanc_fixture
from dicom_peers import new_uid, produced, study_of
from services.dicom.adapter.adapter_world import SETTLED_S, AdapterWorld, answering, registering
from services.dicom.export.stow_peer import stow_peer
from waiting import eventually

from clara_flow.deployments.trigger import compile_definition
from clara_flow.records import deliveries, jobs, pipelines
from clara_flow.records.dicom_models import DeliveryState

LOGIN = ("clara", "s3cret:word")
BASIC = base64.b64encode(":".join(LOGIN).encode()).decode()


def web(uri: str, kind: str, secret: str) -> dict[str, Any]:
    connection = {"uri": uri, "authType": kind, "authID": secret}
    return {"interface": "DICOMweb", "connectionDetails": connection}


def registered(adapter: AdapterWorld) -> str:
    """The id of a pipeline that hands its results to the agent for STOW-RS."""
    export = registering("answer")
    export["container"] = {**export["container"], "command": ["python", "register.py", "--agent", "DICOMweb"]}
    compiled = compile_definition(adapter.settings, Path(adapter.pipeline(answering(), export)), {})
    plan = compiled.plan.model_dump(mode="json")
    row = pipelines.create_pipeline(adapter.engine, name="answering", definition=compiled.text, plan=plan)
    return str(row.id)


def test_from_orthanc_and_back_to_it_and_to_another(adapter: AdapterWorld, tmp_path: Path) -> None:
    study, transaction = study_of(3), new_uid("1.2.")
    with orthanc_fixture.running(tmp_path / "orthanc", LOGIN) as pacs, stow_peer(login="Bearer t.o.k") as other:
        for number, one in enumerate(study):
            one.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
            pacs.upload(tmp_path / f"{number}.dcm")
        here = web(pacs.dicom_web, "Basic", BASIC)
        algorithm = {"interface": "Algorithm", "connectionDetails": {"name": "answer", "id": registered(adapter)}}
        body = {
            "transactionID": transaction,
            "inputMetadata": {"inputs": [{"type": "DICOM_PATIENT_ID", "PatientID": study[0].PatientID}]},
            "inputResources": [algorithm, here],
            "outputResources": [here, web(other.url, "Bearer", "t.o.k")],
        }
        answer = adapter.gateway.post("/api/inference", json=body)
        assert answer.status_code == 200, answer.text
        job_id = answer.json()["jobId"]

        def states() -> list[DeliveryState]:
            return [one.state for one in deliveries.list_deliveries(adapter.engine, job_id=job_id)]

        eventually(lambda: states() == [DeliveryState.SUCCEEDED] * 2, within_s=2 * SETTLED_S)
        expected = {produced(one.SOPInstanceUID) for one in study}
        assert {uid for sent in other.requests for uid, _ in sent} == expected
        tags = pacs.web.get("/instances?expand").json()
        assert {one["MainDicomTags"]["SOPInstanceUID"] for one in tags} >= expected
        status = adapter.gateway.get(f"/api/inference/status/{transaction}")
    told = status.text + str(jobs.get_job(adapter.engine, job_id).metadata_)
    told += adapter.gateway.get("/api/tasks", params={"jobId": job_id}).text + adapter.gateway.get("/metrics").text
    logs = [path for path in adapter.settings.data_dir.rglob("*.log*") if path.is_file()]
    assert logs
    told += "".join(path.read_text(errors="replace") for path in logs)
    assert BASIC not in told
    assert "t.o.k" not in told
    assert LOGIN[1] not in told
