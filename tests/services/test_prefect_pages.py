"""What browsers get from our Prefect server: pages that work under any name of this host and ask nobody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from email.message import Message
from pathlib import Path

import pytest

from clara_flow.services import prefect_server
from clara_flow.services.platform import PlatformHandle
from clara_flow.settings import load_settings


def get(url: str, **headers: str) -> tuple[Message, bytes]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.addheaders = list(headers.items())
    with opener.open(url, timeout=10) as answer:
        return answer.headers, answer.read()


def test_a_page_may_ask_nobody_but_this_server(platform: PlatformHandle) -> None:
    headers, page = get(f"{platform.prefect_ui_url}/v2/")
    assert b"<title>Prefect" in page
    policy = dict(directive.split(" ", 1) for directive in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert not [directive for directive in policy.values() if "http" in directive or "*" in directive]


def test_the_pages_find_the_api_on_the_host_that_they_came_from(platform: PlatformHandle) -> None:
    _, settings = get(f"{platform.prefect_ui_url}/ui-settings")
    assert json.loads(settings)["api_url"] == "/api"


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null"])
def test_the_pages_of_others_cannot_read_the_api(platform: PlatformHandle, origin: str) -> None:
    headers, _ = get(f"{platform.prefect_api_url}/admin/version", Origin=origin)
    assert headers["access-control-allow-origin"] is None
    ours, _ = get(f"{platform.prefect_api_url}/admin/version", Origin=platform.prefect_ui_url)
    assert ours["access-control-allow-origin"] == platform.prefect_ui_url


def test_the_pages_lie_in_the_data_folder(platform: PlatformHandle) -> None:
    assert (prefect_server.home(platform.settings) / "ui" / "v2" / "index.html").is_file()


def test_a_users_own_profile_is_neither_read_nor_changed(tmp_path: Path) -> None:
    profiles = tmp_path / "theirs.toml"
    text = 'active = "theirs"\n[profiles.theirs]\nPREFECT_LOGGING_LEVEL = "ERROR"\n'
    profiles.write_text(text)
    ours = prefect_server.client_environment(load_settings(data_dir=tmp_path / "data"))
    script = "from prefect.settings import get_current_settings as s; print(s().logging.level, s().home)"
    shown = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PREFECT_PROFILES_PATH": str(profiles), **ours},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == ["INFO", str(tmp_path / "data" / "prefect")]
    assert profiles.read_text() == text
