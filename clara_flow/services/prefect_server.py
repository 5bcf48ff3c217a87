"""The Prefect server as a service: a process of ours on our database, in our data folder, or an external one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from clara_flow.errors import ServiceError
from clara_flow.records.durable import naming_storage_problems
from clara_flow.services import ports, postgres
from clara_flow.services.service import Service
from clara_flow.settings import Settings

if TYPE_CHECKING:
    import psutil

NAME = "prefect"
HEALTH_TIMEOUT_S = 2.0
STOP_GRACE_S = 10.0
POLL_S = 0.02
SHOWN_LOG_LINES = 5
PROGRAM = "clara_flow.deployments.prefect_server"


def api_url(settings: Settings) -> str:
    """Address of the API, of ours or of the external one."""
    return settings.prefect_api_url or f"http://{client_host(settings)}:{settings.prefect_port}/api"


def client_host(settings: Settings) -> str:
    """The host that clients on this machine use for a server that listens on `settings.host`, as URLs take it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104  compared, not bound
    return f"[{host}]" if ":" in host else host


def home(settings: Settings) -> Path:
    """Prefect's own folder, apart from the user's."""
    return settings.data_dir / "prefect"


def client_environment(settings: Settings) -> dict[str, str]:
    """Environment of a process that runs flows: our server, reached without a proxy, and our Prefect home."""
    environment = {
        "PREFECT_API_URL": api_url(settings),
        "PREFECT_HOME": str(home(settings)),
        "PREFECT_PROFILES_PATH": str(home(settings) / "profiles.toml"),  # or the user's variable would name his own
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",  # never a server of its own, on SQLite
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the task logs are in the UI and in the log files
        "DO_NOT_TRACK": "1",
    }
    if settings.prefect_api_url is None:
        for name in ("no_proxy", "NO_PROXY"):
            direct = [os.environ.get(name, ""), client_host(settings).strip("[]")]
            environment[name] = ",".join(filter(None, direct))
    return environment


def server_environment(settings: Settings) -> dict[str, str]:
    """Environment of the server: this process's, without the user's own Prefect settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return inherited | {
        "PREFECT_HOME": str(home(settings)),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": postgres.prefect_url(settings),
        "PREFECT_SERVER_API_HOST": settings.host,
        "PREFECT_SERVER_API_PORT": str(settings.prefect_port),
        "PREFECT_SERVER_UI_API_URL": "/api",  # on whatever name the browser has found it by
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home(settings) / "ui"),  # an installation may be read-only
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # Prefect's default lets the pages of every web site that somebody here looks at talk to the API.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": api_url(settings).removesuffix("/api"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        "DO_NOT_TRACK": "1",
    }


def is_healthy(url: str, *, ours: bool = True) -> bool:
    """Whether the API at `url` answers its health request. Ours is asked directly, an external one as proxies say."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({} if ours else None))
    try:
        with opener.open(f"{url}/health", timeout=HEALTH_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, urllib.error.URLError):
        return False


def processes(settings: Settings) -> list[psutil.Process]:
    """The Prefect servers of this data folder, whoever started them: they work inside its `prefect` folder.

    That tells them from strangers, also when their supervisor was killed before it could note a process id.
    """
    import psutil

    own = str(home(settings).resolve())
    return [
        process
        for process in psutil.process_iter(["cwd", "cmdline", "status"])
        if process.info["cwd"] == own
        and PROGRAM in (process.info["cmdline"] or ())
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def service_of(settings: Settings) -> Service:
    """The one that the settings ask for."""
    return OwnService(settings) if settings.prefect_api_url is None else ExternalService(settings)


class OwnService(Service):
    """Our own server, a child of the supervisor in a session of its own."""

    name, title = NAME, "Prefect"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.address = api_url(settings)
        self.log_path: Path = settings.data_dir / "logs" / "prefect.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """Process id of the server."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def prepare(self) -> None:
        """End the server of a killed supervisor, see that the port is free."""
        self.end()
        ports.require_free(self.title, self.settings.host, self.settings.prefect_port, "CLARA_FLOW_PREFECT_PORT")

    def start(self) -> None:
        """Start it; it answers some seconds later."""
        settings = self.settings
        command = [sys.executable, "-P", "-m", PROGRAM, settings.host, str(settings.prefect_port)]
        environment = server_environment(settings)
        with naming_storage_problems(settings.data_dir):
            home(settings).mkdir(parents=True, exist_ok=True)
            with self.log_path.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    command,
                    env=environment,
                    cwd=home(settings),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.pid is not None

    def problem(self) -> str:
        """Why it does not answer: it ended, with its last words, or it is silent."""
        if self.pid is None:
            with self.log_path.open("rb") as log:
                log.seek(self._log_start)
                lines = log.read().decode(errors="replace").splitlines()
            return "its server ended: " + (
                " | ".join(line.strip() for line in lines[-SHOWN_LOG_LINES:]) or "it said nothing"
            )
        return "" if is_healthy(self.address) else "it does not answer its health request"

    def end(self) -> bool:
        """End its processes, this supervisor's and those of earlier ones: politely, then by force."""
        found = False
        for number in (signal.SIGTERM, signal.SIGKILL):
            remaining = processes(self.settings)
            found = found or bool(remaining)
            for process in remaining:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            deadline = time.monotonic() + STOP_GRACE_S
            while time.monotonic() < deadline and (self.pid is not None or processes(self.settings)):
                time.sleep(POLL_S)
        if remaining := processes(self.settings):
            raise ServiceError(
                self.title,
                f"its server does not stop (process {remaining[0].pid})",
                remedy="End that process by hand.",
                log_path=str(self.log_path),
            )
        return found


class ExternalService(Service):
    """A server that somebody else runs."""

    name, title = NAME, "Prefect"

    def __init__(self, settings: Settings) -> None:
        self.address = api_url(settings)

    def prepare(self) -> None:
        """Raises ServiceError when it does not answer: whoever runs it must start it first."""
        if problem := self.problem():
            raise ServiceError(
                self.title, problem, remedy="Is it started, and is CLARA_FLOW_PREFECT_API_URL right (it ends in /api)?"
            )

    def start(self) -> None:
        """Nothing: its start is not ours."""

    def is_alive(self) -> bool:
        """Always: its start is not ours."""
        return True

    def problem(self) -> str:
        """Why it does not answer."""
        return "" if is_healthy(self.address, ours=False) else f"{self.address} does not answer"
