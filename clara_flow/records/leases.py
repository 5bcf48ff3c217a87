"""Leases: who asks for resources, and who holds them where. The pool's hot path: one statement for each call.

A row is asked for by a job's runner (WAITING), granted by the leading dispatcher (GRANTED), renewed by the worker of
its node, and deleted when its operator or job ends. A queued job has no row: it gets its lease, and that of its first
operator, in the instant in which it is admitted. All times are the database's.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol, Self

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlmodel import col

from clara_flow.errors import StaleOwner
from clara_flow.records.database import statements, transaction
from clara_flow.records.models import Lease, LeaseState
from clara_flow.records.owner import Owner
from clara_flow.records.transitions import LEASES_CHANNEL as CHANNEL
from clara_flow.records.transitions import SHOWN_CHARACTERS, announce, check_owner, locked, storable

__all__ = [
    "CHANNEL",
    "GRANTS",
    "Admitted",
    "GrantRow",
    "LeaseRow",
    "LeaseState",
    "admitted",
    "ask",
    "grant",
    "load",
    "mark_yielding",
    "release",
    "renew",
    "tell_reasons",
]

# {"lease", "job", "operator", "part", "owner", "node", "devices"}: granted; the same three names with "reason": waits;
# {"yield": job, "owner"}: its runner shall go back to the queue with it. Owners are the hex of the runner's fence.
GRANTS = "clara_flow_grants"


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """One row; see `models.Lease`."""

    id: uuid.UUID
    job_id: uuid.UUID
    operator: str
    part: str
    tenant: str
    priority: int
    amounts: dict[str, int]
    state: LeaseState
    node: str | None
    devices: list[str]
    owner: uuid.UUID | None
    asked: datetime
    granted: datetime | None
    expires: datetime | None
    limit_s: float
    expected_s: float | None
    preemptible: bool
    early: bool
    yielding: bool
    reason: str


# Statements that are said often are made once: to make one costs more than to run it.
COLUMNS = tuple(col(getattr(Lease, name)) for name in LeaseRow.__slots__)

ALL = sa.select(*COLUMNS).order_by(col(Lease.asked), col(Lease.id))
OF_JOBS = ALL.where(col(Lease.job_id) == sa.any_(sa.bindparam("ids", type_=ARRAY(sa.Uuid))))
ADMITTED = (
    sa.select(col(Lease.job_id), sa.type_coerce(Lease.granted, sa.DateTime(timezone=True)), col(Lease.limit_s))
    .where(col(Lease.node) == sa.bindparam("node"), col(Lease.operator) == "", col(Lease.owner).is_(None))
    .order_by(col(Lease.granted), col(Lease.id))
)


class _Amounts(Protocol):
    def as_json(self) -> dict[str, int]: ...


class _Granted(Protocol):
    """A lease of the ledger (`infra.ledger.model.Lease`), which stands above this room."""

    @property
    def id(self) -> uuid.UUID: ...
    @property
    def job_id(self) -> uuid.UUID: ...
    @property
    def operator(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def amounts(self) -> _Amounts: ...
    @property
    def node(self) -> str: ...
    @property
    def devices(self) -> Sequence[str]: ...
    @property
    def limit_s(self) -> float: ...
    @property
    def expected_s(self) -> float | None: ...
    @property
    def preemptible(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRow:
    """What is granted to whom. For a lease that was asked for, only `id`, `job_id`, `node` and `devices` count."""

    id: uuid.UUID
    job_id: uuid.UUID
    operator: str = ""
    part: str = ""
    tenant: str = "default"
    priority: int = 2
    amounts: Mapping[str, int]
    node: str
    devices: Sequence[str] = ()
    limit_s: float
    expected_s: float | None = None
    preemptible: bool = False

    @classmethod
    def of(cls, lease: _Granted) -> Self:
        """A lease of the ledger as a row."""
        return cls(
            id=lease.id,
            job_id=lease.job_id,
            operator=lease.operator,
            tenant=lease.tenant,
            priority=int(lease.priority),
            amounts=lease.amounts.as_json(),
            node=lease.node,
            devices=lease.devices,
            limit_s=lease.limit_s,
            expected_s=lease.expected_s,
            preemptible=lease.preemptible,
        )

    def as_json(self) -> dict[str, Any]:
        """For `GRANT`; limits as text, since JSON has no infinity."""
        limits = {"limit_s": str(self.limit_s), "expected_s": None if self.expected_s is None else str(self.expected_s)}
        ids = {"id": str(self.id), "job_id": str(self.job_id)}
        return asdict(self) | ids | limits | {"amounts": dict(self.amounts), "devices": list(self.devices)}


@dataclass(frozen=True, slots=True)
class Admitted:
    """A job that was admitted to a node and that no runner has begun. `granted` tells its admissions apart."""

    job_id: uuid.UUID
    granted: datetime
    limit_s: float


# The job's row is held against its end; asking again gives the row as it is.
ASK = sa.text("""
WITH job AS (
    SELECT id, tenant, priority, node, preemptible FROM jobs
    WHERE id = :job_id AND fence = :owner AND state = 'RUNNING' FOR NO KEY UPDATE
), lease AS (
    INSERT INTO leases
        (id, job_id, operator, part, tenant, priority, amounts, state, node, owner, asked, limit_s, expected_s,
         preemptible, early)
    SELECT gen_random_uuid(), id, :operator, :part, tenant,
        array_position(ARRAY['LOWER', 'NORMAL', 'HIGHER', 'IMMEDIATE'], priority::text), :amounts, 'WAITING', node,
        :owner, now(), :limit_s, :expected_s, preemptible, :early
    FROM job
    ON CONFLICT (job_id, operator, part) DO UPDATE SET owner = excluded.owner
    RETURNING *, xmax = 0 AS is_new
)
SELECT lease.*, CASE WHEN is_new THEN
    pg_notify(:channel, json_build_object('asked', id, 'job', job_id)::text) END FROM lease
""").bindparams(sa.bindparam("amounts", type_=JSONB), channel=CHANNEL)

# Admitted jobs get rows, operators that wait get theirs changed; whoever ended or went away meanwhile is left out.
GRANT = sa.text("""
WITH wanted AS (
    SELECT * FROM jsonb_to_recordset(:grants) AS g (id uuid, job_id uuid, operator text, part text, tenant text,
        priority int, amounts jsonb, node text, devices jsonb, limit_s float8, expected_s float8, preemptible bool)
), held AS (
    SELECT id, state, queued, node FROM jobs WHERE id IN (SELECT job_id FROM wanted) ORDER BY id FOR NO KEY UPDATE
), admitted AS (
    UPDATE jobs SET node = wanted.node FROM wanted, held
    WHERE jobs.id = held.id AND wanted.job_id = held.id AND wanted.operator = ''
        AND held.state = 'PENDING' AND held.queued IS NOT NULL AND held.node IS NULL
    RETURNING jobs.id
), fresh AS (
    INSERT INTO leases
        (id, job_id, operator, part, tenant, priority, amounts, state, node, devices, asked, granted, expires, limit_s,
         expected_s, preemptible)
    SELECT wanted.id, job_id, operator, part, tenant, priority, amounts, 'GRANTED', node, devices,
        now(), now(), now() + :ttl, limit_s, expected_s, preemptible
    FROM wanted JOIN admitted ON admitted.id = wanted.job_id
    RETURNING *
), served AS (
    UPDATE leases
    SET state = 'GRANTED', node = wanted.node, devices = wanted.devices, granted = now(), expires = now() + :ttl,
        reason = ''
    FROM wanted, held WHERE leases.id = wanted.id AND leases.state = 'WAITING' AND held.id = leases.job_id
    RETURNING leases.*
), given AS (SELECT * FROM fresh UNION ALL SELECT * FROM served)
SELECT id, pg_notify(:channel, json_build_object(
    'lease', id, 'job', job_id, 'operator', operator, 'part', part, 'owner', replace(owner::text, '-', ''),
    'node', node, 'devices', devices)::text)
FROM given
""").bindparams(sa.bindparam("grants", type_=JSONB), sa.bindparam("ttl", type_=sa.Interval), channel=GRANTS)

RELEASE = sa.text("""
WITH gone AS (
    DELETE FROM leases WHERE job_id = :job_id AND operator = :operator AND part = :part AND owner = :owner
    RETURNING job_id
)
SELECT pg_notify(:channel, json_build_object('released', job_id, 'job', job_id)::text) FROM gone
""").bindparams(channel=CHANNEL)

# A row that somebody changes at this instant is left for the next time: two who want many rows never wait for another.
RENEW = sa.text("""
WITH mine AS (SELECT id FROM leases WHERE node = :node AND state = 'GRANTED' FOR NO KEY UPDATE SKIP LOCKED)
UPDATE leases SET expires = now() + :ttl FROM mine WHERE leases.id = mine.id
""").bindparams(sa.bindparam("ttl", type_=sa.Interval))

TELL = sa.text("""
WITH told AS (SELECT * FROM jsonb_to_recordset(:reasons) AS r (id uuid, reason text)),
waiting AS (
    SELECT leases.id, told.reason FROM leases JOIN told USING (id)
    WHERE state = 'WAITING' FOR NO KEY UPDATE OF leases SKIP LOCKED
), changed AS (
    UPDATE leases SET reason = waiting.reason FROM waiting
    WHERE leases.id = waiting.id AND leases.reason <> waiting.reason
    RETURNING leases.*
)
SELECT pg_notify(:channel, json_build_object(
    'lease', id, 'job', job_id, 'operator', operator, 'part', part, 'owner', replace(owner::text, '-', ''),
    'reason', left(reason, :shown))::text)
FROM changed
""").bindparams(sa.bindparam("reasons", type_=JSONB), channel=GRANTS, shown=SHOWN_CHARACTERS)


def ask(
    engine: sa.Engine,
    *,
    job_id: uuid.UUID,
    operator: str,
    part: str = "",
    owner: Owner,
    amounts: Mapping[str, int],
    limit_s: float,
    expected_s: float | None = None,
    early: bool = False,
) -> LeaseRow:
    """Ask for an operator's resources; the row there is when that was asked before (or granted with the job).

    amounts     by resource name (`infra.ledger.model.Amounts.as_json`).

    Raises StaleOwner when `owner` does not run the job any more; InputError when there is no such job.
    """
    facts = {
        "job_id": job_id, "operator": operator, "part": part, "owner": owner.token, "amounts": dict(amounts),
        "limit_s": limit_s, "expected_s": expected_s, "early": early,
    }  # fmt: skip
    with statements(engine) as connection:
        row = connection.execute(ASK, facts).mappings().one_or_none()
    if row is None:
        with transaction(engine) as session:
            job = locked(session, job_id)
            check_owner(job, owner)
            raise StaleOwner(f"job {job_id} is over ({job.phase}): {operator!r} asks in vain", job=str(job_id))
    return LeaseRow(**{name: row[name] for name in LeaseRow.__slots__} | {"state": LeaseState(row["state"])})


def release(engine: sa.Engine, job_id: uuid.UUID, operator: str, part: str, owner: Owner) -> None:
    """Give back, or ask no longer for, what an operator has; nothing happens when there is nothing, or another's."""
    facts = {"job_id": job_id, "operator": operator, "part": part, "owner": owner.token}
    with statements(engine) as connection:
        connection.execute(RELEASE, facts)


def grant(engine: sa.Engine, grants: Sequence[GrantRow], ttl_s: float) -> set[uuid.UUID]:
    """Admit jobs (`operator` "", with their first operators) and serve operators that wait. All in one statement.

    ttl_s       they end after that, unless their node's worker renews them.

    Returns the ids of the leases that were granted: not those of jobs and operators that went away meanwhile.
    """
    facts = {"grants": [row.as_json() for row in grants], "ttl": timedelta(seconds=ttl_s)}
    with statements(engine) as connection:
        return {row.id for row in connection.execute(GRANT, facts)}


def load(engine: sa.Engine, job_ids: Collection[uuid.UUID] | None = None) -> list[LeaseRow]:
    """All leases, those asked for first on top; of these jobs only where given."""
    with statements(engine) as connection:
        rows = connection.execute(ALL) if job_ids is None else connection.execute(OF_JOBS, {"ids": list(job_ids)})
        return [LeaseRow(*row) for row in rows]


def admitted(engine: sa.Engine, node: str) -> list[Admitted]:
    """The jobs that were admitted to a node and have not begun, first come first: its worker gives them to runners."""
    with statements(engine) as connection:
        return [Admitted(*row) for row in connection.execute(ADMITTED, {"node": node})]


def renew(engine: sa.Engine, node: str, ttl_s: float) -> int:
    """Keep what is held on a node for another `ttl_s`; returns how many leases there are."""
    with statements(engine) as connection:
        return connection.execute(RENEW, {"node": node, "ttl": timedelta(seconds=ttl_s)}).rowcount


def mark_yielding(engine: sa.Engine, job_id: uuid.UUID) -> None:
    """Ask a running job's runner to go back to the queue with it between two operators; once, however often told."""
    with transaction(engine) as session:
        job = locked(session, job_id)
        unasked = sa.update(Lease).where(col(Lease.job_id) == job_id, ~col(Lease.yielding)).values(yielding=True)
        changed = session.execute(unasked.returning(col(Lease.id))).all()
        if changed and job.fence is not None:
            announce(session, [(GRANTS, {"yield": str(job_id), "owner": job.fence.hex})])


def tell_reasons(engine: sa.Engine, reasons: Mapping[uuid.UUID, str]) -> None:
    """Write down what those who wait wait for, by lease id, and tell their runners where that changed."""
    rows = [{"id": str(lease_id), "reason": storable(reason)} for lease_id, reason in reasons.items()]
    with statements(engine) as connection:
        connection.execute(TELL, {"reasons": rows})
