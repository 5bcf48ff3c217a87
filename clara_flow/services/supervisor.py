"""The supervisor: one process that starts the platform's services in order, watches them, stops them in reverse order.

A service that dies, or is silent for too long, is started again, after a pause that grows: without end once everything
was up, START_TRIES times in all before that, since then somebody waits for the reason. What a killed supervisor left
behind, the next one takes over (PostgreSQL) or ends (Prefect): both are known by the folders that they work in.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from clara_flow.errors import ClaraFlowError, ServiceError, StorageError
from clara_flow.infra.postgres import records_url
from clara_flow.records.owner import process_start
from clara_flow.services import dicom_service, gateway_service, pool, postgres, prefect_server
from clara_flow.services.log_files import rotate_all
from clara_flow.services.service import Service
from clara_flow.services.state_file import PlatformState, ServiceStatus, StateFile
from clara_flow.settings import Settings

WATCH_EVERY_S = 1.0
ROTATE_EVERY_S = 30.0
START_POLL_S = 0.05
LONGEST_PAUSE_S = 30.0
START_TRIES = 3

Progress = Callable[[str], None]


def services_of(settings: Settings) -> tuple[Service, ...]:
    """The platform's services in the order of their start."""
    services: list[Service] = [postgres.service_of(settings), prefect_server.service_of(settings)]
    services.append(pool.PoolService(settings))
    if settings.dicom_port:
        services.append(dicom_service.DicomService(settings))
    if settings.gateway_port:
        services.append(gateway_service.GatewayService(settings))
    return tuple(services)


def _ranks(services: tuple[Service, ...]) -> list[list[Service]]:
    """Services that may be started at once, rank by rank."""
    ranks: list[list[Service]] = []
    for service in services:
        if service.needs_earlier or not ranks:
            ranks.append([])
        ranks[-1].append(service)
    return ranks


@dataclass(slots=True)
class Health:
    """What the supervisor remembers of a service; times are of the monotonic clock."""

    answered_at: float = 0.0
    failures: int = 0  # since it last answered
    retry_at: float = 0.0


class Supervisor:
    """Starts and watches the services of one data folder; `services` in the order of their start."""

    def __init__(
        self,
        settings: Settings,
        on_progress: Progress = lambda text: None,
        services: tuple[Service, ...] | None = None,
    ) -> None:
        self.settings = settings
        self.on_progress = on_progress
        self.file = StateFile(settings.data_dir)
        self.stop = threading.Event()
        self.services = services_of(settings) if services is None else services
        self._health = {service.name: Health() for service in self.services}
        self._state = PlatformState()
        self._rotate_at = 0.0

    def run(self, on_up: Callable[[PlatformState], None] = lambda state: None) -> bool:
        """Start everything, watch it until `stop` is set, stop everything.

        on_up       called once, when every service answers.
        Returns False, having done nothing, when another supervisor has this data folder. Raises a ClaraFlowError when
        a service cannot be started; then nothing runs.
        """
        self.file.prepare()
        with self.file.supervising() as mine:
            if not mine:
                return False
            try:
                self._begin()
                for service in self.services:
                    if not self.stop.is_set():
                        self._try(self._prepare, service)
                for together in _ranks(self.services):
                    for step in (self._start, self._wait_for):
                        for service in together:
                            if not self.stop.is_set():
                                self._try(step, service)
                if not self.stop.is_set():
                    on_up(self._state)
                while not self.stop.wait(WATCH_EVERY_S):
                    self._watch_all()
                    self._rotate_logs()
            finally:
                self._end()
        return True

    def _begin(self) -> None:
        """Say who supervises; the services come later, so that nobody takes an earlier supervisor's for ours."""
        url = prefect_server.api_url(self.settings)
        self._write(
            PlatformState(
                pid=os.getpid(),
                started=process_start(os.getpid()),
                prefect_api_url=url,
                prefect_ui_url=url.removesuffix("/api"),
                database_url=postgres.public_address(records_url(self.settings)),
                services=tuple(
                    ServiceStatus(
                        name=service.name,
                        address=service.address,
                        external=service.is_external,
                        log_file=str(service.log_path or ""),
                        since=_now(),
                    )
                    for service in self.services
                ),
            )
        )

    def _try(self, step: Callable[[Service], None], service: Service) -> None:
        """One step of the start; what keeps it from succeeding is also noted for `clara-flow status`."""
        try:
            step(service)
        except ClaraFlowError as error:
            self._set(service, "stopped", message=str(error))
            raise

    def _prepare(self, service: Service) -> None:
        service.prepare()

    def _start(self, service: Service) -> None:
        self.on_progress(f"{'Looking for' if service.is_external else 'Starting'} {service.title}")
        self._set(service, "starting")
        while True:
            try:
                service.start()
                break
            except ServiceError as error:
                if not self._rests(service, error):
                    return
        self._set(service, "starting")

    def _rests(self, service: Service, failure: ServiceError) -> bool:
        """Pause before its next try: somebody may have killed it. False when `stop` was set; raises after the last."""
        health = self._health[service.name]
        health.failures += 1
        if health.failures >= START_TRIES:
            raise failure
        _log(f"{failure} It is tried again.")
        self._set(service, "starting", message=str(failure), restarted=True)
        return not self.stop.wait(2.0 ** (health.failures - 1))

    def _wait_for(self, service: Service) -> None:
        """Until it answers, or until `stop` is set."""
        limit_s = self.settings.service_start_timeout_s
        deadline = time.monotonic() + limit_s
        while problem := service.problem():
            if self.stop.wait(START_POLL_S):  # first: a terminal's Ctrl-C can hit a service in the middle of its birth
                return
            if not service.is_alive():
                remedy = "`clara-flow doctor` checks this machine."
                if not self._rests(service, self._failure(service, problem, remedy=remedy)):
                    return
                service.prepare()
                self._start(service)
                deadline = time.monotonic() + limit_s
            elif time.monotonic() > deadline:
                remedy = "Give it more time with CLARA_FLOW_SERVICE_START_TIMEOUT_S."
                raise self._failure(service, f"{problem} within {limit_s:g} s", remedy=remedy)
        self._health[service.name] = Health(answered_at=time.monotonic())
        self._set(service, "running")

    def _failure(self, service: Service, reason: str, *, remedy: str) -> ServiceError:
        log_path = str(service.log_path) if service.log_path else None
        return ServiceError(service.title, reason, remedy=remedy, log_path=log_path)

    def _watch_all(self) -> None:
        """Look at every service once. A full disk or a stubborn service must not end the platform: the next round
        tries again."""
        for service in self.services:
            try:
                self._watch(service)
            except ClaraFlowError as error:
                _log(str(error))

    def _rotate_logs(self) -> None:
        """Now and then begin anew the log files that have grown too large."""
        if time.monotonic() < self._rotate_at:
            return
        self._rotate_at = time.monotonic() + ROTATE_EVERY_S
        try:
            for path in rotate_all(self.settings.data_dir / "logs", self.settings.service_log_limit_mib * 2**20):
                _log(f"{path.name} has grown too large and was begun anew; what it held is in {path.name}.1")
        except OSError as error:
            _log(f"log files cannot be begun anew: {error.strerror} ({error.filename})")

    def _watch(self, service: Service) -> None:
        health, now = self._health[service.name], time.monotonic()
        if not service.is_alive():
            if self._status(service).state == "running":
                self._set(service, "unhealthy", message="it died; it is being started again")
            if now >= health.retry_at:
                self._start_again(service, health)
        elif not (problem := service.problem()):
            health.answered_at, health.failures = time.monotonic(), 0
            self._set(service, "running")
        else:
            self._set(service, "unhealthy", message=problem)
            if not service.is_external and now - health.answered_at > self.settings.service_start_timeout_s:
                _log(f"{service.title} was silent for {now - health.answered_at:.0f} s and is ended")
                service.end()

    def _start_again(self, service: Service, health: Health) -> None:
        health.failures += 1
        health.retry_at = time.monotonic() + min(2.0**health.failures, LONGEST_PAUSE_S)
        health.answered_at = time.monotonic()  # its time to answer begins now
        self._set(service, "unhealthy", message="it is being started again", restarted=True)
        try:
            service.prepare()
            service.start()
        except ClaraFlowError as error:
            self._set(service, "unhealthy", message=str(error))

    def _end(self) -> None:
        """Stop in reverse order; what fails to stop is told, and the rest is stopped all the same."""
        self.on_progress("Stopping")
        messages = {status.name: status.message for status in self._state.services if status.state == "stopped"}
        for service in reversed(self.services):
            try:
                service.end()
            except ClaraFlowError as error:
                _log(str(error))
                messages[service.name] = str(error)
        try:
            self._write(
                replace(
                    self._state,
                    pid=0,
                    started="",
                    services=tuple(
                        replace(
                            status,
                            state="unknown" if status.external and not messages.get(status.name) else "stopped",
                            pid=None,
                            since=_now(),
                            message=messages.get(status.name, ""),
                        )
                        for status in self._state.services
                    ),
                )
            )
        except StorageError as error:  # a full disk must not keep the platform from ending
            _log(str(error))

    def _status(self, service: Service) -> ServiceStatus:
        return next(status for status in self._state.services if status.name == service.name)

    def _set(self, service: Service, state: str, *, message: str = "", restarted: bool = False) -> None:
        """Note a service's state when it changed."""
        before = self._status(service)
        after = replace(
            before,
            state=state,
            since=before.since if before.state == state else _now(),
            pid=service.pid,
            message=message,
            restarts=before.restarts + restarted,
        )
        if after != before:
            self._write(self._state.with_service(after))

    def _write(self, state: PlatformState) -> None:
        self.file.write(state)
        self._state = state


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _log(text: str) -> None:
    sys.stderr.write(f"{_now()} {text}\n")
    sys.stderr.flush()
