"""A pipeline as a Prefect deployment in our work pool: to be seen in the UI, and to be run from there (Quick run)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from clara_flow.errors import ServiceError
from clara_flow.records import pipelines

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    import sqlalchemy as sa
    from prefect.client.orchestration import PrefectClient

    from clara_flow.records.models import Pipeline
    from clara_flow.settings import Settings

T = TypeVar("T")

ENTRYPOINT = "clara_flow.flows.pipeline_job.pipeline_job"
TAG = "clara-flow"
SHOWN_DIGITS = 12
PARAMETERS = {
    "title": "Parameters",
    "type": "object",
    "properties": {
        "input": {
            "title": "Input folder",
            "type": "string",
            "position": 0,
            "description": "A folder on the platform's machine: its files become the job's payload.",
        },
        "job_id": {
            "title": "Job to run again",
            "type": "string",
            "position": 1,
            "description": "Id of a job that is over: it is run again on its payload, what it had sealed is not.",
        },
    },
    "required": [],
}


def ensure_work_pool(settings: Settings, api_url: str) -> bool:
    """Make the work pool and its queues where they are missing. Returns whether any of them was.

    Raises ServiceError when Prefect does not do it.
    """
    from clara_flow.infra.pool.work_pool import ensure_pool

    async def ensure(client: PrefectClient) -> bool:
        return await ensure_pool(client, settings.pool)

    return _ask(api_url, ensure)


def register_blocks(api_url: str) -> None:
    """Make our types of blocks known, as `prefect block register` does, so that they can be made in the UI.

    Nothing happens when they are. Raises ServiceError.
    """
    from clara_flow.blocks.dicom_node import DicomNode

    async def register(client: PrefectClient) -> None:
        await DicomNode.aregister_type_and_schema(client=client)

    _ask(api_url, register)


def register_pipeline(engine: sa.Engine, pipeline: Pipeline, *, pool: str, api_url: str) -> UUID:
    """The deployment that runs this pipeline, noted in its record; made, or changed to this version, where needed.

    The deployment has the pipeline's name, so it runs the version that was registered last. One request when nothing
    has changed. Raises ServiceError when Prefect does not do it (the work pool must be there).
    """

    async def register(client: PrefectClient) -> UUID:
        return await _register(client, pipeline, pool)

    deployment_id = _ask(api_url, register)
    if deployment_id != pipeline.deployment_id:
        pipelines.note_deployment(engine, pipeline.id, deployment_id)
    return deployment_id


def register_again(engine: sa.Engine, *, pool: str, api_url: str) -> int:
    """Make the blocks and the deployments of all pipelines that had one: Prefect's database was exchanged.

    Returns how many deployments. Raises ServiceError.
    """
    register_blocks(api_url)
    deployed = with_deployment(engine)
    for pipeline in deployed:
        register_pipeline(engine, pipeline, pool=pool, api_url=api_url)
    return len(deployed)


def with_deployment(engine: sa.Engine) -> list[Pipeline]:
    """The pipelines that have a deployment, oldest first. Raises ServiceError."""
    from sqlmodel import col, select

    from clara_flow.records.database import transaction
    from clara_flow.records.models import Pipeline

    query = select(Pipeline).where(col(Pipeline.deployment_id).is_not(None)).order_by(col(Pipeline.created))
    with transaction(engine) as session:
        return list(session.exec(query))


async def _register(client: PrefectClient, pipeline: Pipeline, pool: str) -> UUID:
    from prefect.exceptions import ObjectNotFound

    version = pipeline.digest[:SHOWN_DIGITS]
    if pipeline.deployment_id is not None:
        try:
            known = await client.read_deployment(pipeline.deployment_id)
        except ObjectNotFound:
            pass
        else:
            if (known.version, known.work_pool_name) == (version, pool):
                return known.id
    return await client.create_deployment(
        await client.create_flow_from_name(pipeline.name),
        name=pipeline.name,
        version=version,
        description=description_of(pipeline),
        tags=[TAG],
        entrypoint=ENTRYPOINT,
        work_pool_name=pool,
        work_queue_name="normal",
        parameter_openapi_schema=PARAMETERS,
        enforce_parameter_schema=True,
    )


def description_of(pipeline: Pipeline) -> str:
    """What people read on the deployment's page (Markdown)."""
    plan: dict[str, Any] = pipeline.plan
    steps = [
        f"- **{operator['name']}** {operator.get('description', '')}".rstrip() for operator in plan.get("operators", ())
    ]
    return "\n".join(filter(None, [plan.get("description", ""), "", "Operators:", *steps]))


def _ask(api_url: str, work: Callable[[PrefectClient], Awaitable[T]]) -> T:
    """Run `work` with a client of that server; all that goes wrong is a ServiceError."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectException
    from prefect.settings import PREFECT_API_URL, temporary_settings

    async def run() -> T:
        with temporary_settings({PREFECT_API_URL: api_url}):
            async with get_client() as client:
                return await work(client)

    try:
        return asyncio.run(run())
    except (httpx.HTTPError, PrefectException) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ServiceError("Prefect", f"it did not do what was asked: {reason}", remedy="Is it running?") from None
