"""The process of this machine's worker: what `prefect worker start` does, without what a service does not need.

python -m clara_flow.deployments.pool_worker
"""

from __future__ import annotations

import asyncio
import socket
import sys

from clara_flow.deployments.own_log import log_to_stderr
from clara_flow.errors import ClaraFlowError
from clara_flow.infra.pool.worker import ClaraGpuWorker
from clara_flow.settings import load_settings


async def work() -> None:
    """Work until SIGTERM. Raises ClaraFlowError when this machine cannot join the pool."""
    settings = load_settings()
    name = settings.node_name or socket.gethostname()
    await ClaraGpuWorker(work_pool_name=settings.pool, name=name).start()


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
