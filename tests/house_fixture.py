"""Everything that creates and runs jobs, on the session's platform."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clara_flow.deployments.trigger import House
from clara_flow.infra.images.catalog import installed
from clara_flow.records.database import connect

if TYPE_CHECKING:
    from clara_flow.services.platform import PlatformHandle


@pytest.fixture
def house(platform: PlatformHandle) -> Iterator[House]:
    """The session's platform as commands use it; its pool runs the jobs."""
    engine = connect(platform.database_url)
    yield House(settings=platform.settings, engine=engine, catalog=installed(platform.settings.catalogs))
    engine.dispose()


@pytest.fixture
def input_folder(tmp_path: Path) -> Path:
    """A folder with one small file."""
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "one.txt").write_text("1\n")
    return folder
