"""Records of pipelines: a definition and the plan it was compiled to."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlmodel import col, select

from clara_flow.errors import InputError
from clara_flow.records.database import reading, transaction
from clara_flow.records.models import VARIANT, Pipeline


def create_pipeline(
    engine: sa.Engine,
    *,
    name: str,
    definition: str,
    plan: Mapping[str, Any],
    source: str = "",
    is_variant: bool = False,
) -> Pipeline:
    """The record of a pipeline; the same name, definition and plan give the same record again.

    plan        as JSON (`Plan.model_dump(mode="json")`).
    source      where the definition came from, for people; the first one stays.
    is_variant  it is another one with some values changed for one job: nobody deploys it.
    """
    whole = json.dumps([name, definition, plan], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(whole.encode()).hexdigest()
    with transaction(engine) as session:
        new = Pipeline(
            name=name,
            definition=definition,
            plan=dict(plan),
            source=source,
            digest=digest,
            created=datetime.now(UTC),
            metadata_={VARIANT: "true"} if is_variant else {},
        )
        values = {column.name: getattr(new, key) for key, column in sa.inspect(Pipeline).columns.items()}
        session.execute(insert(Pipeline).values(values).on_conflict_do_nothing(index_elements=["digest"]))
        return session.exec(select(Pipeline).where(col(Pipeline.digest) == digest)).one()


def get_pipeline(engine: sa.Engine, pipeline_id: uuid.UUID) -> Pipeline:
    """The pipeline of that id. Raises InputError when there is none."""
    with reading(engine) as session:
        pipeline = session.get(Pipeline, pipeline_id)
        if pipeline is None:
            raise InputError(f"there is no pipeline {pipeline_id}", pipeline_id=pipeline_id)
        return pipeline


def newest_named(engine: sa.Engine, name: str) -> Pipeline | None:
    """The newest version of the pipeline of that name; None when there is none."""
    query = (
        select(Pipeline)
        .where(col(Pipeline.name) == name, ~sa.func.jsonb_exists(col(Pipeline.metadata_), VARIANT))
        .order_by(col(Pipeline.created).desc())
    )
    with reading(engine) as session:
        return session.exec(query.limit(1)).first()


def to_deploy(engine: sa.Engine) -> list[Pipeline]:
    """The newest version of each pipeline, where no Prefect deployment runs it yet."""
    newest = (
        select(Pipeline)
        .where(~sa.func.jsonb_exists(col(Pipeline.metadata_), VARIANT))
        .ext(distinct_on(col(Pipeline.name)))
        .order_by(col(Pipeline.name), col(Pipeline.created).desc())
    )
    with transaction(engine) as session:
        return [pipeline for pipeline in session.exec(newest) if pipeline.deployment_id is None]


def note_deployment(engine: sa.Engine, pipeline_id: uuid.UUID, deployment_id: uuid.UUID) -> None:
    """Note that a Prefect deployment runs this pipeline from now on, and no other one."""
    deployed = col(Pipeline.deployment_id)
    with transaction(engine) as session:
        others = sa.update(Pipeline).where(deployed == deployment_id, col(Pipeline.id) != pipeline_id)
        session.execute(others.values(deployment_id=None))
        session.execute(sa.update(Pipeline).where(col(Pipeline.id) == pipeline_id).values(deployment_id=deployment_id))


def of_deployment(engine: sa.Engine, deployment_id: uuid.UUID | None) -> Pipeline:
    """The pipeline that a Prefect deployment runs. Raises InputError when it runs none of ours."""
    query = select(Pipeline).where(
        col(Pipeline.deployment_id) == deployment_id, col(Pipeline.deployment_id).is_not(None)
    )
    with transaction(engine) as session:
        pipeline = session.exec(query).one_or_none()
        if pipeline is None:
            raise InputError("this Prefect deployment runs no pipeline of ours: register the pipeline again")
        return pipeline
