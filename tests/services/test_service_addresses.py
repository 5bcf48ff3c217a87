"""Ports, hosts and database addresses: whose they are, and that no password stays in one that is shown."""

from __future__ import annotations

import os
import socket
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from platform_fixture import free_port

from clara_flow.errors import ServiceError, SettingsError
from clara_flow.services import ports, postgres, prefect_server
from clara_flow.settings import load_settings


def test_a_free_port() -> None:
    ports.require_free("Prefect", "127.0.0.1", free_port(), "CLARA_FLOW_PREFECT_PORT")


@pytest.mark.parametrize("theirs", ["127.0.0.1", "0.0.0.0"])  # noqa: S104  it listens for milliseconds
def test_a_taken_port_names_its_holder(theirs: str) -> None:
    with socket.create_server((theirs, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ServiceError, match=rf"port {port} on 127.0.0.1 is in use by .+ \(pid {os.getpid()}\)"):
            ports.require_free("Prefect", "127.0.0.1", port, "CLARA_FLOW_PREFECT_PORT")


def test_a_port_that_was_just_left_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = server.accept()
            accepted.close()  # leaves the connection in TIME_WAIT on our side
            assert client.recv(1) == b""
    assert ports.why_not_free("127.0.0.1", port) == ""


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
def test_a_host_that_is_not_ours_is_a_wrong_setting(host: str) -> None:
    with pytest.raises(SettingsError, match=f"CLARA_FLOW_HOST.*{host}"):
        ports.why_not_free(host, 4200)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:4200/api"),
        ("0.0.0.0", "http://127.0.0.1:4200/api"),  # noqa: S104
        ("::", "http://[::1]:4200/api"),
        ("node.hospital", "http://node.hospital:4200/api"),
    ],
)
def test_clients_find_a_server_on_every_kind_of_host(host: str, url: str) -> None:
    assert prefect_server.api_url(load_settings(host=host, prefect_port=4200)) == url


def test_our_server_is_reached_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "intranet")
    monkeypatch.delenv("NO_PROXY", raising=False)
    ours = prefect_server.client_environment(load_settings())
    assert (ours["no_proxy"], ours["NO_PROXY"]) == ("intranet,127.0.0.1", "127.0.0.1")
    theirs = prefect_server.client_environment(load_settings(prefect_api_url="http://prefect.hospital/api"))
    assert "no_proxy" not in theirs


def test_the_users_own_prefect_settings_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "theirs")
    environment = prefect_server.server_environment(load_settings())
    assert "PREFECT_API_KEY" not in environment
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


@given(password=st.text(min_size=8, alphabet=st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"))))
def test_no_password_stays_in_a_public_address(password: str) -> None:
    secret = "q7" + password  # as no part of the rest of the address
    for url in (
        f"postgresql://me:{quote(secret, safe='')}@host:5432/records?sslmode=require",
        f"postgresql://me@host:5432/records?password={quote(secret, safe='')}&sslmode=require",
    ):
        assert postgres.public_address(url) == "postgresql://me@host:5432/records?sslmode=require"


def test_an_address_without_a_password_stays_as_it_is() -> None:
    url = "postgresql://clara_flow@/clara_flow?host=/data/postgres/socket&port=5432"
    assert postgres.public_address(url) == url


def test_prefects_database_is_beside_ours_unless_told() -> None:
    beside = sa.make_url(postgres.prefect_url(load_settings(database_url="postgresql://me:p%40ss@host/records")))
    assert (beside.drivername, beside.database, beside.password) == ("postgresql+asyncpg", "prefect", "p@ss")
    told = load_settings(database_url="postgresql://host/a", prefect_database_url="postgresql://other/b")
    assert postgres.prefect_url(told) == "postgresql+asyncpg://other/b"


def test_tls_is_asked_for_in_the_drivers_own_word() -> None:
    url = postgres.prefect_url(load_settings(database_url="postgresql://me@host/records?sslmode=require"))
    assert url == "postgresql+asyncpg://me@host/prefect?ssl=require"
