"""Real platforms (PostgreSQL and Prefect server) for tests, on free loopback ports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import docker_engine as engines
import psutil
import pytest
from tiny.pipelines import TINY

from clara_flow.services.platform import PlatformHandle, ensure_platform
from clara_flow.settings import Settings, load_settings

CLARA_FLOW = Path(sys.executable).with_name("clara-flow")


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_below(folder: Path) -> list[psutil.Process]:
    """The living processes that work in a folder: those of the platform whose data folder it is."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
    return found


def command_environment(settings: Settings, **more: str) -> dict[str, str]:
    """The environment of a user whose settings these are."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CLARA_FLOW_")}
    mine = {
        "CLARA_FLOW_DATA_DIR": str(settings.data_dir),
        "CLARA_FLOW_PREFECT_PORT": str(settings.prefect_port),
        "CLARA_FLOW_DICOM_PORT": str(settings.dicom_port),
        "CLARA_FLOW_GATEWAY_PORT": str(settings.gateway_port),
    }
    return {**inherited, **mine, **more}


def clara_flow(settings: Settings, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the real command to its end; `more` are environment variables."""
    return subprocess.run(
        [CLARA_FLOW, *arguments],
        env=command_environment(settings, **more),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="session")
def platform_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of the session's platform, whose pool also knows the scripted operator."""
    return load_settings(
        data_dir=tmp_path_factory.mktemp("platform"),
        prefect_port=free_port(),
        catalogs=(TINY,),
        docker_base_url=engines.expected_url(),
        stop_grace_s=2,
        node_jobs=4,
        warm_runners=1,
    )


@pytest.fixture(scope="session")
def platform(platform_settings: Settings) -> Iterator[PlatformHandle]:
    """The session's platform, started when first asked for."""
    handle = ensure_platform(platform_settings)
    yield handle
    handle.stop()
