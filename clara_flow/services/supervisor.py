"""The supervisor: one process that starts the platform's services, watches them, and stops them in reverse order.

    PostgreSQL (ours or an external one) -> our tables -> Prefect server (ours or an external one)

A service that dies is started again, after a pause that grows. What a killed supervisor left behind, the next one
takes over (PostgreSQL) or ends (Prefect), by process ids whose start times are checked.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import psutil
import sqlalchemy as sa

from clara_flow.errors import ClaraFlowError, ServiceError
from clara_flow.infra.postgres import EmbeddedPostgres
from clara_flow.records.database import connect, migrate, naming_connection_problems, with_driver
from clara_flow.records.owner import process_start
from clara_flow.services import ports, prefect_server
from clara_flow.services.state_file import PlatformState, ServiceStatus, StateFile
from clara_flow.settings import Settings

POSTGRES, PREFECT = "postgresql", "prefect"
WATCH_EVERY_S = 1.0
START_POLL_S = 0.05
STOP_GRACE_S = 10.0
LONGEST_PAUSE_S = 30.0
SHOWN_LOG_LINES = 5

Progress = Callable[[str], None]


def embedded_postgres(settings: Settings) -> EmbeddedPostgres:
    """The embedded server of that data folder."""
    return EmbeddedPostgres(
        settings.data_dir / "postgres",
        bin_dir=settings.postgres_bin_dir,
        log_path=settings.data_dir / "logs" / "postgresql.log",
        timeout_s=settings.service_start_timeout_s,
    )


def prefect_database_url(settings: Settings) -> str:
    """Address (SQLAlchemy, asyncpg) of the database of our own Prefect server."""
    if settings.prefect_database_url is not None:
        return with_driver(settings.prefect_database_url.get_secret_value(), "asyncpg")
    if settings.database_url is not None:
        beside = sa.make_url(settings.database_url.get_secret_value()).set(database="prefect")
        return with_driver(beside.render_as_string(hide_password=False), "asyncpg")
    return embedded_postgres(settings).url("prefect", driver="asyncpg")


def end_process(pid: int | None, started: str) -> None:
    """End the process group of a service of ours: politely, then by force. A stranger with its pid is left alone."""
    if pid is None or not started or process_start(pid) != started:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(pid, number)
        try:
            psutil.Process(pid).wait(STOP_GRACE_S)
            return
        except psutil.NoSuchProcess:
            return
        except psutil.TimeoutExpired:
            continue


class Supervisor:
    """Starts and watches the services of one data folder."""

    def __init__(self, settings: Settings, on_progress: Progress = lambda text: None) -> None:
        self.settings = settings
        self.on_progress = on_progress
        self.file = StateFile(settings.data_dir)
        self.stop = threading.Event()
        self._state = PlatformState()
        self._prefect: subprocess.Popen[bytes] | None = None
        self._postgres = None if settings.database_url else embedded_postgres(settings)
        self._restart_at = 0.0

    def run(self, on_up: Callable[[PlatformState], None] = lambda state: None) -> bool:
        """Start everything, watch it until `stop` is set, stop everything.

        on_up       called once, when every service answers.
        Returns False, and does nothing, when another supervisor has this data folder. Raises ServiceError or
        StorageError when a service cannot be started; then nothing runs.
        """
        self.file.prepare()
        with self.file.supervising() as mine:
            if not mine:
                return False
            try:
                self._begin()
                self._start()
                if not self.stop.is_set():
                    on_up(self._state)
                while not self.stop.wait(WATCH_EVERY_S):
                    self._watch()
            except ClaraFlowError as error:
                self._state = replace(self._state, error={"message": str(error), "kind": type(error).__name__})
                raise
            finally:
                self._end()
        return True

    def _begin(self) -> None:
        before = self.file.read()
        for service in before.services:
            if service.name == PREFECT:  # left behind by a killed supervisor; PostgreSQL is taken over as it is
                end_process(service.pid, service.started)
        (self.settings.data_dir / "logs").mkdir(exist_ok=True)
        url = prefect_server.api_url(self.settings)
        self._write(
            PlatformState(
                pid=os.getpid(),
                started=process_start(os.getpid()),
                host=self.settings.host,
                prefect_api_url=url,
                prefect_ui_url=url.removesuffix("/api"),
                database_url=self._postgres.url() if self._postgres else "",
            )
        )

    def _start(self) -> None:
        self._start_postgres()
        if self.stop.is_set():
            return
        self.on_progress("Preparing the database")
        migrate(self._records_url())
        self._start_prefect()

    def _records_url(self) -> str:
        if self.settings.database_url is not None:
            return self.settings.database_url.get_secret_value()
        return embedded_postgres(self.settings).url()

    def _start_postgres(self) -> None:
        self.on_progress("Starting PostgreSQL")
        if self._postgres is None:
            engine = connect(self._records_url(), pool_size=1)
            with naming_connection_problems(engine), engine.connect():
                pass
            engine.dispose()
            self._set(POSTGRES, "running", address=engine.url.render_as_string(), message="external")
            return
        self._set(POSTGRES, "starting", address=self._postgres.url(), log=self._postgres.log_path)
        self._postgres.start()
        self._set(POSTGRES, "running", pid=self._postgres.pid)

    def _start_prefect(self) -> None:
        settings, url = self.settings, prefect_server.api_url(self.settings)
        if settings.prefect_api_url is not None:
            self.on_progress("Looking for the Prefect server")
            if not prefect_server.is_healthy(url):
                raise ServiceError(
                    "Prefect",
                    f"{url} does not answer",
                    remedy="Is it started, and is CLARA_FLOW_PREFECT_API_URL right?",
                )
            self._set(PREFECT, "running", address=url, message="external")
            return
        self.on_progress("Starting the Prefect server")
        log_path = settings.data_dir / "logs" / "prefect.log"
        ports.require_free("Prefect", settings.host, settings.prefect_port, "CLARA_FLOW_PREFECT_PORT")
        self._set(PREFECT, "starting", address=url, log=log_path)
        self._launch_prefect(log_path)
        deadline = time.monotonic() + settings.service_start_timeout_s
        while not prefect_server.is_healthy(url):
            process = self._prefect
            if process is None or process.poll() is not None:
                lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LOG_LINES:]
                raise ServiceError(
                    "Prefect",
                    "its server ended while it started: " + " | ".join(lines),
                    remedy="`clara-flow doctor` checks this machine.",
                    log_path=str(log_path),
                )
            if time.monotonic() > deadline:
                raise ServiceError(
                    "Prefect",
                    f"its server did not answer within {settings.service_start_timeout_s:g} s",
                    remedy="Give it more time with CLARA_FLOW_SERVICE_START_TIMEOUT_S.",
                    log_path=str(log_path),
                )
            if self.stop.wait(START_POLL_S):
                return
        self._set(PREFECT, "running")

    def _launch_prefect(self, log_path: Path) -> None:
        self._prefect = prefect_server.start(self.settings, prefect_database_url(self.settings), log_path)
        self._set(PREFECT, "starting", pid=self._prefect.pid)

    def _watch(self) -> None:
        """Look at every service of ours once; start what has died."""
        if self._postgres is not None and not self._postgres.is_running():
            self._restart(POSTGRES, self._restart_postgres)
        if self._prefect is not None:
            if self._prefect.poll() is not None:
                self._restart(PREFECT, self._restart_prefect)
            elif prefect_server.is_healthy(self._state.prefect_api_url):
                self._set(PREFECT, "running")
            else:
                self._set(PREFECT, "unhealthy", message="it does not answer its health request")

    def _restart(self, name: str, start: Callable[[], None]) -> None:
        service = self._service(name)
        if service.state == "running":
            self._set(name, "unhealthy", message="it died; it is being started again")
            self._restart_at = 0.0
        if time.monotonic() < self._restart_at:
            return
        self._restart_at = time.monotonic() + min(2.0**service.restarts, LONGEST_PAUSE_S)
        self._set(name, "unhealthy", restarts=service.restarts + 1)
        try:
            start()
        except ClaraFlowError as error:
            self._set(name, "unhealthy", message=str(error))

    def _restart_postgres(self) -> None:
        assert self._postgres is not None  # noqa: S101  only ours is restarted
        self._postgres.start()
        self._set(POSTGRES, "running", pid=self._postgres.pid)

    def _restart_prefect(self) -> None:
        self._launch_prefect(self.settings.data_dir / "logs" / "prefect.log")

    def _end(self) -> None:
        """Stop in reverse order; what fails to stop is said, and the rest is stopped all the same."""
        self.on_progress("Stopping")
        if self._prefect is not None:
            end_process(self._prefect.pid, self._service(PREFECT).started)
            self._prefect.wait()
        with suppress(ClaraFlowError):
            if self._postgres is not None:
                self._postgres.stop()
        stopped = tuple(
            replace(service, state="stopped", pid=None, started="", since=_now()) for service in self._state.services
        )
        with suppress(OSError):  # a full disk must not keep the platform from ending
            self._write(replace(self._state, pid=0, started="", services=stopped))

    def _service(self, name: str) -> ServiceStatus:
        return next(service for service in self._state.services if service.name == name)

    def _set(
        self,
        name: str,
        state: str,
        *,
        address: str | None = None,
        log: Path | None = None,
        pid: int | None = None,
        message: str = "",
        restarts: int | None = None,
    ) -> None:
        """Write a service's status when it changed; what is not given stays."""
        known = {service.name: service for service in self._state.services}
        before = known.get(name, ServiceStatus(name=name, address=""))
        after = replace(
            before,
            state=state,
            since=before.since if before.state == state else _now(),
            address=before.address if address is None else address,
            log_file=before.log_file if log is None else str(log),
            pid=before.pid if pid is None else pid,
            started=before.started if pid is None else process_start(pid),
            message=message,
            restarts=before.restarts if restarts is None else restarts,
        )
        if after != before:
            self._write(self._state.with_service(after))

    def _write(self, state: PlatformState) -> None:
        self._state = state
        self.file.write(state)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def main() -> int:
    """A detached supervisor: settings come pickled on stdin (they hold secrets), errors go to the state file."""
    supervisor = Supervisor(pickle.load(sys.stdin.buffer))  # noqa: S301  our own parent wrote it

    def end(number: int, frame: FrameType | None) -> None:
        supervisor.stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        supervisor.run()
    except ClaraFlowError as error:
        sys.stderr.write(f"{_now()} {error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
