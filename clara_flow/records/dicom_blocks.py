"""Sources and destinations that Prefect blocks make: the tables follow the blocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import sqlalchemy as sa
from sqlmodel import Session, select

from clara_flow.records.database import transaction
from clara_flow.records.dicom_config import LOCK, changed, end_pauses, inserted, ring
from clara_flow.records.dicom_models import Destination, SourceNode

NOT_OF_BLOCKS = frozenset({"created", "updated", "paused"})  # columns that a block says nothing of

Row = TypeVar("Row", SourceNode, Destination)


@dataclass(slots=True)
class Followed:
    """Keys of rows, by what was done.

    put     added or changed. removed: their block is gone, or says nothing of them any more.
    freed   made by REST or CLI from now on: their blocks went with Prefect's database, and not by anybody's wish.
    taken   not done: there is a row of REST or CLI, which is never overwritten.
    """

    put: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    freed: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)


def follow_destinations(
    engine: sa.Engine, wanted: Sequence[Destination], *, unclear: Collection[str], since: datetime
) -> Followed:
    """Make the destinations of blocks those that are `wanted`: checked rows with `block` and `block_updated`.

    unclear     names of blocks that cannot be used as they are now: what they made before stays.
    since       UTC: when this database of Prefect learned of blocks. Rows of blocks that were saved before are freed,
                not removed.

    What waits for one that is put is tried at once. `paused` stays as it is. Names are compared without case.
    """
    with transaction(engine) as session:
        return _follow(session, Destination, _destination_key, wanted, unclear, since)


def follow_sources(
    engine: sa.Engine, wanted: Sequence[SourceNode], *, unclear: Collection[str], since: datetime
) -> Followed:
    """The same for sources, by AE title, whose case counts."""
    with transaction(engine) as session:
        return _follow(session, SourceNode, _source_key, wanted, unclear, since)


def _destination_key(row: Destination) -> str:
    return row.name.lower()


def _source_key(row: SourceNode) -> str:
    return row.ae_title


def _follow(
    session: Session,
    model: type[Row],
    key_of: Callable[[Row], str],
    wanted: Sequence[Row],
    unclear: Collection[str],
    since: datetime,
) -> Followed:
    session.execute(LOCK)
    done, what = Followed(), "destination" if model is Destination else "source"
    rows = {key_of(row): row for row in session.exec(select(model))}
    new = {key_of(row): row for row in wanted}
    for key, row in rows.items():
        if not row.block or key in new or row.block in unclear:
            continue
        if row.block_updated is not None and row.block_updated < since:
            changed(row, {"block": "", "block_updated": None})
            done.freed.append(key)
        else:
            session.delete(row)
            ring(session, what, key)
            done.removed.append(key)
    for key, row in new.items():
        former = rows.get(key)
        if former is None:
            inserted(session, row)
        elif not former.block:
            done.taken.append(key)
            continue
        elif differs := {
            column: value
            for column, value in row.model_dump(exclude=set(NOT_OF_BLOCKS)).items()
            if getattr(former, column) != value
        }:
            changed(former, differs)
        else:
            continue
        ring(session, what, key)
        if model is Destination:
            end_pauses(session, key)
        done.put.append(key)
    return done
