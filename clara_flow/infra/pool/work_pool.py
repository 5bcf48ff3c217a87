"""The Prefect work pool that our runs stand in: made, and put right, by whoever needs it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from clara_flow.infra.pool.variables import base_job_template

WORKER_TYPE = "clara-gpu"
QUEUES = {"immediate": 1, "higher": 2, "normal": 3, "lower": 4}
DESCRIPTION = "Jobs of clara-flow. Their order is decided by clara-flow, from priority, tenant and resources."


async def ensure_pool(client: PrefectClient, name: str) -> bool:
    """Make the work pool and its four queues where they are missing. Returns whether any of them was.

    Fields that are new in our form are added to a pool that has an older one; defaults that an administrator has put
    in stay.
    """
    try:
        pool = await client.read_work_pool(name)
    except ObjectNotFound:
        try:
            new = WorkPoolCreate(
                name=name, type=WORKER_TYPE, description=DESCRIPTION, base_job_template=base_job_template()
            )
            await client.create_work_pool(new)
        except ObjectAlreadyExists:  # another worker was quicker
            pass
    else:
        template = with_defaults_of(pool.base_job_template)
        if template != pool.base_job_template:
            await client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
    there = {queue.name for queue in await client.read_work_queues(work_pool_name=name)}
    missing = [queue for queue in QUEUES if queue not in there]
    for queue in missing:
        with suppress(ObjectAlreadyExists):
            await client.create_work_queue(name=queue, priority=QUEUES[queue], work_pool_name=name)
    return bool(missing)


def with_defaults_of(template: dict[str, Any]) -> dict[str, Any]:
    """Our template, with the defaults that stand in another one."""
    ours = base_job_template()
    theirs = template.get("variables", {}).get("properties", {})
    for name, field in ours["variables"]["properties"].items():
        if "default" in theirs.get(name, {}):
            field["default"] = theirs[name]["default"]
    return ours
