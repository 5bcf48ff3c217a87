"""A Prefect server of the tests' own, which they may kill, freeze and rob of its database.

A conftest that needs it imports the fixture: `from prefect_fixture import prefect  # noqa: F401`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from platform_fixture import free_port
from postgres_fixture import new_database, session_server
from waiting import eventually

from clara_flow.infra.postgres import EmbeddedPostgres
from clara_flow.services import prefect_server
from clara_flow.settings import load_settings

START_S = 60


class OwnPrefect:
    """The server's process, and its API as everybody sees it."""

    def __init__(self, postgres: EmbeddedPostgres, folder: Path) -> None:
        self._postgres = postgres
        self._folder = folder
        self._port = free_port()
        self._database = new_database(postgres)
        self._process: subprocess.Popen[bytes] | None = None
        self.api_url = f"http://127.0.0.1:{self._port}/api"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Return when it answers."""
        settings = load_settings(data_dir=self._folder, prefect_port=self._port, prefect_database_url=self._database)
        prefect_server.home(settings).mkdir(parents=True, exist_ok=True)
        with (self._folder / "prefect.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "clara_flow.deployments.prefect_server", "127.0.0.1", str(self._port)],
                env=prefect_server.server_environment(settings),
                cwd=prefect_server.home(settings),
                stdout=log,
                stderr=log,
            )
        eventually(lambda: prefect_server.is_healthy(self.api_url), within_s=START_S)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It accepts connections and says nothing any more."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        os.kill(self.pid, signal.SIGCONT)

    def wipe(self) -> None:
        """Come back with an empty database."""
        self.kill()
        self._database = new_database(self._postgres)
        self.start()

    def post(self, path: str, body: Any) -> Any:
        """The answer's JSON."""
        answer = httpx.post(f"{self.api_url}{path}", json=body, timeout=30).raise_for_status()
        return answer.json() if answer.content else None

    def get(self, path: str) -> Any:
        """The answer's JSON."""
        return httpx.get(f"{self.api_url}{path}", timeout=30).raise_for_status().json()

    def flow_run(self, flow_run_id: object) -> dict[str, Any]:
        """A flow run."""
        run: dict[str, Any] = self.get(f"/flow_runs/{flow_run_id}")
        return run

    def state(self, flow_run_id: object) -> tuple[str, str]:
        """Type and name of a flow run's state."""
        state = self.flow_run(flow_run_id)["state"]
        return state["type"], state["name"]

    def task_runs(self, flow_run_id: object) -> dict[str, dict[str, Any]]:
        """The task runs of a flow run by name; each name is there once."""
        runs = self.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [str(flow_run_id)]}}})
        assert len({run["name"] for run in runs}) == len(runs)
        return {run["name"]: run for run in runs}

    def logs(self, flow_run_id: object) -> list[dict[str, Any]]:
        """Up to 200 log lines of a flow run."""
        wanted = {"logs": {"flow_run_id": {"any_": [str(flow_run_id)]}}}
        lines: list[dict[str, Any]] = self.post("/logs/filter", wanted)
        return lines


SERVER = pytest.StashKey[OwnPrefect]()


@pytest.fixture
def prefect(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> OwnPrefect:
    """The server of this test session, started when first asked for. Who kills it starts it again.

    Kept in the session, since a fixture that several conftests import would be made several times.
    """
    if SERVER not in pytestconfig.stash:
        server = OwnPrefect(session_server(pytestconfig, tmp_path_factory), tmp_path_factory.mktemp("prefect"))
        pytestconfig.add_cleanup(server.kill)
        server.start()
        pytestconfig.stash[SERVER] = server
    return pytestconfig.stash[SERVER]
