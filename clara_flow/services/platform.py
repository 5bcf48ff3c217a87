"""The platform as commands see it: bring it up, find it, look at it, take it down."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from clara_flow.errors import ServiceError
from clara_flow.infra.postgres import records_url
from clara_flow.services import dicom_service, gateway_service, pool, postgres, prefect_server
from clara_flow.services.detached import DetachedSupervisor
from clara_flow.services.own_process import OwnProcess
from clara_flow.services.service import Service
from clara_flow.services.state_file import PlatformState, ServiceStatus, StateFile
from clara_flow.services.supervisor import services_of
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
        return records_url(self.settings)

    @property
    def prefect_environment(self) -> dict[str, str]:
        """What a process must have in its environment before it imports Prefect."""
        return prefect_server.client_environment(self.settings) | {"PREFECT_API_URL": self.prefect_api_url}

    def stop(self) -> None:
        """Take the platform down."""
        take_down(self.settings)


def ensure_platform(settings: Settings, on_progress: Progress = lambda text: None) -> PlatformHandle:
    """The platform of `settings.data_dir`, started in the background when none runs.

    Interrupted (Ctrl-C) while it starts, it stops what it started. Raises a ClaraFlowError when it cannot be started,
    does not answer in time, or runs on another database than `settings` name.
    """
    file = StateFile(settings.data_dir)
    file.prepare()
    supervisor = DetachedSupervisor(settings)
    try:
        state = _wait_until_up(settings, file, supervisor, on_progress)
        _require_same_database(settings, state)
    except BaseException:
        supervisor.stop()
        raise
    started_here = state.pid == supervisor.pid
    if started_here:
        supervisor.leave()
    else:  # ours came second; it must not begin when the first one ends
        supervisor.stop()
    return PlatformHandle(settings, state, started_here)


def take_down(settings: Settings) -> bool:
    """Stop the platform and what a killed supervisor left of it. Returns whether anything had been running.

    Raises ServiceError when something does not stop.
    """
    file = StateFile(settings.data_dir)
    if not file.folder.is_dir():
        return False
    ran = False
    asked = PlatformState()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while True:
        with file.supervising(patience_s=0) as mine:
            if mine:
                while asked.names_a_process and time.monotonic() < deadline:  # it has let go of the lock, and ends
                    time.sleep(POLL_S)
                return _clear(settings, file) or ran
        state = file.read()
        overdue = time.monotonic() > deadline
        if state.names_a_process and (overdue or (state.pid, state.started) != (asked.pid, asked.started)):
            with suppress(ProcessLookupError):
                os.kill(state.pid, signal.SIGKILL if overdue else signal.SIGTERM)
            asked, ran = state, True
        if time.monotonic() > deadline + STOP_TIMEOUT_S:
            raise ServiceError(
                "platform",
                f"its supervisor does not stop (process {state.pid or 'unknown'})",
                remedy=f"End the process that holds {file.lock_path} by hand.",
            )
        time.sleep(POLL_S)


def look(settings: Settings) -> PlatformState:
    """How the services are now. Without a supervisor they are what is left of them: stopped, or running unwatched."""
    file = StateFile(settings.data_dir)
    state = file.read()
    if file.is_supervised() and state.names_a_process:
        return state
    url = prefect_server.api_url(settings)
    known = {status.name: status for status in state.services}
    return replace(
        state,
        prefect_api_url=url,
        prefect_ui_url=url.removesuffix("/api"),
        services=tuple(_unwatched(service, known.get(service.name), settings) for service in services_of(settings)),
    )


def _clear(settings: Settings, file: StateFile) -> bool:
    """End what a killed supervisor left, with its lock held. Returns whether there was anything.

    Servers of ours are looked for whatever `settings` say: it may have been started with others.
    """
    own: tuple[Service, ...] = (
        gateway_service.GatewayService(settings),
        dicom_service.DicomService(settings),
        pool.PoolService(settings),
        prefect_server.OwnService(settings),
        postgres.EmbeddedService(settings),
    )
    ended = [service.end() for service in own]
    state = file.read()
    if state.pid:
        left = tuple(_unwatched(service, None, settings) for service in services_of(settings))
        file.write(replace(state, pid=0, started="", services=left))
    return any(ended)


def _unwatched(service: Service, known: ServiceStatus | None, settings: Settings) -> ServiceStatus:
    status = ServiceStatus(
        name=service.name,
        address=service.address,
        state="unknown" if service.is_external else "stopped",
        external=service.is_external,
        log_file=str(service.log_path or ""),
    )
    pid = service.pid
    if isinstance(service, OwnProcess):  # it was another process's child
        pid = next((process.pid for process in service.processes()), None)
    if pid is not None:
        message = "its supervisor was killed; `clara-flow up` takes over, `clara-flow down` stops it"
        return replace(status, state="unhealthy", pid=pid, message=message)
    if known is not None and known.state in {"stopped", "unknown"}:
        return replace(status, state=known.state, since=known.since, message=known.message)
    return status


def _wait_until_up(
    settings: Settings, file: StateFile, supervisor: DetachedSupervisor, on_progress: Progress
) -> PlatformState:
    """Wait for the supervisor that there is; start one whenever there is none."""
    deadline = time.monotonic() + 2 * settings.service_start_timeout_s
    while True:
        state = file.read()
        if not state.names_a_process:
            if not file.is_supervised():
                supervisor.start()
        elif state.is_up and prefect_server.is_healthy(state.prefect_api_url, ours=settings.prefect_api_url is None):
            return state
        starting = [status.name for status in state.services if status.state != "running"]
        on_progress(f"Starting {', '.join(starting) or 'the platform'}")
        if time.monotonic() > deadline:
            unwell = "; ".join(f"{s.name} is {s.state} {s.message}".strip() for s in state.services)
            raise ServiceError(
                "platform",
                f"it is not up in time ({unwell or 'nothing started'})",
                remedy="Look into the log, or give it more time with CLARA_FLOW_SERVICE_START_TIMEOUT_S.",
                log_path=str(supervisor.log_path),
            )
        time.sleep(POLL_S)


def _require_same_database(settings: Settings, state: PlatformState) -> None:
    asked = postgres.public_address(records_url(settings))
    if state.database_url != asked:
        raise ServiceError(
            "platform",
            f"it runs on the database {state.database_url}, and this command is set to {asked}",
            remedy="Use the same CLARA_FLOW_DATABASE_URL, or stop it (`clara-flow down`) and start it anew.",
        )
