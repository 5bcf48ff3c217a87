"""Secrets of destinations: of the environment, or of a block of a real Prefect server, which stores it encrypted."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from platform_fixture import free_port
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_fixture import OwnPrefect, prefect  # noqa: F401
from pydantic import SecretStr, ValidationError

from clara_flow.blocks.dicom_node import DicomNode, find_secret
from clara_flow.errors import ServiceError, SettingsError
from clara_flow.services.dicom.credentials import authorization, secret_of
from clara_flow.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def no_events_worker_of_ours_is_left() -> Iterator[None]:
    """Blocks tell of their use by a worker that Prefect keeps for the process, with the server it began with."""
    yield
    EventsWorker.drain_all(timeout=10, at_exit=False)


@pytest.fixture
def settings(prefect: OwnPrefect) -> Settings:  # noqa: F811
    return load_settings(prefect_api_url=prefect.api_url)


def test_a_block_keeps_a_login_or_a_token(settings: Settings, prefect: OwnPrefect) -> None:  # noqa: F811
    with temporary_settings({PREFECT_API_URL: prefect.api_url}):
        DicomNode(host="pacs", username="user", password=SecretStr("planted")).save("pacs-login")
        DicomNode(token=SecretStr("planted-token")).save("cloud")
        DicomNode(ae_title="PACS").save("nothing")
    assert secret_of(settings, "pacs-login") == "user:planted"
    assert secret_of(settings, "cloud") == "planted-token"
    shown = prefect.post("/block_documents/filter", {})
    assert "planted" not in str(shown)
    with psycopg.connect(prefect._database) as connection:
        rows = connection.execute("SELECT data::text FROM block_document").fetchall()
    assert rows
    assert "planted" not in str(rows)
    for name in ("nothing", "nobody"):
        with pytest.raises(SettingsError, match=f"the credentials '{name}' are neither"):
            secret_of(settings, name)


def test_the_environment_goes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(prefect_api_url=f"http://127.0.0.1:{free_port()}/api")
    monkeypatch.setenv("CLOUD_LOGIN", " user:word \n")
    assert secret_of(settings, "CLOUD_LOGIN") == "user:word"
    assert secret_of(settings, "") == ""


def test_a_server_that_is_away_is_said() -> None:
    with pytest.raises(ServiceError, match="Prefect: it did not give the block 'x'"):
        find_secret("x", f"http://127.0.0.1:{free_port()}/api")


@pytest.mark.parametrize(
    ("secret", "header"),
    [("", {}), ("token", {"Authorization": "Bearer token"}), ("user:word", {"Authorization": "Basic dXNlcjp3b3Jk"})],
)
def test_secrets_become_headers(secret: str, header: dict[str, str]) -> None:
    assert authorization(secret) == header


@pytest.mark.parametrize(
    "facts",
    [
        {"token": "x", "username": "y"},
        {"token": "x", "password": "y"},
        {"password": "y"},
        {"ae_title": "x" * 17},
        {"port": 0},
    ],
)
def test_a_block_that_says_two_things_is_none(facts: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DicomNode(**facts)  # type: ignore[arg-type]
