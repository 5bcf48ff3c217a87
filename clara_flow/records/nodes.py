"""The machines of the pool: announced and kept alive by their workers, drained by people. Times are the database's."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import col

from clara_flow.errors import InputError
from clara_flow.records.database import statements
from clara_flow.records.models import Node, is_silent
from clara_flow.records.owner import Owner

CHANNEL = "clara_flow_nodes"  # {"node": name}: announced, gone or drained; {"quota": tenant}: see `quotas`


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One row; see `models.Node`. `is_heard_of`: its worker was heard of within its time."""

    name: str
    session: uuid.UUID
    owner_pid: int
    owner_process_start: str
    inventory: dict[str, Any]
    jobs: int
    heartbeat: datetime
    expires: datetime
    drained: bool
    drained_devices: list[str]
    is_heard_of: bool


ANNOUNCE = sa.text("""
WITH node AS (
    INSERT INTO nodes (name, session, owner_pid, owner_process_start, inventory, jobs, heartbeat, expires)
    VALUES (:name, :session, :owner_pid, :owner_process_start, :inventory, :jobs, now(), now() + :ttl)
    ON CONFLICT (name) DO UPDATE SET session = excluded.session, owner_pid = excluded.owner_pid,
        owner_process_start = excluded.owner_process_start, inventory = excluded.inventory, jobs = excluded.jobs,
        heartbeat = excluded.heartbeat, expires = excluded.expires
    RETURNING name
)
SELECT pg_notify(:channel, json_build_object('node', name)::text) FROM node
""").bindparams(sa.bindparam("inventory", type_=JSONB), sa.bindparam("ttl", type_=sa.Interval), channel=CHANNEL)

HEARTBEAT = sa.text(
    "UPDATE nodes SET heartbeat = now(), expires = now() + :ttl WHERE name = :name AND session = :session"
).bindparams(sa.bindparam("ttl", type_=sa.Interval))

LEAVE = sa.text("""
WITH node AS (
    UPDATE nodes SET heartbeat = now(), expires = now() WHERE name = :name AND session = :session RETURNING name
)
SELECT pg_notify(:channel, json_build_object('node', name)::text) FROM node
""").bindparams(channel=CHANNEL)

# Everything in an inventory that has a `uuid` is a device.
FIND_DEVICES = sa.text("""
SELECT DISTINCT name, device #>> '{}' AS device
FROM nodes, jsonb_path_query(inventory, '$.**.uuid') AS device
WHERE starts_with(lower(device #>> '{}'), lower(:prefix))
UNION SELECT name, device FROM nodes, jsonb_array_elements_text(drained_devices) AS device
WHERE starts_with(lower(device), lower(:prefix))
ORDER BY name, device
""")

DRAIN = sa.text("""
WITH node AS (
    UPDATE nodes SET
        drained = CASE WHEN :device = '' THEN :drained ELSE drained END,
        drained_devices = CASE WHEN :device = '' THEN drained_devices
            WHEN :drained THEN (drained_devices - :device) || to_jsonb(:device) ELSE drained_devices - :device END
    WHERE name = :name RETURNING name
)
SELECT pg_notify(:channel, json_build_object('node', name)::text) FROM node
""").bindparams(sa.bindparam("device", type_=sa.Text), sa.bindparam("drained", type_=sa.Boolean), channel=CHANNEL)


def announce(
    engine: sa.Engine,
    name: str,
    session: uuid.UUID,
    owner: Owner,
    inventory: Mapping[str, Any],
    jobs: int,
    ttl_s: float,
) -> None:
    """A worker says what its machine has, or has now. What was drained stays so. The newest session of a name counts.

    inventory   JSON; devices are the objects in it that have a `uuid`.
    jobs        how many jobs may run there at once.
    ttl_s       the machine counts as gone after that, unless `heartbeat` comes.
    """
    facts = {
        "name": name, "session": session, "owner_pid": owner.pid, "owner_process_start": owner.process_start,
        "inventory": dict(inventory), "jobs": jobs, "ttl": timedelta(seconds=ttl_s),
    }  # fmt: skip
    with statements(engine) as connection:
        connection.execute(ANNOUNCE, facts)


def heartbeat(engine: sa.Engine, name: str, session: uuid.UUID, ttl_s: float) -> bool:
    """The worker is there. Returns False when another one has taken its name, or nobody announced it."""
    with statements(engine) as connection:
        facts = {"name": name, "session": session, "ttl": timedelta(seconds=ttl_s)}
        return connection.execute(HEARTBEAT, facts).rowcount == 1


def leave(engine: sa.Engine, name: str, session: uuid.UUID) -> None:
    """The worker goes: its machine is silent from now on. Nothing happens when another one has taken its name."""
    with statements(engine) as connection:
        connection.execute(LEAVE, {"name": name, "session": session})


def list_nodes(engine: sa.Engine) -> list[NodeRow]:
    """All machines that were ever announced, by name."""
    stored = [col(getattr(Node, name)) for name in NodeRow.__slots__ if name != "is_heard_of"]
    with statements(engine) as connection:
        return [NodeRow(*row) for row in connection.execute(sa.select(*stored, ~is_silent()).order_by(col(Node.name)))]


def set_drained(engine: sa.Engine, reference: str, drained: bool) -> tuple[str, str]:
    """Let a machine or a GPU have nothing new, or have it again. What runs there goes on.

    reference   a machine's name, or the beginning of a GPU's UUID (with or without its `GPU-` or `MIG-`).

    Returns the machine's name and the GPU's UUID ("" for the whole machine). Raises InputError when there is no such
    one, or when several GPUs begin so.
    """
    with statements(engine) as connection:
        name, device = _find(connection, reference)
        connection.execute(DRAIN, {"name": name, "device": device, "drained": drained})
    return name, device


def _find(connection: sa.Connection, reference: str) -> tuple[str, str]:
    if connection.execute(sa.select(col(Node.name)).where(col(Node.name) == reference)).scalar_one_or_none():
        return reference, ""
    found: set[tuple[str, str]] = set()
    if reference:
        for prefix in (reference, f"GPU-{reference}", f"MIG-{reference}"):
            found |= {(row.name, row.device) for row in connection.execute(FIND_DEVICES, {"prefix": prefix})}
    if not found:
        raise InputError(f"there is no machine and no GPU {reference!r}: see `clara-flow gpu status`")
    if len(found) > 1:
        shown = ", ".join(f"{device} ({name})" for name, device in sorted(found))
        raise InputError(f"several GPUs begin with {reference!r}: {shown}. Give more of the UUID.")
    return found.pop()
