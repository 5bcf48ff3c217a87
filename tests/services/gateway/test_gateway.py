"""The gateway's process and its door."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from services.gateway.serving import client, house_on, served
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.services.gateway import create_app
from clara_flow.services.gateway_service import GatewayService

TOKEN = "a long secret"  # noqa: S105


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/health/status", None, 401),
        ("/health/status", "Bearer wrong", 401),
        ("/health/status", f"Basic {TOKEN}", 401),
        ("/health/status", f"Bearer {TOKEN}", 200),
        ("/health/status", f"bearer {TOKEN}", 200),
        ("/metrics", None, 401),
        ("/nothing", None, 401),
        ("/health/live", None, 503),
        ("/health/ready", None, 503),
    ],
)
def test_the_token_opens(database_url: str, tmp_path: Path, path: str, header: str | None, status: int) -> None:
    with house_on(database_url, tmp_path, gateway_token=SecretStr(TOKEN)) as house:
        app = create_app(house)
        with served(app, house.settings.gateway_port) as url, client(url) as asking:
            answer = asking.get(path, headers={"authorization": header} if header else {})
    assert answer.status_code == status
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("trusted", "path", "status"),
    [
        ((), "/api/tasks/ClaraSCU/pending", 401),
        (("10.1.0.0/16",), "/api/tasks/ClaraSCU/pending", 401),
        (("10.1.0.0/16", "127.0.0.1"), "/api/tasks/ClaraSCU/pending", 200),
        (("127.0.0.0/8",), "/api/tasks", 200),
        (("127.0.0.0/8",), "/api/tasks-of-others", 401),
        (("127.0.0.0/8",), "/api/config/claraaetitle", 401),
    ],
)
def test_agents_without_a_token_are_let_in_from_trusted_networks_alone(
    database_url: str, tmp_path: Path, trusted: tuple[str, ...], path: str, status: int
) -> None:
    """Those of Clara bring none; only the results service is theirs."""
    more = {"gateway_token": SecretStr(TOKEN), "results_trusted_networks": trusted}
    with (
        house_on(database_url, tmp_path, **more) as house,
        served(create_app(house), house.settings.gateway_port) as url,
        client(url) as asking,
    ):
        assert asking.get(path).status_code == status


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_no_page_loads_scripts_from_elsewhere(gateway: httpx.Client, path: str) -> None:
    assert gateway.get(path).status_code == 404


def test_the_process_answers_logs_no_paths_and_ends_politely(house: House, database_url: str) -> None:
    settings = house.settings.model_copy(update={"database_url": SecretStr(database_url)})
    (settings.data_dir / "logs").mkdir()
    service = GatewayService(settings)
    service.prepare()
    service.start()
    try:
        eventually(lambda: not service.problem(), within_s=60)
        with client(service.address) as asking:
            assert asking.get("/dicom-web/studies/1.2.3.4?PatientName=Doe").status_code in {404, 400}
    finally:
        assert service.end()
    assert not service.is_alive()
    assert "1.2.3.4" not in service.log_path.read_text()
    assert "Doe" not in service.log_path.read_text()
