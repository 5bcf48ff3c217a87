"""The Prefect server as a process of ours: on our database, in our data folder, without a call to the outside."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from clara_flow.settings import Settings

HEALTH_TIMEOUT_S = 2.0


def api_url(settings: Settings) -> str:
    """Address of the API, of ours or of the external one."""
    return settings.prefect_api_url or f"http://{client_host(settings)}:{settings.prefect_port}/api"


def client_host(settings: Settings) -> str:
    """The host that clients on this machine use for a server that listens on `settings.host`."""
    return "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104  compared, not bound


def client_environment(settings: Settings) -> dict[str, str]:
    """Environment of a process that runs flows: our server, and a Prefect home apart from the user's own."""
    return {
        "PREFECT_API_URL": api_url(settings),
        "PREFECT_HOME": str(settings.data_dir / "prefect"),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the task logs are in the UI and in the log files
        "DO_NOT_TRACK": "1",
    }


def server_environment(settings: Settings, database_url: str) -> dict[str, str]:
    """Environment of the server. `database_url` is for SQLAlchemy with asyncpg."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return inherited | {
        "PREFECT_HOME": str(settings.data_dir / "prefect"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database_url,
        "PREFECT_SERVER_API_HOST": settings.host,
        "PREFECT_SERVER_API_PORT": str(settings.prefect_port),
        "PREFECT_SERVER_UI_API_URL": api_url(settings),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        "DO_NOT_TRACK": "1",
    }


def start(settings: Settings, database_url: str, log_path: Path) -> subprocess.Popen[bytes]:
    """Start the server in a session of its own; its output is appended to `log_path`."""
    (settings.data_dir / "prefect").mkdir(parents=True, exist_ok=True)
    # Prefect's own `prefect server start` does the same after a second of command-line imports.
    command = [sys.executable, "-m", "uvicorn", "prefect.server.api.server:create_app", "--factory"]
    command += ["--host", settings.host, "--port", str(settings.prefect_port)]
    command += ["--timeout-keep-alive", "5", "--log-level", "warning"]
    with log_path.open("ab") as log:
        return subprocess.Popen(
            command,
            env=server_environment(settings, database_url),
            cwd=settings.data_dir,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def is_healthy(url: str) -> bool:
    """Whether the API at `url` answers its health request."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=HEALTH_TIMEOUT_S) as answer:  # noqa: S310  our own URL
            return bool(answer.status == 200)
    except (OSError, ValueError, urllib.error.URLError):
        return False
