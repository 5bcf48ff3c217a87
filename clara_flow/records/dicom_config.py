"""Rows of the DICOM configuration: our AE titles, who may send, where results may go. All changes ring on CHANNEL.

What a row must be like is checked by `services.dicom.config_check`, before it comes here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlmodel import Session, col, select

from clara_flow.errors import Conflict, NotFound
from clara_flow.records.database import reading, statements, transaction
from clara_flow.records.dicom_models import (
    AeTitle,
    Association,
    Delivery,
    DeliveryState,
    Destination,
    Group,
    GroupState,
    SourceNode,
)

CHANNEL = "clara_flow_dicom"
LOCK = sa.select(sa.func.pg_advisory_xact_lock(0x4449434F4D))  # "DICOM" in ASCII: changes come one after the other
LIVE_GROUPS = (GroupState.OPEN, GroupState.COMPLETE, GroupState.FAILED)  # a failed one may be tried again by somebody

Row = TypeVar("Row", AeTitle, SourceNode, Destination)


@dataclass(frozen=True, slots=True)
class Drain:
    """A deleted AE title.

    under_way       its groups that are not over, and its associations that are still open.
    last_arrival    of an instance for it; since: when it was deleted (both UTC).
    """

    under_way: int
    last_arrival: datetime | None
    since: datetime


def list_aetitles(engine: sa.Engine) -> list[AeTitle]:
    """All of them by name, those that drain too."""
    with reading(engine) as session:
        return list(session.exec(select(AeTitle).order_by(col(AeTitle.name))))


def get_aetitle(engine: sa.Engine, name: str) -> AeTitle:
    """The AE title of that name (not: title), also while it drains. Raises NotFound."""
    with reading(engine) as session:
        return _existing(session, AeTitle, name)


def add_aetitle(engine: sa.Engine, aetitle: AeTitle) -> AeTitle:
    """Add it; one of the same name that drains comes back to life so. Raises Conflict when name or title is taken."""
    with _change(engine, "aetitle", aetitle.name) as session:
        former = session.get(AeTitle, aetitle.name)
        if former is not None and not former.draining:
            raise Conflict(f"there is an AE title named {aetitle.name!r} already", name=aetitle.name)
        _refuse_taken_title(session, aetitle)
        if former is not None:
            session.delete(former)
            session.flush()
        return inserted(session, aetitle)


def update_aetitle(engine: sa.Engine, name: str, **changes: Any) -> AeTitle:
    """Change what is named; returns the row as it is then. Raises NotFound, also while it drains, and Conflict."""
    with _change(engine, "aetitle", name) as session:
        row = _existing(session, AeTitle, name)
        if row.draining:
            raise _unknown(AeTitle, name)
        changed(row, changes)
        with session.no_autoflush:
            _refuse_taken_title(session, row)
        session.add(row)
        return row


def delete_aetitle(engine: sa.Engine, name: str) -> AeTitle:
    """Take nothing new for it; `remove_drained` removes it when its groups are over. Raises NotFound.

    It drains even where no group is open: what a listener has acknowledged may not be in a group yet.
    """
    with _change(engine, "aetitle", name) as session:
        row = _existing(session, AeTitle, name)
        if row.draining:
            raise _unknown(AeTitle, name)
        changed(row, {"draining": True})
        session.add(row)
        return row


def draining_aetitles(engine: sa.Engine) -> dict[str, Drain]:
    """What goes on at the AE titles that were deleted, by name."""
    name = col(AeTitle.name)
    groups = _count(Group, _of_it(Group), _is_live())
    associations = _count(Association, _of_it(Association), _is_open())
    last_arrival = sa.select(sa.func.max(col(Group.last_arrival))).where(_of_it(Group)).scalar_subquery()
    query = sa.select(name, groups + associations, last_arrival, col(AeTitle.updated)).where(col(AeTitle.draining))
    with statements(engine) as connection:
        return {key: Drain(count, last, since) for key, count, last, since in connection.execute(query)}


def remove_drained(engine: sa.Engine, names: Iterable[str]) -> list[str]:
    """Remove those AE titles of `names` that were deleted and have nothing under way; returns their names.

    Only call it when everything that listeners received for them is in groups.
    """
    over = sa.delete(AeTitle).where(
        col(AeTitle.name).in_(list(names)),
        col(AeTitle.draining),
        ~sa.exists().where(_of_it(Group), _is_live()),
        ~sa.exists().where(_of_it(Association), _is_open()),
    )
    with transaction(engine) as session:
        session.execute(LOCK)
        removed = sorted(session.execute(over.returning(col(AeTitle.name))).scalars())
        for name in removed:
            ring(session, "aetitle", name)
        return removed


def list_sources(engine: sa.Engine) -> list[SourceNode]:
    """Who may send, by AE title."""
    with reading(engine) as session:
        return list(session.exec(select(SourceNode).order_by(col(SourceNode.ae_title))))


def get_source(engine: sa.Engine, ae_title: str) -> SourceNode:
    """The source of that AE title. Raises NotFound."""
    with reading(engine) as session:
        return _existing(session, SourceNode, ae_title)


def add_source(engine: sa.Engine, source: SourceNode) -> SourceNode:
    """Add it. Raises Conflict when there is one of that AE title."""
    with _change(engine, "source", source.ae_title) as session:
        if session.get(SourceNode, source.ae_title) is not None:
            raise Conflict(f"there is a source {source.ae_title!r} already", name=source.ae_title)
        return inserted(session, source)


def update_source(engine: sa.Engine, ae_title: str, **changes: Any) -> SourceNode:
    """Change what is named; returns the row as it is then. Raises NotFound, Conflict where a block has made it."""
    with _change(engine, "source", ae_title) as session:
        row = _existing(session, SourceNode, ae_title)
        _refuse_of_block(row, changes)
        changed(row, changes)
        session.add(row)
        return row


def delete_source(engine: sa.Engine, ae_title: str) -> SourceNode:
    """Remove it; returns what it was. Associations that it has go on. Raises NotFound, and Conflict as above."""
    with _change(engine, "source", ae_title) as session:
        row = _existing(session, SourceNode, ae_title)
        _refuse_of_block(row)
        session.delete(row)
        return row


def list_destinations(engine: sa.Engine) -> list[Destination]:
    """Where results may go, by name."""
    with reading(engine) as session:
        return list(session.exec(select(Destination).order_by(col(Destination.name))))


def get_destination(engine: sa.Engine, name: str) -> Destination:
    """The destination of that name, in any case. Raises NotFound that lists those that there are."""
    with reading(engine) as session:
        return _destination(session, name)


def add_destination(engine: sa.Engine, destination: Destination) -> Destination:
    """Add it; what waits for it is tried at once. Raises Conflict when there is one of that name, in any case."""
    with _change(engine, "destination", destination.name) as session:
        taken = _same_name(session, destination.name)
        if taken is not None:
            raise Conflict(f"there is a destination named {taken.name!r} already", name=taken.name)
        end_pauses(session, destination.name)
        return inserted(session, destination)


def update_destination(engine: sa.Engine, name: str, **changes: Any) -> Destination:
    """Change what is named; returns the row as it is then. Raises NotFound.

    It may have been mended: what waits for it is tried at once. Of one that a block has made only `paused` can be
    changed here; anything else raises Conflict.
    """
    with _change(engine, "destination", name) as session:
        row = _destination(session, name)
        _refuse_of_block(row, changes)
        changed(row, changes)
        end_pauses(session, row.name)
        session.add(row)
        return row


def delete_destination(engine: sa.Engine, name: str) -> Destination:
    """Remove it; returns what it was. Deliveries to it that are left fail with its name. Raises NotFound, Conflict."""
    with _change(engine, "destination", name) as session:
        row = _destination(session, name)
        _refuse_of_block(row)
        session.delete(row)
        return row


@contextmanager
def _change(engine: sa.Engine, what: str, name: str) -> Iterator[Session]:
    """A transaction that no other change goes beside; the change is rung for when it is committed."""
    with transaction(engine) as session:
        session.execute(LOCK)
        ring(session, what, name)
        yield session


def _of_it(model: type[Group] | type[Association]) -> sa.ColumnElement[bool]:
    return col(model.aetitle) == col(AeTitle.name)


def _is_live() -> sa.ColumnElement[bool]:
    return col(Group.state).in_(LIVE_GROUPS)


def _is_open() -> sa.ColumnElement[bool]:
    return col(Association.closed).is_(None)


def _count(model: type[Group] | type[Association], *conditions: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    return sa.select(sa.func.count()).select_from(model).where(*conditions).correlate(AeTitle).scalar_subquery()


def ring(session: Session, what: str, name: str) -> None:
    """Tell whoever follows the configuration, when the transaction is committed: {"destination": "PACS"}, say."""
    session.execute(sa.select(sa.func.pg_notify(CHANNEL, json.dumps({what: name}))))


def _existing(session: Session, model: type[Row], key: str) -> Row:
    row = session.get(model, key)
    if row is None:
        raise _unknown(model, key, _names(session, model))
    return row


def _destination(session: Session, name: str) -> Destination:
    row = _same_name(session, name)
    if row is None:
        raise _unknown(Destination, name, _names(session, Destination))
    return row


def _same_name(session: Session, name: str) -> Destination | None:
    return session.exec(select(Destination).where(sa.func.lower(Destination.name) == name.lower())).one_or_none()


def end_pauses(session: Session, name: str) -> None:
    """Deliveries to the destination of that name that were put off may be handed out now."""
    session.execute(
        sa.update(Delivery)
        .where(
            col(Delivery.state) == DeliveryState.PENDING,
            col(Delivery.not_before).is_not(None),
            sa.func.lower(col(Delivery.destination)) == name.lower(),
        )
        .values(not_before=None)
    )


def _refuse_of_block(row: SourceNode | Destination, changes: Mapping[str, Any] | None = None) -> None:
    """A row that a block has made would be made again by it. To pause one is the operators' business alone."""
    others = {name for name, value in (changes or {}).items() if name != "paused" and getattr(row, name) != value}
    if row.block and (changes is None or others):
        key = row.name if isinstance(row, Destination) else row.ae_title
        noun = "destination" if isinstance(row, Destination) else "source"
        raise Conflict(f"{noun} {key!r} is made of the Prefect block {row.block!r}: change or delete that", name=key)


def _names(session: Session, model: type[Row]) -> Sequence[str]:
    rows = sa.inspect(model).primary_key[0]
    alive = sa.select(rows).order_by(rows)
    return session.execute(alive.where(~col(AeTitle.draining)) if model is AeTitle else alive).scalars().all()


def _unknown(model: type[Row], key: str, names: Sequence[str] = ()) -> NotFound:
    noun = {AeTitle: "AE title", SourceNode: "source", Destination: "destination"}[model]
    known = f"; there are {', '.join(names)}" if names else ""
    return NotFound(f"there is no {noun} {key!r}{known}", name=key)


def _refuse_taken_title(session: Session, aetitle: AeTitle) -> None:
    query = select(AeTitle).where(col(AeTitle.ae_title) == aetitle.ae_title, col(AeTitle.name) != aetitle.name)
    other = session.exec(query).one_or_none()
    if other is not None:
        state = ", which was deleted and still drains" if other.draining else ""
        raise Conflict(f"AE title {aetitle.ae_title!r} is that of {other.name!r}{state}", name=other.name)


def inserted(session: Session, row: Row) -> Row:
    """A new row."""
    row.created = row.updated = datetime.now(UTC)
    session.add(row)
    return row


def changed(row: Row, changes: Mapping[str, Any]) -> None:
    """Set these columns, and when that was."""
    for name, value in changes.items():
        setattr(row, name, value)
    row.updated = datetime.now(UTC)
