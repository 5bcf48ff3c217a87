"""Pipelines as deployments of a real Prefect server."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
import sqlalchemy as sa
from job_rows_fixture import OPERATORS, JobMaker
from postgres_fixture import database_url  # noqa: F401
from prefect_fixture import OwnPrefect, prefect  # noqa: F401

from clara_flow.blocks.dicom_node import DicomNode
from clara_flow.deployments import register
from clara_flow.errors import ServiceError
from clara_flow.infra.pool.work_pool import QUEUES
from clara_flow.records import database, pipelines
from clara_flow.settings import load_settings


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:  # noqa: F811
    engine = database.connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE leases, job_operators, jobs, pipelines, payloads"))
    yield engine
    engine.dispose()


@pytest.fixture
def pool(prefect: OwnPrefect) -> str:  # noqa: F811
    """A work pool of ours."""
    settings = load_settings(pool=f"pool-{uuid4().hex[:8]}")
    assert register.ensure_work_pool(settings, prefect.api_url)
    assert not register.ensure_work_pool(settings, prefect.api_url)
    return settings.pool


def test_the_pool_has_a_queue_for_each_priority(prefect: OwnPrefect, pool: str) -> None:  # noqa: F811
    queues = {queue["name"]: queue["priority"] for queue in prefect.post(f"/work_pools/{pool}/queues/filter", {})}
    assert {name: queues[name] for name in QUEUES} == QUEUES


def test_what_an_administrator_has_put_into_the_form_stays(prefect: OwnPrefect, pool: str) -> None:  # noqa: F811
    template = prefect.get(f"/work_pools/{pool}")["base_job_template"]
    del template["variables"]["properties"]["fastio_size"], template["job_configuration"]["fastio_size"]
    template["variables"]["properties"]["tenant"]["default"] = "radiology"
    import httpx

    body = {"base_job_template": template}
    httpx.patch(f"{prefect.api_url}/work_pools/{pool}", json=body, timeout=30).raise_for_status()
    register.ensure_work_pool(load_settings(pool=pool), prefect.api_url)
    fields = prefect.get(f"/work_pools/{pool}")["base_job_template"]["variables"]["properties"]
    assert fields["tenant"]["default"] == "radiology"
    assert "fastio_size" in fields


def test_blocks_can_be_made_in_the_ui(prefect: OwnPrefect) -> None:  # noqa: F811
    for _ in range(2):
        register.register_blocks(prefect.api_url)
    (kind,) = prefect.post("/block_types/filter", {"block_types": {"slug": {"any_": ["dicom-node"]}}})
    schemas = prefect.post("/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kind["id"]]}}})
    assert kind["name"] == "DICOM node"
    assert [sorted(schema["fields"]["properties"]) for schema in schemas] == [sorted(DicomNode.model_fields)]


def test_a_pipeline_is_a_deployment(prefect: OwnPrefect, pool: str, engine: sa.Engine) -> None:  # noqa: F811
    pipeline = JobMaker(engine).pipeline()
    deployment_id = register.register_pipeline(engine, pipeline, pool=pool, api_url=prefect.api_url)
    assert pipelines.get_pipeline(engine, pipeline.id).deployment_id == deployment_id
    deployment = prefect.get(f"/deployments/{deployment_id}")
    assert (deployment["name"], deployment["work_pool_name"], deployment["work_queue_name"]) == (
        "liver",
        pool,
        "normal",
    )
    assert pipeline.digest.startswith(deployment["version"])
    assert set(deployment["parameter_openapi_schema"]["properties"]) == {"input", "job_id"}
    assert all(operator in deployment["description"] for operator in OPERATORS)


def test_registering_again_changes_nothing_until_the_pipeline_does(
    prefect: OwnPrefect,  # noqa: F811
    pool: str,
    engine: sa.Engine,
) -> None:
    make = JobMaker(engine)
    first = register.register_pipeline(engine, make.pipeline(), pool=pool, api_url=prefect.api_url)
    before = prefect.get(f"/deployments/{first}")["updated"]
    assert register.register_pipeline(engine, make.pipeline(), pool=pool, api_url=prefect.api_url) == first
    assert prefect.get(f"/deployments/{first}")["updated"] == before
    newer = make.pipeline(text="another version")
    assert register.register_pipeline(engine, newer, pool=pool, api_url=prefect.api_url) == first
    assert newer.digest.startswith(prefect.get(f"/deployments/{first}")["version"])
    assert pipelines.get_pipeline(engine, make.pipeline().id).deployment_id is None
    assert pipelines.get_pipeline(engine, newer.id).deployment_id == first


def test_deployments_that_are_lost_are_made_again(prefect: OwnPrefect, pool: str, engine: sa.Engine) -> None:  # noqa: F811
    pipeline = JobMaker(engine).pipeline()
    lost = register.register_pipeline(engine, pipeline, pool=pool, api_url=prefect.api_url)
    import httpx

    httpx.delete(f"{prefect.api_url}/deployments/{lost}", timeout=30).raise_for_status()
    assert register.register_again(engine, pool=pool, api_url=prefect.api_url) == 1
    again = pipelines.get_pipeline(engine, pipeline.id).deployment_id
    assert again not in (None, lost)
    assert prefect.get(f"/deployments/{again}")["name"] == "liver"


def test_an_outage_is_told(engine: sa.Engine) -> None:
    with pytest.raises(ServiceError, match="Prefect"):
        register.register_pipeline(engine, JobMaker(engine).pipeline(), pool="p", api_url="http://127.0.0.1:9/api")
