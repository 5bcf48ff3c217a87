"""The flow that Prefect's own worker runs in `job_overhead`: the same job, in a process that the worker starts."""

from __future__ import annotations

from prefect import flow


@flow(name="bench-job", persist_result=False)
async def run_job(job_id: str) -> None:
    """Run a queued job in this process."""
    import asyncio

    from benchmarks.common import HERE, NOOP
    from clara_flow.deployments.local_runner import LocalRunner
    from clara_flow.deployments.trigger import House
    from clara_flow.infra.images.catalog import Catalog
    from clara_flow.records import jobs
    from clara_flow.records.database import connect
    from clara_flow.services.platform import ensure_platform
    from clara_flow.settings import load_settings

    platform = ensure_platform(load_settings())
    house = House(
        settings=platform.settings,
        engine=connect(platform.database_url),
        prefect_api_url=platform.prefect_api_url,
        catalog=Catalog.load(HERE, NOOP / "images.yaml"),
    )
    outcome = await asyncio.to_thread(LocalRunner(house, jobs.get_job(house.engine, job_id)).run)
    outcome.raise_for_status()
