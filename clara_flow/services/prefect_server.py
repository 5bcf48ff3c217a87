"""The Prefect server as a service: a process of ours on our database, in our data folder, or an external one."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

from clara_flow.errors import ServiceError
from clara_flow.services import ports, postgres
from clara_flow.services.own_process import OwnProcess
from clara_flow.services.service import Service
from clara_flow.settings import Settings

NAME = "prefect"
HEALTH_TIMEOUT_S = 2.0
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
        # One by one, the events of a job's tasks cost more of the server's time than all the rest.
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "2",
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


def service_of(settings: Settings) -> Service:
    """The one that the settings ask for."""
    return OwnService(settings) if settings.prefect_api_url is None else ExternalService(settings)


class OwnService(OwnProcess):
    """Our own server."""

    name, title, program = NAME, "Prefect", PROGRAM

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, folder=home(settings), log_name="prefect.log")
        self.address = api_url(settings)

    def prepare(self) -> None:
        """End the server of a killed supervisor, see that the port is free."""
        super().prepare()
        ports.require_free(self.title, self.settings.host, self.settings.prefect_port, "CLARA_FLOW_PREFECT_PORT")

    def arguments(self) -> list[str]:
        """Where it listens."""
        return [self.settings.host, str(self.settings.prefect_port)]

    def environment(self) -> dict[str, str]:
        """See server_environment."""
        return server_environment(self.settings)

    def silence(self) -> str:
        """Asks its health request."""
        return "" if is_healthy(self.address) else "it does not answer its health request"


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
