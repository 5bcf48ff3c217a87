"""The worker's process beside its worker: pipelines that Prefect shall show."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from clara_flow.deployments import pool_worker
from clara_flow.errors import ServiceError
from clara_flow.settings import load_settings


async def test_a_database_that_is_away_at_the_start_ends_no_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    story: list[str] = []
    is_done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def record(*facts: Any) -> None:
        story.append("record")
        if story.count("record") < 3:
            raise ServiceError("PostgreSQL", "it is away", remedy="Wait.")

    def register(*facts: Any) -> None:
        story.append("register")
        if story.count("register") == 2:
            loop.call_soon_threadsafe(is_done.set)

    monkeypatch.setattr(pool_worker, "record_bundled", record)
    monkeypatch.setattr(pool_worker, "register_new", register)
    monkeypatch.setattr(pool_worker, "register_blocks", lambda api_url: story.append("blocks"))
    settings = load_settings(database_url="postgresql://nobody@127.0.0.1:1/nothing", poll_s=0.01)
    working = asyncio.create_task(pool_worker.keep_registered(settings))
    try:
        await asyncio.wait_for(is_done.wait(), 30)
    finally:
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
    assert story == ["record", "record", "record", "register", "blocks", "register"]
