"""The REST API of inference requests (ACR's draft, as Clara answers it)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Body

from clara_flow.deployments.trigger import House
from clara_flow.errors import DefinitionInvalid, NotFound
from clara_flow.records import inference, jobs
from clara_flow.records.dicom_models import InferenceRequest
from clara_flow.records.models import Job
from clara_flow.services.dicom.grouping.pipelines import Pipelines
from clara_flow.services.dicom.inference_request import parse, priority_of
from clara_flow.services.problems import Unprocessable

log = logging.getLogger(__name__)


def status_of(row: InferenceRequest, job: Job | None) -> dict[str, Any]:
    """The body of a status answer. `job` is None until the inputs are fetched: then the platform's part is empty."""
    times = {name: _time(getattr(job, name, None)) for name in ("created", "started", "stopped")}
    return {
        "transactionId": row.transaction_id,
        "platform": {
            "jobId": str(row.job_id),
            "payloadId": str(row.payload_id),
            "status": job.status if job else "UNKNOWN",
            "state": job.state if job else "PENDING",
            "priority": job.priority if job else priority_of(_priority(row.body)),
            **times,
        },
        "dicom": {"state": row.state, "status": row.status},
        "message": row.message,
    }


def _priority(body: Mapping[str, Any]) -> int:
    return next((int(value) for name, value in body.items() if name.lower() == "priority"), 128)


def _time(moment: Any) -> str | None:
    return moment.isoformat() if moment else None


def router(house: House) -> APIRouter:
    """`/api/inference` and `/api/inference/status/...`."""
    routes = APIRouter(prefix="/api/inference", tags=["inference"])
    pipelines = Pipelines(house)

    @routes.post("")
    @routes.post("/", include_in_schema=False)
    def post_request(body: Any = Body()) -> dict[str, str]:  # noqa: B008  how FastAPI is told
        if not isinstance(body, dict):
            raise Unprocessable("the body is a JSON object")
        order = parse(body)
        try:
            pipelines.named(order.pipeline)
        except (NotFound, DefinitionInvalid) as error:
            raise Unprocessable(str(error)) from None
        if order.unused:
            log.warning("an inference request names outputResources other than DICOMweb: they get nothing")
        row = inference.submit(house.engine, order.transaction_id, body, order.destinations)
        return {
            "transactionId": row.transaction_id,
            "jobId": str(row.job_id),
            "payloadId": str(row.payload_id),
        }

    @routes.get("/status/{reference}")
    def get_status(reference: str) -> dict[str, Any]:
        row = inference.find(house.engine, reference)
        return status_of(row, jobs.find_job(house.engine, row.job_id))

    return routes
