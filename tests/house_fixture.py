"""Everything that creates and runs jobs, on the session's platform, with the scripted operator as its catalog."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny.pipelines import tiny_catalog

from clara_flow.deployments.trigger import House
from clara_flow.records.database import connect
from clara_flow.settings import load_settings

if TYPE_CHECKING:
    from clara_flow.services.platform import PlatformHandle


@pytest.fixture
def house(platform: PlatformHandle, tmp_path: Path) -> Iterator[House]:
    """A house with a data folder of its own on the shared platform."""
    engine = connect(platform.database_url)
    settings = load_settings(data_dir=tmp_path / "data", stop_grace_s=2)
    yield House(settings=settings, engine=engine, prefect_api_url=platform.prefect_api_url, catalog=tiny_catalog())
    engine.dispose()


@pytest.fixture
def input_folder(tmp_path: Path) -> Path:
    """A folder with one small file."""
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "one.txt").write_text("1\n")
    return folder
