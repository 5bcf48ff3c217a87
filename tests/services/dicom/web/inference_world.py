"""Inference requests for tests: a platform with one pipeline, a worker that runs, and what became of a request."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from tiny.pipelines import scripted, write_definition
from waiting import eventually

from clara_flow.deployments.trigger import House, compile_definition
from clara_flow.records import inference, pipelines
from clara_flow.records.dicom_models import InferenceRequest, InferenceState
from clara_flow.services.dicom.inference import InferenceWorker


def with_pipeline(house: House, folder: Path) -> House:
    """A platform with one pipeline, whose retries do not wait."""
    settings = house.settings.model_copy(update={"dicom_submit_retry_delay_s": 0.0, "dicom_submit_retries": 2})
    compiled = compile_definition(settings, write_definition(folder / "tiny.yaml", scripted("a")), {})
    pipelines.create_pipeline(
        house.engine, name="tiny", definition=compiled.text, plan=compiled.plan.model_dump(mode="json")
    )
    return replace(house, settings=settings)


@contextmanager
def working(house: House) -> Iterator[InferenceWorker]:
    """A worker, until the end of the block."""
    stop, worker = threading.Event(), InferenceWorker(house)
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        yield worker
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def request_body(*inputs: dict[str, Any], resources: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The JSON of a request `t-1` for the pipeline, with these resources beside it."""
    algorithm = {"interface": "Algorithm", "connectionDetails": {"name": "Tiny One", "id": "tiny"}}
    return {
        "transactionID": "t-1",
        "priority": 200,
        "inputMetadata": {"inputs": list(inputs)},
        "inputResources": [algorithm, *resources],
        **more,
    }


def study_input(study: Sequence[Dataset]) -> dict[str, Any]:
    """The whole study of these."""
    return {"type": "DICOM_UID", "studies": [{"StudyInstanceUID": study[0].StudyInstanceUID}]}


def instance_input(instance: Dataset) -> dict[str, Any]:
    """That instance alone."""
    instances = [{"SOPInstanceUID": [instance.SOPInstanceUID]}]
    series = [{"SeriesInstanceUID": instance.SeriesInstanceUID, "instances": instances}]
    return {"type": "DICOM_UID", "studies": [{"StudyInstanceUID": instance.StudyInstanceUID, "series": series}]}


def row_of(house: House, reference: str = "t-1") -> InferenceRequest:
    """The request as it is now."""
    return inference.find(house.engine, reference)


def wait_for_end(house: House, reference: str = "t-1") -> InferenceRequest:
    """The request once it is over."""
    eventually(lambda: row_of(house, reference).state is InferenceState.COMPLETED, within_s=60)
    return row_of(house, reference)


def payload_files(house: House, row: InferenceRequest) -> dict[str, bytes]:
    """The input of its job, by name."""
    folder = house.store.folder(row.payload_id)
    return {file.name: (folder.input / file.name).read_bytes() for file in folder.input_manifest().files}
