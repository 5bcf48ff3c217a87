"""Models are made once, whoever asks, and a failure says what the maker said."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from clara_flow.errors import LauncherUnavailable
from clara_flow.tasks.ensure_models import ensure_model, model_digest

MAKER = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[-1])
folder.mkdir(parents=True)
(folder.parent / "calls").open("a").write("x")
print(json.dumps({"progress": 0.5, "message": "half"}), flush=True)
(folder / "model.json").write_text("{}")
"""


async def test_two_jobs_at_once_make_it_once_and_both_get_it(tmp_path: Path) -> None:
    told: list[tuple[str, float, str]] = []
    both = [ensure_model("net", ("-c", MAKER), tmp_path, lambda *progress: told.append(progress)) for _ in range(2)]
    folders = await asyncio.gather(*both)
    assert folders == [tmp_path / "net"] * 2
    assert (tmp_path / "calls").read_text() == "x"
    assert told == [("net", 0.5, "half")]
    assert len(model_digest(tmp_path / "net")) == 64


async def test_a_ready_model_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "model.json").write_text("{}")
    assert await ensure_model("net", ("-c", "raise SystemExit(9)"), tmp_path, print) == tmp_path / "net"


async def test_a_failure_carries_its_last_lines(tmp_path: Path) -> None:
    maker = "print('no route to the package index'); raise SystemExit(3)"
    with pytest.raises(LauncherUnavailable, match=r"(?s)exit status 3.*no route to the package index"):
        await ensure_model("net", ("-c", maker), tmp_path, print)


async def test_a_maker_that_makes_nothing_has_failed(tmp_path: Path) -> None:
    with pytest.raises(LauncherUnavailable, match="could not be made"):
        await ensure_model("net", ("-c", "pass"), tmp_path, print)


async def test_a_cancelled_wait_ends_the_maker(tmp_path: Path) -> None:
    started = asyncio.Event()
    maker = """import json, threading
print(json.dumps({"progress": 0, "message": "on"}), flush=True)
threading.Event().wait()"""
    making = asyncio.create_task(ensure_model("net", ("-c", maker), tmp_path, lambda *_: started.set()))
    await asyncio.wait_for(started.wait(), 20)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert not (tmp_path / "net").exists()
