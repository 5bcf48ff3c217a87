"""Cancel of the Prefect UI reaches us at once, after an outage too."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import httpx
import pytest_asyncio
from prefect_fixture import OwnPrefect
from waiting import eventually

from clara_flow.infra.history.cancel_watch import CancelWatch

HEARD_WITHIN_S = 1.0
POOL = "cancel-tests"


class Heard:
    """The cancelled runs, with the job each names and when they were heard of."""

    def __init__(self) -> None:
        self.runs: dict[UUID, tuple[UUID | None, bool, float]] = {}

    async def __call__(self, flow_run_id: UUID, job_id: UUID | None, *, is_open: bool) -> None:
        self.runs.setdefault(flow_run_id, (job_id, is_open, time.monotonic()))


@contextlib.asynccontextmanager
async def watching(prefect: OwnPrefect, heard: Heard, poll_s: float) -> AsyncIterator[None]:
    task = asyncio.create_task(CancelWatch(prefect.api_url, heard, pool=POOL, poll_s=poll_s).run())
    yield
    task.cancel()
    await asyncio.wait({task})


@pytest_asyncio.fixture
async def heard(prefect: OwnPrefect) -> AsyncIterator[Heard]:
    """What a watch hears by events, and by a look when their stream begins; it does not look again."""
    await asyncio.to_thread(make_pool, prefect)
    heard = Heard()
    async with watching(prefect, heard, poll_s=3600):
        yield heard


def make_pool(prefect: OwnPrefect) -> None:
    with contextlib.suppress(httpx.HTTPStatusError):  # it is there
        prefect.post("/work_pools/", {"name": POOL, "type": "clara-gpu"})


def running(prefect: OwnPrefect, job_id: UUID) -> UUID:
    flow_id = prefect.post("/flows/", {"name": "liver"})["id"]
    facts = {"flow_id": flow_id, "work_pool_name": POOL, "parameters": {"job_id": str(job_id)}}
    request = {**facts, "state": {"type": "RUNNING"}}
    return UUID(prefect.post("/flow_runs/", request)["id"])


def press_cancel(prefect: OwnPrefect, run: UUID) -> float:
    """What the UI's button does. Returns when."""
    prefect.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    return time.monotonic()


async def hear_one(prefect: OwnPrefect, heard: Heard, within_s: float) -> float:
    job_id = uuid4()
    run = await asyncio.to_thread(running, prefect, job_id)
    pressed = await asyncio.to_thread(press_cancel, prefect, run)
    await asyncio.to_thread(eventually, lambda: run in heard.runs, within_s=within_s)
    named, is_open, at = heard.runs[run]
    assert (named, is_open) == (job_id, True)
    return at - pressed


async def test_cancel_is_heard_at_once(prefect: OwnPrefect, heard: Heard) -> None:
    await hear_one(prefect, heard, 20)  # the subscription stands now
    assert await hear_one(prefect, heard, 10) < HEARD_WITHIN_S


async def test_runs_that_are_cancelled_already_are_told_as_such(prefect: OwnPrefect, heard: Heard) -> None:
    await hear_one(prefect, heard, 20)  # a look finds only runs that are being cancelled
    run = await asyncio.to_thread(running, prefect, uuid4())
    body = {"state": {"type": "CANCELLED"}, "force": True}
    await asyncio.to_thread(prefect.post, f"/flow_runs/{run}/set_state", body)
    await asyncio.to_thread(eventually, lambda: run in heard.runs, within_s=20)
    assert heard.runs[run][1] is False


async def test_the_watch_outlives_the_server(prefect: OwnPrefect, heard: Heard) -> None:
    await hear_one(prefect, heard, 20)
    prefect.kill()
    await asyncio.to_thread(prefect.start)
    await hear_one(prefect, heard, 30)


async def test_a_look_from_time_to_time_finds_what_no_event_told(prefect: OwnPrefect) -> None:
    await asyncio.to_thread(make_pool, prefect)
    run = await asyncio.to_thread(running, prefect, uuid4())
    await asyncio.to_thread(press_cancel, prefect, run)
    heard = Heard()
    watch = CancelWatch(prefect.api_url, heard, pool=POOL, poll_s=0.1)
    await watch.server.open()
    task = asyncio.create_task(watch._poll())
    await asyncio.to_thread(eventually, lambda: run in heard.runs, within_s=10)
    task.cancel()
    await asyncio.wait({task})
    await watch.server.close()
