"""The process of this machine's worker: what `prefect worker start` does, without what a service does not need.

python -m clara_flow.deployments.pool_worker
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from contextlib import suppress

import sqlalchemy as sa
from prefect.settings import PREFECT_API_URL

from clara_flow.deployments.own_log import log_to_stderr
from clara_flow.deployments.pipelines import bundled_names, find_definition
from clara_flow.deployments.register import register_blocks, register_pipeline
from clara_flow.deployments.trigger import compile_definition
from clara_flow.errors import ClaraFlowError
from clara_flow.infra.pool.worker import ClaraGpuWorker
from clara_flow.infra.postgres import records_url
from clara_flow.records import pipelines
from clara_flow.records.database import connect
from clara_flow.settings import Settings, load_settings

log = logging.getLogger(__name__)


async def work() -> None:
    """Work until SIGTERM. Raises ClaraFlowError when this machine cannot join the pool."""
    settings = load_settings()
    name = settings.node_name or socket.gethostname()
    working = asyncio.ensure_future(ClaraGpuWorker(work_pool_name=settings.pool, name=name).start())
    registering = asyncio.create_task(keep_registered(settings))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, working.cancel)
    try:
        with suppress(asyncio.CancelledError):
            await working
    finally:
        registering.cancel()


async def keep_registered(settings: Settings) -> None:
    """Give every pipeline a deployment, so that the Prefect UI shows and runs it, and make our blocks known there."""
    engine = connect(records_url(settings), pool_size=1)
    try:
        is_recorded = has_blocks = False
        while True:
            try:
                if not is_recorded:
                    await asyncio.to_thread(record_bundled, settings, engine)
                    is_recorded = True
                await asyncio.to_thread(register_new, settings, engine)
                if not has_blocks:
                    await asyncio.to_thread(register_blocks, PREFECT_API_URL.value())
                    has_blocks = True
            except ClaraFlowError as error:  # Prefect or the database is away
                log.debug("pipelines are registered later: %s", error)
            await asyncio.sleep(settings.poll_s)
    finally:
        engine.dispose()


def record_bundled(settings: Settings, engine: sa.Engine) -> None:
    """Records of the bundled pipelines; nothing happens when they are there."""
    for name in bundled_names():
        compiled = compile_definition(settings, find_definition(name), {})
        plan = compiled.plan.model_dump(mode="json")
        pipelines.create_pipeline(
            engine, name=compiled.plan.name, definition=compiled.text, plan=plan, source=compiled.source
        )


def register_new(settings: Settings, engine: sa.Engine) -> None:
    """Deployments for the pipelines that have none. Raises ServiceError."""
    for pipeline in pipelines.to_deploy(engine):
        register_pipeline(engine, pipeline, pool=settings.pool, api_url=PREFECT_API_URL.value())


def main() -> int:
    """The exit status."""
    log_to_stderr()
    try:
        asyncio.run(work())
    except ClaraFlowError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
