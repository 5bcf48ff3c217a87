"""Questions about delivery tasks; nothing here changes anything."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import col, select

from clara_flow.errors import InputError, NotFound
from clara_flow.records.database import reading, statements
from clara_flow.records.dicom_models import Delivery, DeliveryItem, DeliveryState

ID_DIGITS = 32
SHOWN_HITS = 5


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits for one destination of one agent ("" = no destination), and what is being delivered.

    due         how many of the pending may be handed out now.
    oldest      UTC: when the oldest of the pending was registered; None when none is.
    """

    agent: str
    destination: str
    pending: int
    due: int
    in_progress: int
    oldest: datetime | None


def is_due(now: Any) -> sa.ColumnElement[bool]:
    """Whether a pending one may be handed out: its wait is over, or the clock was set back after it had begun."""
    not_before = col(Delivery.not_before)
    return sa.or_(not_before.is_(None), not_before <= now, col(Delivery.updated) > now)


def find_delivery(engine: sa.Engine, delivery_id: uuid.UUID) -> Delivery:
    """The delivery of that whole id. Raises NotFound."""
    with reading(engine) as session:
        row = session.get(Delivery, delivery_id)
    if row is None:
        raise NotFound(f"there is no delivery {delivery_id}", delivery=str(delivery_id))
    return row


def get_delivery(engine: sa.Engine, reference: str) -> Delivery:
    """The delivery of that id, or of the unique beginning of an id (dashes may be left out).

    Raises InputError when several begin so or it can be none, NotFound.
    """
    prefix = reference.replace("-", "").lower()
    if not prefix or len(prefix) > ID_DIGITS or prefix.strip("0123456789abcdef"):
        raise InputError(f"{reference!r} is no delivery id: ids are hexadecimal")
    first, last = (uuid.UUID(prefix.ljust(ID_DIGITS, digit)) for digit in "0f")
    query = select(Delivery).where(col(Delivery.id).between(first, last)).order_by(col(Delivery.created).desc())
    with reading(engine) as session:
        hits = session.exec(query.limit(SHOWN_HITS + 1)).all()
    if not hits:
        raise NotFound(f"there is no delivery {reference}")
    if len(hits) > 1:
        shown = ", ".join(str(row.id) for row in hits[:SHOWN_HITS])
        more = " and more" if len(hits) > SHOWN_HITS else ""
        raise InputError(f"several deliveries begin with {reference}: {shown}{more}. Give more of the id.")
    return hits[0]


def list_deliveries(
    engine: sa.Engine,
    *,
    agent: str | None = None,
    state: DeliveryState | None = None,
    job_id: str | None = None,
    destination: str | None = None,
    limit: int | None = None,
) -> list[Delivery]:
    """The deliveries that pass every filter given, newest first. Agents and destinations are compared without case.

    job_id      as whoever registered it gave it; of a UUID, dashes and case do not count.
    """
    query = select(Delivery).order_by(col(Delivery.created).desc(), col(Delivery.id).desc()).limit(limit)
    if agent is not None:
        query = query.where(sa.func.lower(Delivery.agent) == sa.func.lower(agent))
    if state is not None:
        query = query.where(col(Delivery.state) == state)
    if job_id is not None:
        query = query.where(col(Delivery.job_id).in_(_spellings(job_id)))
    if destination is not None:
        query = query.where(sa.func.lower(Delivery.destination) == sa.func.lower(destination))
    with reading(engine) as session:
        return list(session.exec(query))


def list_items(engine: sa.Engine, delivery: Delivery) -> list[DeliveryItem]:
    """Every file of a delivery in its order; one that nobody has told anything of is PENDING."""
    query = select(DeliveryItem).where(col(DeliveryItem.delivery_id) == delivery.id)
    with reading(engine) as session:
        told = {item.uri: item for item in session.exec(query)}
    return [
        told.get(uri) or DeliveryItem(delivery_id=delivery.id, uri=uri, updated=delivery.created)
        for uri in delivery.uris
    ]


def queues(engine: sa.Engine) -> list[Queue]:
    """The queues with something in them, by agent and destination."""
    pending = col(Delivery.state) == DeliveryState.PENDING
    due = is_due(sa.func.clock_timestamp())
    query = (
        sa.select(
            col(Delivery.agent),
            col(Delivery.destination),
            sa.func.count().filter(pending),
            sa.func.count().filter(pending, due),
            sa.func.count().filter(~pending),
            sa.func.min(Delivery.created).filter(pending),
        )
        .where(col(Delivery.state).in_([DeliveryState.PENDING, DeliveryState.IN_PROGRESS]))
        .group_by(col(Delivery.agent), col(Delivery.destination))
        .order_by(col(Delivery.agent), col(Delivery.destination))
    )
    with statements(engine) as connection:
        return [Queue(*row) for row in connection.execute(query)]


def _spellings(job_id: str) -> set[str]:
    try:
        parsed = uuid.UUID(job_id)
    except ValueError:
        return {job_id}
    return {job_id, str(parsed), parsed.hex, str(parsed).upper(), parsed.hex.upper()}
