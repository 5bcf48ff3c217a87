"""What the tests of several records need: who runs jobs, and where."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import sqlalchemy as sa

from clara_flow.records import leases, nodes
from clara_flow.records.leases import GrantRow
from clara_flow.records.models import Job
from clara_flow.records.owner import Owner

PLAN = {"name": "brain", "operators": [{"name": "reader"}, {"name": "segment"}]}
OWNER = Owner.of_this_process()
NODE = "node-1"
TTL_S = 30.0


def dead_owner() -> Owner:
    """A process of this host that has ended."""
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return replace(OWNER, pid=int(ended.stdout), token=uuid.uuid4())


def owner_elsewhere() -> Owner:
    """A process of another host."""
    return replace(OWNER, host="another-host", token=uuid.uuid4())


def announce(engine: sa.Engine, name: str = NODE, *, ttl_s: float = TTL_S, **inventory: Any) -> uuid.UUID:
    """A node of the pool; returns its session."""
    session = uuid.uuid4()
    nodes.announce(engine, name, session, OWNER, inventory, jobs=4, ttl_s=ttl_s)
    return session


def silence(engine: sa.Engine, node: str = NODE) -> None:
    """Its worker has not been heard of for longer than it may, while PostgreSQL was up all the time."""
    late = "expires = now() - interval '1 ms'"
    with engine.begin() as connection:
        for change in (
            f"nodes SET heartbeat = now() - interval '2 ms', {late} WHERE name = :node",
            f"leases SET {late} WHERE state = 'GRANTED' AND node = :node",
        ):
            connection.execute(sa.text(f"UPDATE {change}"), {"node": node})


def admission(job: Job, *, node: str = NODE, first: str | None = None) -> list[GrantRow]:
    """What the dispatcher grants a queued job: a runner slot, and its first operator's resources."""
    rows = [GrantRow(id=job.id, job_id=job.id, amounts={"jobs": 1}, node=node, limit_s=float("inf"))]
    if first is not None:
        rows.append(
            GrantRow(
                id=uuid.uuid4(), job_id=job.id, operator=first, amounts={"gpu": 1}, node=node, devices=["GPU-1"],
                limit_s=60, expected_s=2.5, priority=3,
            )
        )  # fmt: skip
    return rows


def admit(engine: sa.Engine, job: Job, *, node: str = NODE, first: str | None = None) -> set[uuid.UUID]:
    """Grant it; returns the ids that were given."""
    return leases.grant(engine, admission(job, node=node, first=first), TTL_S)


@contextmanager
def listening(url: str, *channels: str) -> Iterator[psycopg.Connection]:
    """A connection that hears the channels."""
    with psycopg.connect(url, autocommit=True) as listener:
        for channel in channels:
            listener.execute(f"LISTEN {channel}")
        yield listener


def heard(listener: psycopg.Connection, count: int) -> list[tuple[str, dict[str, Any]]]:
    """The next `count` notices."""
    return [(notice.channel, json.loads(notice.payload)) for notice in listener.notifies(timeout=10, stop_after=count)][
        :count
    ]
