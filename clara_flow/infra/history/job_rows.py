"""The questions that history has for the records."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from uuid import UUID

import sqlalchemy as sa
from sqlmodel import col, select

from clara_flow.records.database import transaction
from clara_flow.records.models import Job
from clara_flow.records.state_machine import JobState


def of_flow_runs(engine: sa.Engine, runs: Mapping[UUID, UUID | None]) -> dict[UUID, Job]:
    """The job of each flow run: the newest that names the run, else the one that the run names. Raises ServiceError.

    runs    flow run -> the job that its parameters name.
    """
    named = [job_id for job_id in runs.values() if job_id is not None]
    query = select(Job).where(sa.or_(col(Job.flow_run_id).in_(runs), col(Job.id).in_(named)))
    with transaction(engine) as session:
        found = list(session.exec(query.order_by(col(Job.created))))
    by_run = {job.flow_run_id: job for job in found}
    by_id = {job.id: job for job in found}
    jobs = {run: by_run.get(run) or (by_id.get(job_id) if job_id else None) for run, job_id in runs.items()}
    return {run: job for run, job in jobs.items() if job is not None}


def over(engine: sa.Engine, ids: Collection[UUID]) -> set[UUID]:
    """Those of the jobs that have stopped, or are not there any more. Raises ServiceError."""
    query = select(col(Job.id)).where(col(Job.id).in_(ids), col(Job.state) != JobState.STOPPED)
    with transaction(engine) as session:
        return set(ids) - set(session.scalars(query))
