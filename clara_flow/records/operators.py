"""Records of a job's operators. Each function is one transaction; only the job's owner may change anything."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from clara_flow.errors import InputError, InvalidTransition, StaleOwner
from clara_flow.records.database import reading, transaction
from clara_flow.records.models import Job, JobOperator, Lease
from clara_flow.records.owner import Owner
from clara_flow.records.state_machine import FAILURES, JobState, OperatorEvent, OperatorPhase, OperatorStatus
from clara_flow.records.transitions import (
    LEASES_CHANNEL,
    announce,
    check_owner,
    forget_attempt,
    locked,
    news,
    operators_of,
    release_leases,
    step,
    stop_clock,
    storable,
)

ENDS = {
    OperatorEvent.COMPLETE: OperatorPhase.COMPLETED,
    OperatorEvent.REUSE: OperatorPhase.CACHED,
    OperatorEvent.SKIP: OperatorPhase.SKIPPED,
    **FAILURES,
}


def operator_waits(
    engine: sa.Engine, job_id: uuid.UUID, operator: str, owner: Owner, *, message: str = ""
) -> JobOperator:
    """An operator could run, but its resources are taken; `message` says which. May be told again with another one.

    Raises StaleOwner, InvalidTransition.
    """
    with transaction(engine) as session:
        row = owned(session, job_id, operator, owner)
        waits = row.detail is OperatorPhase.WAITING
        if waits and row.message == storable(message):
            return row
        if not waits:
            step(row, OperatorEvent.WAIT)
        row.message = storable(message)
        return store(session, row)


def operator_started(
    engine: sa.Engine,
    job_id: uuid.UUID,
    operator: str,
    owner: Owner,
    *,
    attempt: int | None = None,
    waited_s: float | None = None,
    digest: str | None = None,
    identity: str = "",
) -> JobOperator:
    """An attempt of an operator was launched.

    attempt     its number: the last one's (`JobOperator.attempt`, which a requeue does not change) and one; the one
                that runs already may be told again. None: the next one.

    Raises StaleOwner, InvalidTransition.
    """
    with transaction(engine) as session:
        row = owned(session, job_id, operator, owner)
        if row.detail is OperatorPhase.RUNNING and row.attempt == attempt:
            return row
        if attempt is not None and attempt != row.attempt + 1:
            raise InvalidTransition(
                f"attempt {attempt} of operator {operator!r} cannot begin: {row.attempt} were made, it is {row.detail}",
                operator=operator,
                attempt=attempt,
            )
        step(row, OperatorEvent.BEGIN)
        forget_attempt(row)
        row.attempt += 1
        row.started = datetime.now(UTC)
        row.waited_s, row.digest, row.identity = waited_s, digest, identity
        return store(session, row)


def operator_ended(
    engine: sa.Engine,
    job_id: uuid.UUID,
    operator: str,
    owner: Owner,
    event: OperatorEvent,
    *,
    attempt: int | None = None,
    message: str = "",
    exit_code: int | None = None,
    run_time_s: float | None = None,
    peak_memory_bytes: int | None = None,
    digest: str | None = None,
    identity: str | None = None,
) -> JobOperator:
    """An operator ended, or was skipped, or sealed outputs were taken (REUSE); its leases are released.

    event       for a failure `OperatorEvent(error.outcome)`. The same end told again changes nothing; REUSE of what
                had completed in an earlier run of this job leaves it as it was.
    attempt     which one ended; None: the last, or none.
    run_time_s  from launch to exit, as the launcher measured it; None: from the record's own times.

    Raises StaleOwner, InvalidTransition.
    """
    with transaction(engine) as session:
        row = owned(session, job_id, operator, owner)
        if attempt is not None and attempt != row.attempt:
            raise InvalidTransition(
                f"attempt {attempt} of operator {operator!r} is not the last, {row.attempt}: it cannot end now",
                operator=operator,
                attempt=attempt,
            )
        completed = row.status is OperatorStatus.COMPLETED
        if completed if event is OperatorEvent.REUSE else row.detail is ENDS[event]:
            announce(session, release_leases(session, job_id, operator))
            return row
        step(row, event)
        row.message, row.exit_code, row.peak_memory_bytes = storable(message), exit_code, peak_memory_bytes
        if digest is not None:
            row.digest = digest
        if identity is not None:
            row.identity = identity
        if event is not OperatorEvent.SKIP:
            stop_clock(row, run_time_s)
        return store(session, row, release=True)


def operator_reset(engine: sa.Engine, job_id: uuid.UUID, operator: str, owner: Owner) -> JobOperator:
    """What it had completed in an earlier run of the job cannot be used (another version, lost files): it runs again.

    Raises StaleOwner.
    """
    with transaction(engine) as session:
        row = owned(session, job_id, operator, owner)
        if row.detail is OperatorPhase.PENDING:
            return row
        step(row, OperatorEvent.RESET)
        forget_attempt(row)
        return store(session, row)


def list_operators(engine: sa.Engine, job_id: uuid.UUID) -> list[JobOperator]:
    """The operators of a job, in the plan's order."""
    with reading(engine) as session:
        return operators_of(session, job_id)


def owned(session: Session, job_id: uuid.UUID, operator: str, owner: Owner) -> JobOperator:
    """The operator of a running job that `owner` runs, with both rows locked; not the session's: see `store`.

    Raises StaleOwner, InputError.
    """
    found = session.connection().execute(LOCK, {"job": job_id, "operator": operator}).one_or_none()
    if found is None:
        locked(session, job_id)  # raises when there is no such job
        raise InputError(f"job {job_id} has no operator {operator!r}", operator=operator)
    state, fence, *values = found
    if state is not JobState.RUNNING or fence != owner.token:
        job = locked(session, job_id)
        check_owner(job, owner)
        raise StaleOwner(f"job {job_id} is over ({job.phase}): {operator!r} cannot change any more", job=str(job_id))
    return JobOperator(**dict(zip(COLUMNS, values, strict=True)))


def store(session: Session, row: JobOperator, *, release: bool = False) -> JobOperator:
    """Write an operator's row, tell the news, and with `release` delete its leases: all in one statement."""
    channel, facts = news(row.job_id, row.name, row.detail, row.message)
    keys = {
        "row": row.id,
        "job": row.job_id,
        "operator": row.name,
        "release": release,
        "channel": channel,
        "news": json.dumps(facts, ensure_ascii=False),
        "released": json.dumps({"released": str(row.job_id), "job": str(row.job_id)}),
    }
    session.connection().execute(STORE, {name: getattr(row, name) for name in CHANGING} | keys)
    return row


TABLE: sa.Table = JobOperator.__table__  # type: ignore[attr-defined]
COLUMNS = tuple(TABLE.columns.keys())
CHANGING = tuple(name for name in COLUMNS if name not in {"id", "job_id", "name", "position", "created"})

# Both rows: siblings take turns, and the job does not end between the question and the answer.
LOCK = (
    sa.select(col(Job.state), col(Job.fence), *TABLE.columns)
    .join(TABLE, TABLE.c.job_id == Job.id)
    .where(col(Job.id) == sa.bindparam("job"), TABLE.c.name == sa.bindparam("operator"))
    .with_for_update(key_share=True)
)


def _store() -> sa.CompoundSelect[Any]:
    stored = (
        sa.update(TABLE)
        .where(TABLE.c.id == sa.bindparam("row"))
        .values({name: sa.bindparam(name, type_=TABLE.c[name].type) for name in CHANGING})
        .returning(TABLE.c.id)
        .cte("stored")
    )
    gone = (
        sa.delete(Lease)
        .where(sa.bindparam("release", type_=sa.Boolean))
        .where(col(Lease.job_id) == sa.bindparam("job"), col(Lease.operator) == sa.bindparam("operator"))
        .returning(col(Lease.id))
        .cte("gone")
    )
    tell = sa.func.pg_notify(sa.bindparam("channel"), sa.bindparam("news"))
    ring = sa.func.pg_notify(LEASES_CHANNEL, sa.bindparam("released"))
    return sa.union_all(sa.select(tell).select_from(stored), sa.select(ring).where(sa.exists(sa.select(gone.c.id))))


STORE = _store()
