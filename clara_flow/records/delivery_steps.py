"""One step of a delivery task: lock its row, ask the state machine, store, announce. Times are the database's."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlmodel import Session, col, select

from clara_flow.errors import NotFound, StaleOwner
from clara_flow.records.delivery_states import DeliveryEvent, Standing, advance
from clara_flow.records.dicom_models import Delivery, DeliveryState
from clara_flow.records.owner import Owner
from clara_flow.records.transitions import announce

CHANNEL = "clara_flow_deliveries"  # {"delivery", "agent", "destination"}: it waits for its agent now
FINAL = frozenset({DeliveryState.SUCCEEDED, DeliveryState.FAILED})


def clock(session: Session) -> datetime:
    """The database's time: machines that share it need not agree about theirs."""
    now: datetime = session.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return now


def locked(session: Session, delivery_id: uuid.UUID) -> Delivery:
    """The task with its row locked until the transaction ends. Raises NotFound."""
    row = session.get(Delivery, delivery_id, with_for_update=True)
    if row is None:
        raise NotFound(f"there is no delivery {delivery_id}", delivery=str(delivery_id))
    return row


def standing_of(row: Delivery) -> Standing:
    """Where a stored task stands: one that is owed a report keeps the time at which its lease expired."""
    owed = row.state is DeliveryState.PENDING and row.lease_expires is not None
    return Standing(row.state, row.retries, owed, row.discarded)


def change(
    row: Delivery,
    event: DeliveryEvent,
    now: datetime,
    *,
    lease_expires: datetime | None = None,
    owner: Owner | None = None,
) -> bool:
    """Take one step of a locked task; whether anything changed. Raises Conflict.

    lease_expires, owner    where it is handed out.
    """
    before = standing_of(row)
    after = advance(before, event, task=str(row.id))
    if after == before:
        return False
    row.state, row.retries, row.discarded = after.state, after.retries, after.discarded
    if after.state is DeliveryState.IN_PROGRESS:
        row.lease, row.lease_expires = uuid.uuid4(), lease_expires
    else:
        row.lease = None
        row.lease_expires = row.lease_expires if after.owed else None
    row.owner_host, row.owner_pid, row.owner_process_start = (
        (owner.host, owner.pid, owner.process_start) if owner is not None else (None, None, None)
    )
    row.ended = (row.ended or now) if after.state in FINAL else None
    row.updated = now
    return True


def offer(session: Session, *rows: Delivery) -> None:
    """Tell the agents that these wait for them."""
    announce(
        session,
        [
            (CHANNEL, {"delivery": str(row.id), "agent": row.agent, "destination": row.destination[:200]})
            for row in rows
        ],
    )


def holds(row: Delivery, lease: uuid.UUID) -> bool:
    """Whether that lease is the task's."""
    return row.state is DeliveryState.IN_PROGRESS and row.lease == lease


def stale(row: Delivery) -> StaleOwner:
    """The error of an agent that works at a task that is not its own any more."""
    return StaleOwner(
        f"delivery {row.id} is not that agent's any more: it is {row.state}", delivery=str(row.id), state=row.state
    )


def expire(session: Session, now: datetime) -> list[Delivery]:
    """Put back every task whose agent said nothing for the time of its lease.

    A clock that was set back lengthens no lease: what is left of those that are older is counted from now on.
    """
    for row in _in_progress(session, col(Delivery.updated) > now):
        if row.lease_expires is not None:
            row.lease_expires -= row.updated - now
        row.updated = now
    session.flush()
    silent = _in_progress(session, col(Delivery.lease_expires) < now)
    _put_back(session, silent, now, "its agent said nothing for the time of its lease")
    return silent


def bereave(session: Session, now: datetime, is_alive: Callable[[Owner], bool]) -> list[Delivery]:
    """Put back every task whose agent was a process of this machine that is gone: nobody will report on it."""
    here = _in_progress(session, col(Delivery.owner_host) == socket.gethostname())
    orphans = [row for row in here if row.owner is not None and not is_alive(row.owner)]
    _put_back(session, orphans, now, "the process that worked at it is gone")
    return orphans


def _in_progress(session: Session, which: sa.ColumnElement[bool]) -> list[Delivery]:
    query = select(Delivery).where(col(Delivery.state) == DeliveryState.IN_PROGRESS, which)
    return list(session.exec(query.with_for_update(skip_locked=True)))


def _put_back(session: Session, rows: Sequence[Delivery], now: datetime, reason: str) -> None:
    for row in rows:
        change(row, DeliveryEvent.EXPIRE, now)
        row.message = row.message or reason
    offer(session, *rows)
