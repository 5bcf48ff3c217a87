"""Delivery tasks: what agents take, report on, and what people do about those that failed.

Each function is one transaction around the pure state machine of `delivery_states`. A task that was handed out is
leased: its `lease` fences, so that an agent whose lease ended can neither report nor note anything once another has
the task. Whoever reports without a lease (Clara's own agents know none) is believed, as Clara's service believes them.

What agents call may be repeated (`database.persistently`): the same report told twice is one report.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from clara_flow.errors import Conflict, InputError
from clara_flow.records import delivery_steps as steps
from clara_flow.records.database import transaction
from clara_flow.records.delivery_queries import (
    Queue,
    find_delivery,
    get_delivery,
    is_due,
    list_deliveries,
    list_items,
    queues,
)
from clara_flow.records.delivery_registration import (
    checked_agent,
    checked_text,
    checked_uris,
    destinations_in,
    register,
)
from clara_flow.records.delivery_states import DeliveryEvent, advance_item, retried_item
from clara_flow.records.delivery_steps import CHANNEL
from clara_flow.records.dicom_models import Delivery, DeliveryItem, DeliveryState, ItemState
from clara_flow.records.models import Payload
from clara_flow.records.owner import Owner
from clara_flow.records.transitions import storable

__all__ = [
    "CHANNEL",
    "ItemNews",
    "Queue",
    "checked_agent",
    "checked_text",
    "checked_uris",
    "destinations_in",
    "discard",
    "expire",
    "fail",
    "find_delivery",
    "get_delivery",
    "give_back",
    "list_deliveries",
    "list_items",
    "note_items",
    "queues",
    "register",
    "renew",
    "retry",
    "succeed",
    "take",
]


@dataclass(frozen=True, slots=True)
class ItemNews:
    """What an agent tells of one file of a delivery; `reason` is for people and names no patient."""

    uri: str
    state: ItemState
    reason: str = ""
    sop_class_uid: str = ""
    sop_instance_uid: str = ""


def take(
    engine: sa.Engine,
    agent: str,
    size: int,
    lease_s: float,
    destination: str | None = None,
    owner: Owner | None = None,
) -> list[Delivery]:
    """Hand out at most `size` tasks that wait for `agent` (in any case of its letters), the oldest first.

    No two callers ever get one task. Each is leased for `lease_s` seconds (`Delivery.lease`); a task whose lease
    expired is handed out again.

    destination     only those for it, in any case; "": those for none. None: all.
    owner           the agent's process, where it is known: once it is gone, `expire` does not wait for the lease.
    """
    with transaction(engine) as session:
        now = steps.clock(session)
        steps.expire(session, now)
        query = select(Delivery).where(
            col(Delivery.state) == DeliveryState.PENDING,
            sa.func.lower(Delivery.agent) == sa.func.lower(agent),
            is_due(now),
        )
        if destination is not None:
            query = query.where(sa.func.lower(Delivery.destination) == sa.func.lower(destination))
        query = query.order_by(col(Delivery.created), col(Delivery.id)).limit(size)
        rows = list(session.exec(query.with_for_update(skip_locked=True)))
        for row in rows:
            steps.change(row, DeliveryEvent.HAND_OUT, now, lease_expires=now + timedelta(seconds=lease_s), owner=owner)
        return rows


def renew(engine: sa.Engine, delivery_id: uuid.UUID, lease: uuid.UUID, lease_s: float) -> None:
    """The agent is still at it: its lease lasts `lease_s` seconds from now on. Raises StaleOwner, NotFound."""
    with transaction(engine) as session:
        row = steps.locked(session, delivery_id)
        if not steps.holds(row, lease):
            raise steps.stale(row)
        row.updated = steps.clock(session)
        row.lease_expires = row.updated + timedelta(seconds=lease_s)


def expire(engine: sa.Engine, is_alive: Callable[[Owner], bool] = Owner.is_alive) -> int:
    """Put back every task whose lease has expired (`take` does that too), and those of processes that are gone.

    Returns how many there were.
    """
    with transaction(engine) as session:
        now = steps.clock(session)
        return len(steps.expire(session, now)) + len(steps.bereave(session, now, is_alive))


def succeed(engine: sa.Engine, delivery_id: uuid.UUID, lease: uuid.UUID | None = None) -> Delivery:
    """The agent delivered it. Raises NotFound, Conflict when it ended otherwise, StaleOwner for another's lease."""
    with transaction(engine) as session:
        row = steps.locked(session, delivery_id)
        if _report(session, row, DeliveryEvent.SUCCEED, lease):
            row.message, row.not_before = "", None
        return row


def fail(
    engine: sa.Engine,
    delivery_id: uuid.UUID,
    retry_later: bool,
    message: str = "",
    lease: uuid.UUID | None = None,
    *,
    delay_s: float = 0,
    maximum_retries: int | None = None,
) -> Delivery:
    """The agent could not deliver it.

    retry_later     it waits again, and that is counted (`retries`); else it has failed for good.
    message         why, for people.
    delay_s         seconds by the database's clock before which it is not handed out again.
    maximum_retries after so many the agent's wish for another try counts no more; None: it decides.

    Raises as `succeed` does.
    """
    with transaction(engine) as session:
        row = steps.locked(session, delivery_id)
        is_last = retry_later and maximum_retries is not None and _is_last_try(row, maximum_retries)
        waits = retry_later and not is_last
        if _report(session, row, DeliveryEvent.POSTPONE if waits else DeliveryEvent.FAIL, lease):
            tried = f"tried {row.retries + 1} times" if is_last else ""
            row.message = storable("; ".join(filter(None, (message, tried))))
            row.not_before = steps.clock(session) + timedelta(seconds=delay_s) if waits and delay_s else None
            if waits:
                steps.offer(session, row)
        return row


def give_back(engine: sa.Engine, delivery_id: uuid.UUID, lease: uuid.UUID) -> Delivery:
    """The agent did not get to it: it waits again, and that is not counted. Raises StaleOwner, NotFound."""
    with transaction(engine) as session:
        row = steps.locked(session, delivery_id)
        if _report(session, row, DeliveryEvent.GIVE_BACK, lease):
            row.not_before = None
            steps.offer(session, row)
        return row


def note_items(
    engine: sa.Engine, delivery_id: uuid.UUID, items: Iterable[ItemNews], lease: uuid.UUID | None = None
) -> None:
    """Note what became of files of a delivery. `attempts` counts what was tried, not what was put back.

    Raises InputError for a file that is none of its own, StaleOwner for a lease that is over, NotFound.
    """
    with transaction(engine) as session:
        row = steps.locked(session, delivery_id)
        if lease is not None and not steps.holds(row, lease):
            raise steps.stale(row)
        now = steps.clock(session)
        news = {item.uri: item for item in items}
        if strangers := news.keys() - set(row.uris):
            raise InputError(f"delivery {delivery_id} has no file {min(strangers)!r}", delivery=str(delivery_id))
        query = select(DeliveryItem).where(col(DeliveryItem.delivery_id) == delivery_id)
        stored = {item.uri: item for item in session.exec(query.where(col(DeliveryItem.uri).in_(news)))}
        for uri, told in news.items():
            item = stored.get(uri) or DeliveryItem(delivery_id=delivery_id, uri=uri, updated=now)
            state = advance_item(item.state, told.state)
            if state is not ItemState.PENDING and told.state is not ItemState.COMMITTED:
                item.attempts += 1
            item.state, item.updated = state, now
            item.reason = storable(told.reason) if state is told.state else item.reason
            item.sop_class_uid = told.sop_class_uid or item.sop_class_uid
            item.sop_instance_uid = told.sop_instance_uid or item.sop_instance_uid
            session.add(item)


def retry(engine: sa.Engine, delivery_id: uuid.UUID) -> Delivery:
    """Somebody wants a failed delivery tried again: only those of its files go that were not sent. Retries start anew.

    One that waits for its time is offered now. Raises Conflict when it is being delivered, was delivered, or its
    payload is removed; NotFound.
    """
    with transaction(engine) as session:
        row = steps.locked(session, delivery_id)
        now = steps.clock(session)
        if row.state is DeliveryState.FAILED and _is_removed(session, row.payload_id):
            reason = "the files of its job were removed"
            raise Conflict(f"delivery {delivery_id} cannot be retried: {reason}", reason=reason)
        if steps.change(row, DeliveryEvent.RETRY, now):
            row.message = ""
            query = select(DeliveryItem).where(col(DeliveryItem.delivery_id) == delivery_id)
            for item in session.exec(query.with_for_update()):
                item.state = retried_item(item.state)
        row.not_before = None
        steps.offer(session, row)
        return row


def discard(engine: sa.Engine, delivery_id: uuid.UUID, reason: str = "") -> Delivery:
    """Somebody gives a delivery up, whatever its agent does now. Raises Conflict when it was delivered; NotFound."""
    with transaction(engine) as session:
        row = steps.locked(session, delivery_id)
        if steps.change(row, DeliveryEvent.DISCARD, steps.clock(session)):
            row.not_before = None
            row.message = storable(reason) or row.message or "discarded"
        return row


def _report(session: Session, row: Delivery, event: DeliveryEvent, lease: uuid.UUID | None) -> bool:
    """An agent's report, fenced; whether it changed anything."""
    if lease is not None and not steps.holds(row, lease):
        if _is_repeated(row, event):
            return False
        raise steps.stale(row)
    return steps.change(row, event, steps.clock(session))


def _is_last_try(row: Delivery, maximum_retries: int) -> bool:
    """Whether a report of failure is of the last try; a repeated one, of a task that waits again, is of none."""
    is_repeated = row.state is DeliveryState.PENDING and not steps.standing_of(row).owed
    return row.retries >= maximum_retries and not is_repeated


def _is_repeated(row: Delivery, event: DeliveryEvent) -> bool:
    """Whether a report whose lease is over says what the task's state says: its answer may have been lost."""
    standing = steps.standing_of(row)
    return (standing.state, event) in {
        (DeliveryState.SUCCEEDED, DeliveryEvent.SUCCEED),
        (DeliveryState.FAILED, DeliveryEvent.FAIL),
        (DeliveryState.PENDING, DeliveryEvent.GIVE_BACK),
    } or (standing.state is DeliveryState.PENDING and event is DeliveryEvent.POSTPONE and not standing.owed)


def _is_removed(session: Session, payload_id: str) -> bool:
    try:
        payload = session.get(Payload, uuid.UUID(payload_id))
    except ValueError:
        return False
    return payload is not None and payload.removed is not None
