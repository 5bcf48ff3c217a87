"""Fixtures of DICOMweb's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from dicomweb_client.api import DICOMwebClient
from postgres_fixture import database_url  # noqa: F401
from services.dicom.web.studies import Archive, application
from services.gateway.serving import client, house_on, served

from clara_flow.deployments.trigger import House


@pytest.fixture
def house(database_url: str, tmp_path: Path) -> Iterator[House]:  # noqa: F811
    """A platform without processes."""
    with house_on(database_url, tmp_path) as made:
        yield made


@pytest.fixture
def archive(house: House) -> Archive:
    """What was received, with two AE titles."""
    archive = Archive(house)
    archive.configure()
    return archive


@pytest.fixture
def url(house: House, archive: Archive) -> Iterator[str]:
    """The address of a gateway with DICOMweb alone."""
    del archive
    with served(application(house), house.settings.gateway_port) as address:
        yield address


@pytest.fixture
def web(url: str) -> Iterator[httpx.Client]:
    """A plain client of it."""
    with client(url) as asking:
        yield asking


@pytest.fixture
def peer(url: str, monkeypatch: pytest.MonkeyPatch) -> DICOMwebClient:
    """dicomweb-client, somebody else's implementation, on everything."""
    monkeypatch.setenv("NO_PROXY", "*")
    return DICOMwebClient(f"{url}/dicom-web")
