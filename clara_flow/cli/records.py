"""The records' database for commands that need nothing else of the platform."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import sqlalchemy as sa

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Data folder. Default: CLARA_FLOW_DATA_DIR.", show_default=False)
]


@contextmanager
def records(data_dir: Path | None) -> Iterator[sa.Engine]:
    """An engine on the records of that data folder, closed afterwards. It connects when it is first used."""
    from clara_flow.infra.postgres import records_url
    from clara_flow.records.database import connect
    from clara_flow.settings import load_settings

    engine = connect(records_url(load_settings(data_dir=data_dir)), pool_size=1)
    try:
        yield engine
    finally:
        engine.dispose()
