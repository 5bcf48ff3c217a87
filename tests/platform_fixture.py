"""One real platform (PostgreSQL and Prefect server) for the whole test session, on free loopback ports."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from clara_flow.services.platform import PlatformHandle, ensure_platform
from clara_flow.settings import Settings, load_settings


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def platform_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of the session's platform."""
    return load_settings(data_dir=tmp_path_factory.mktemp("platform"), prefect_port=free_port())


@pytest.fixture(scope="session")
def platform(platform_settings: Settings) -> Iterator[PlatformHandle]:
    """The session's platform, started when first asked for."""
    handle = ensure_platform(platform_settings)
    yield handle
    handle.stop()
