"""What Register Results wrote becomes delivery tasks, before its operator counts as completed.

The operator leaves a record in its report folder (`clara_flow.operators.register_results.record` says what it holds).
It is kept with the sealed outputs, in their manifest, so that it is as durable as these, and goes along when a job
takes them over from an earlier one. The tasks are made of that: by the run that sealed it, by the next run of a job
that went back to the queue, and by a job that took it over, each time under the same key, so once for each job.

Any operator without outputs may write such a record; it is not trusted.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clara_flow.errors import InputError, OperatorError
from clara_flow.plan import PlanOperator
from clara_flow.records import deliveries

if TYPE_CHECKING:
    from clara_flow.tasks.job_context import JobContext

REPORT = "delivery.json"
FACT = "delivery"
VERSION = 1
FOLDERS = ("input", "operators")  # what operators may deliver: not each other's logs
MOST_BYTES = 64 * 2**20


async def facts_of(job: JobContext, operator: PlanOperator) -> dict[str, Any]:
    """What is to be sealed with the outputs of an operator that has ended: `{"delivery": record}`, or nothing.

    Raises OperatorError for a record that cannot be used.
    """
    if operator.outputs:
        return {}
    try:
        return await asyncio.to_thread(_read, job, operator.name)
    except (OSError, ValueError, RecursionError, InputError) as error:
        raise _refused(job, operator.name, error) from None


async def register(job: JobContext, operator: PlanOperator, facts: Mapping[str, Any]) -> None:
    """Make the tasks of what was sealed (`Manifest.facts`); those that there are stay as they are.

    Raises StaleOwner when the job is not this runner's any more, OperatorError when something else was registered
    before and is on its way, ServiceError.
    """
    record = facts.get(FACT)
    if record is None:
        return
    settings, row = job.settings, job.job
    try:
        await job.record(
            deliveries.register,
            job.engine,
            job_id=row.id,
            pipeline_id=row.pipeline_id,
            payload_id=row.payload_id,
            agent=record["agent"],
            parameters=record["parameters"],
            uris=record["uris"],
            delivery_id=key_of(row.id, operator.name, record["agent"]),
            own_agents=(settings.dicom_scu_ae_title, settings.dicom_stow_agent),
            stow_agent=settings.dicom_stow_agent,
            owner=job.owner,
        )
    except InputError as error:
        raise _refused(job, operator.name, error) from None


def key_of(job_id: uuid.UUID, operator: str, agent: str) -> uuid.UUID:
    """The idempotency key of what an operator of a job registers for an agent."""
    return uuid.uuid5(job_id, f"{operator}/{agent.casefold()}")


def _read(job: JobContext, operator: str) -> dict[str, Any]:
    """The operator's record, freed of what nobody reads; nothing where there is none. Raises ValueError, OSError."""
    path = job.payload.report_folder(operator) / REPORT
    try:
        # Whoever wrote it may have put anything there: a link elsewhere, a pipe that nobody writes to.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no file")
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError("it is too long")
    record = json.loads(content)
    if not isinstance(record, dict) or record.get("version") != VERSION:
        raise ValueError(f"it is no record of version {VERSION}")
    agent, parameters, uris = (record.get(name) for name in ("agent", "parameters", "uris"))
    if not isinstance(agent, str) or not isinstance(parameters, str):
        raise ValueError("agent and parameters must be texts")
    if not isinstance(uris, list) or not uris or not all(isinstance(uri, str) for uri in uris):
        raise ValueError("uris must be names of files, at least one")
    names = deliveries.checked_uris(uris)
    root = job.payload.path.resolve()
    for name in names:
        place = (root / name).resolve()
        if not any(place.is_relative_to(root / folder) for folder in FOLDERS) or not place.is_file():
            raise ValueError(f"{name} is no file of the payload")
    settings = job.settings
    deliveries.checked_agent(agent, (settings.dicom_scu_ae_title, settings.dicom_stow_agent))
    return {FACT: {"agent": agent, "parameters": deliveries.checked_text(parameters), "uris": names}}


def _refused(job: JobContext, operator: str, error: Exception) -> OperatorError:
    return OperatorError(
        operator, f"registered what cannot be delivered: {error}", log_path=str(job.payload.log_path(operator))
    )
