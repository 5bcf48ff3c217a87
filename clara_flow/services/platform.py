"""The platform as commands see it: bring it up, find it, look at it, take it down."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from clara_flow.errors import PlatformError, ServiceError
from clara_flow.records.owner import process_start
from clara_flow.services import prefect_server
from clara_flow.services.state_file import PlatformState, ServiceStatus, StateFile
from clara_flow.settings import Settings

POLL_S = 0.05
STOP_TIMEOUT_S = 60.0

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PlatformHandle:
    """A platform that answers.

    started_here    whether this call started it.
    """

    settings: Settings
    state: PlatformState
    started_here: bool

    @property
    def prefect_api_url(self) -> str:
        """Address of the Prefect API."""
        return self.state.prefect_api_url

    @property
    def prefect_ui_url(self) -> str:
        """Address of the Prefect UI."""
        return self.state.prefect_ui_url

    @property
    def database_url(self) -> str:
        """Address of the records' database (with its password, where it has one)."""
        external = self.settings.database_url
        return external.get_secret_value() if external else self.state.database_url

    @property
    def prefect_environment(self) -> dict[str, str]:
        """What a process must have in its environment before it imports Prefect."""
        return prefect_server.client_environment(self.settings) | {"PREFECT_API_URL": self.prefect_api_url}

    def stop(self) -> None:
        """Take the platform down."""
        take_down(self.settings)


def ensure_platform(settings: Settings, on_progress: Progress = lambda text: None) -> PlatformHandle:
    """The platform of `settings.data_dir`, started in the background when none runs.

    Interrupted (Ctrl-C) while it starts, it stops what it started. Raises ServiceError or StorageError when it cannot
    be started or does not answer in time.
    """
    file = StateFile(settings.data_dir)
    file.prepare()
    started_here = not file.is_supervised()
    child = _spawn(settings, file) if started_here else None
    try:
        state = _wait_until_up(settings, file, child, on_progress)
    except BaseException:
        if started_here:
            take_down(settings)
        raise
    return PlatformHandle(settings, state, started_here)


def take_down(settings: Settings) -> bool:
    """Stop the platform and what a killed supervisor left of it. Returns whether anything had been running."""
    from clara_flow.services.supervisor import PREFECT, embedded_postgres, end_process

    file = StateFile(settings.data_dir)
    if not file.folder.is_dir():
        return False
    state = file.read()
    ran = file.is_supervised()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while file.is_supervised():
        state = file.read()
        if state.pid and process_start(state.pid) == state.started:
            with suppress(ProcessLookupError):
                os.kill(state.pid, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
        time.sleep(POLL_S)
    for service in file.read().services:
        if service.name == PREFECT and service.pid and process_start(service.pid) == service.started:
            end_process(service.pid, service.started)
            ran = True
    if settings.database_url is None:
        ran = embedded_postgres(settings).stop() or ran
    stopped = tuple(replace(s, state="stopped", pid=None, started="") for s in file.read().services)
    if stopped:
        file.write(replace(file.read(), pid=0, started="", services=stopped))
    return ran


def look(settings: Settings) -> PlatformState:
    """How the services are now. Without a supervisor they are what is left of them: stopped, or running unwatched."""
    file = StateFile(settings.data_dir)
    state = file.read()
    if not state.services:
        from clara_flow.services.supervisor import POSTGRES, PREFECT

        url = prefect_server.api_url(settings)
        state = replace(
            state,
            prefect_api_url=url,
            prefect_ui_url=url.removesuffix("/api"),
            services=(
                ServiceStatus(name=POSTGRES, address=str(settings.data_dir / "postgres")),
                ServiceStatus(name=PREFECT, address=url),
            ),
        )
    if file.is_supervised():
        return state
    return replace(state, services=tuple(_unwatched(service) for service in state.services))


def _unwatched(service: ServiceStatus) -> ServiceStatus:
    if service.pid and process_start(service.pid) == service.started:
        message = "its supervisor was killed; `clara-flow up` takes over, `clara-flow down` stops it"
        return replace(service, state="unhealthy", message=message)
    return replace(service, state="stopped", pid=None)


def _spawn(settings: Settings, file: StateFile) -> subprocess.Popen[bytes]:
    """A supervisor in a session of its own. Settings go through stdin: they may hold passwords."""
    logs = settings.data_dir / "logs"
    logs.mkdir(exist_ok=True)
    with (logs / "supervisor.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "clara_flow.services.supervisor"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=settings.data_dir,
            start_new_session=True,
        )
    assert child.stdin is not None  # noqa: S101  asked for above
    with child.stdin:
        child.stdin.write(pickle.dumps(settings))
    return child


def _wait_until_up(
    settings: Settings, file: StateFile, child: subprocess.Popen[bytes] | None, on_progress: Progress
) -> PlatformState:
    deadline = time.monotonic() + 2 * settings.service_start_timeout_s
    while True:
        state = file.read()
        if state.is_up and file.is_supervised() and prefect_server.is_healthy(state.prefect_api_url):
            return state
        starting = [service.name for service in state.services if service.state != "running"]
        on_progress(f"Starting {', '.join(starting) or 'the platform'}")
        if child is not None and child.poll() is not None and not file.is_supervised():
            log = settings.data_dir / "logs" / "supervisor.log"
            raise PlatformError(
                file.read().error.get("message") or f"the supervisor ended with {child.returncode}; its log: {log}"
            )
        if time.monotonic() > deadline:
            unwell = "; ".join(f"{s.name} is {s.state} {s.message}".strip() for s in state.services)
            raise ServiceError(
                "platform",
                f"it is not up in time ({unwell or 'nothing started'})",
                remedy="Look into the log, or give it more time with CLARA_FLOW_SERVICE_START_TIMEOUT_S.",
                log_path=str(settings.data_dir / "logs" / "supervisor.log"),
            )
        time.sleep(POLL_S)
