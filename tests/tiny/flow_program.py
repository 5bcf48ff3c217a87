"""A runner program whose jobs are real Prefect flow runs; each leaves its run's id in the folder RUNNER_FOLDER."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run

from clara_flow.infra.pool import zygote


@task
async def step(number: int) -> int:
    """One number more."""
    get_run_logger().info("step %s in process %s", number, os.getpid())
    return number + 1


@flow(name="tiny-runner-flow", persist_result=False)
async def three_steps() -> str:
    """Three tasks in turn."""
    number = 0
    for _ in range(3):
        number = await step(number)
    return f"{flow_run.get_id()} {number} {os.getpid()}"


class FlowHandler:
    """Runs the flow."""

    async def open(self) -> None: ...

    async def run(self, job_id: UUID, facts: object, stop: object) -> None:
        told = await three_steps()
        await APILogHandler.aflush()
        unnamed = Path(os.environ["RUNNER_FOLDER"]) / f"{job_id}.new"
        unnamed.write_text(told)
        unnamed.rename(unnamed.with_suffix(""))

    async def abandon(self) -> None: ...

    async def close(self) -> None: ...


if __name__ == "__main__":
    zygote.main(FlowHandler)
