"""This machine's worker of the pool as a service: the process that leases resources and runs the jobs."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from clara_flow.errors import ClaraFlowError
from clara_flow.infra.postgres import records_url
from clara_flow.services import prefect_server
from clara_flow.services.own_process import OwnProcess
from clara_flow.settings import Settings, environment_of

if TYPE_CHECKING:
    import sqlalchemy as sa

NAME = "pool"
PROGRAM = "clara_flow.deployments.pool_worker"
RUNNER_PROGRAM = "clara_flow.deployments.job_runner"


class PoolService(OwnProcess):
    """The worker. It answers when its machine stands among the pool's nodes and was heard of lately."""

    name, title, program = NAME, "the pool's worker", PROGRAM
    helpers = (RUNNER_PROGRAM,)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, folder=settings.data_dir / "pool", log_name="pool.log")
        self.address = f"{settings.pool} on {settings.node_name or socket.gethostname()}"
        self._engine: sa.Engine | None = None

    def environment(self) -> dict[str, str]:
        """This process's, without the user's own Prefect settings, and exactly our settings."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return inherited | environment_of(self.settings) | prefect_server.client_environment(self.settings)

    def silence(self) -> str:
        """Looks whether its machine stands among the nodes, and was heard of since the worker's start."""
        from clara_flow.records import nodes
        from clara_flow.records.database import connect

        self._engine = self._engine or connect(records_url(self.settings), pool_size=1)
        try:
            mine = [row for row in nodes.list_nodes(self._engine) if row.owner_pid == self.pid and row.is_heard_of]
        except ClaraFlowError as error:
            return str(error)
        return "" if mine else "it has not joined the pool"

    def end(self) -> bool:
        """Let go of the database, end the process."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None
        return super().end()
