"""Questions about groups of instances; nothing here changes anything."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import col, select

from clara_flow.errors import InputError, NotFound
from clara_flow.records.database import reading, statements
from clara_flow.records.dicom_models import Association, Group, GroupState, Instance, Submission

ID_DIGITS = 32
SHOWN_HITS = 5
HISTORY = 20  # earlier groups of a source that are looked at

Shape = Mapping[tuple[str, str], int]  # (modality, series description) -> instances


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """A series of a group: how many instances came, and how many its own attributes say; None: they do not, or not all
    the same."""

    modality: str
    description: str
    instances: int
    related: int | None = None  # (0020,1209) Number of Series Related Instances
    acquisition: int | None = None  # (0020,1002) Images in Acquisition


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """What an open group's completeness is decided by.

    open_associations   those that gave it instances and may give more.
    unreleased          instances that count only once their association is released, or they were sent again.
    study_instances     (0020,1208), study_series (0020,1206): what attributes say of the study.
    """

    id: uuid.UUID
    aetitle: str
    calling_ae: str
    study_uid: str
    instances: int
    open_associations: int = 0
    unreleased: int = 0
    series: tuple[SeriesFacts, ...] = ()
    study_instances: int | None = None
    study_series: int | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """open, complete, failed: groups in that state. oldest_s: for how long the oldest complete one waits."""

    open: int
    complete: int
    failed: int
    oldest_s: float


def open_groups(engine: sa.Engine) -> list[tuple[uuid.UUID, str, float]]:
    """(id, name of the AE title, seconds until it is due) of every open group."""
    left = sa.func.extract("epoch", col(Group.due) - sa.func.clock_timestamp())
    query = sa.select(col(Group.id), col(Group.aetitle), sa.func.coalesce(left, 0)).where(
        col(Group.state) == GroupState.OPEN
    )
    with statements(engine) as connection:
        return [(group_id, aetitle, float(left_s)) for group_id, aetitle, left_s in connection.execute(query)]


def facts_of(engine: sa.Engine, ids: Collection[uuid.UUID]) -> list[GroupFacts]:
    """Of those groups that are open."""
    groups = select(Group).where(col(Group.id).in_(list(ids)), col(Group.state) == GroupState.OPEN)
    with reading(engine) as session:
        rows = list(session.exec(groups))
        found = [row.id for row in rows]
        opened = {row[0]: row[1] for row in session.execute(_open_associations(found))}
        unreleased = {row[0]: row[1] for row in session.execute(_unreleased(found))}
        series = session.execute(_series(found)).all()
    return [_facts(row, opened, unreleased, [one for one in series if one.group_id == row.id]) for row in rows]


def earlier_shapes(engine: sa.Engine, aetitle: str, calling_ae: str) -> list[Shape]:
    """What the last groups of that source were made of, those aside that were amended or amend others."""
    later = sa.orm.aliased(Group)
    last = (
        sa.select(col(Group.id))
        .where(
            col(Group.aetitle) == aetitle,
            col(Group.calling_ae) == calling_ae,
            col(Group.state) == GroupState.SUBMITTED,
            col(Group.amends).is_(None),
            ~sa.exists().where(col(later.amends) == col(Group.id)),
        )
        .order_by(col(Group.opened).desc())
        .limit(HISTORY)
    )
    kind = _attribute("Modality"), _attribute("SeriesDescription")
    query = (
        sa.select(col(Instance.group_id), *kind, sa.func.count())
        .where(col(Instance.group_id).in_(last), ~col(Instance.superseded))
        .group_by(col(Instance.group_id), *kind)
    )
    shapes: dict[uuid.UUID, dict[tuple[str, str], int]] = {}
    with statements(engine) as connection:
        for group_id, modality, description, count in connection.execute(query):
            shapes.setdefault(group_id, {})[modality or "", description or ""] = count
    return list(shapes.values())


def counts(engine: sa.Engine) -> Counts:
    """For signs of life and metrics."""
    state = col(Group.state)
    waited = sa.func.extract("epoch", sa.func.clock_timestamp() - sa.func.min(col(Group.completed)))
    query = sa.select(state, sa.func.count(), waited).where(state.not_in([GroupState.SUBMITTED, GroupState.DISCARDED]))
    with statements(engine) as connection:
        rows = {row[0]: (row[1], float(row[2] or 0)) for row in connection.execute(query.group_by(state))}
    number = {name: rows.get(name, (0, 0.0))[0] for name in GroupState}
    oldest_s = max(0.0, rows.get(GroupState.COMPLETE, (0, 0.0))[1])
    return Counts(number[GroupState.OPEN], number[GroupState.COMPLETE], number[GroupState.FAILED], oldest_s)


def get_group(engine: sa.Engine, reference: str) -> Group:
    """The group of that id, or of the unique beginning of an id. Raises InputError, NotFound."""
    prefix = reference.replace("-", "").lower()
    if not prefix or len(prefix) > ID_DIGITS or prefix.strip("0123456789abcdef"):
        raise InputError(f"{reference!r} is no group id: ids are hexadecimal")
    first, last = (uuid.UUID(prefix.ljust(ID_DIGITS, digit)) for digit in "0f")
    query = select(Group).where(col(Group.id).between(first, last)).order_by(col(Group.opened).desc())
    with reading(engine) as session:
        hits = session.exec(query.limit(SHOWN_HITS + 1)).all()
    if not hits:
        raise NotFound(f"there is no group {reference}")
    if len(hits) > 1:
        shown = ", ".join(str(row.id) for row in hits[:SHOWN_HITS])
        more = " and more" if len(hits) > SHOWN_HITS else ""
        raise InputError(f"several groups begin with {reference}: {shown}{more}. Give more of the id.")
    return hits[0]


def list_groups(
    engine: sa.Engine, *, states: Collection[GroupState] = (), aetitle: str | None = None, limit: int | None = None
) -> list[Group]:
    """The groups in any of these states (none: all), newest first."""
    query = select(Group).order_by(col(Group.opened).desc(), col(Group.id)).limit(limit)
    if states:
        query = query.where(col(Group.state).in_(list(states)))
    if aetitle is not None:
        query = query.where(col(Group.aetitle) == aetitle)
    with reading(engine) as session:
        return list(session.exec(query))


def groups_of_study(engine: sa.Engine, study_uid: str) -> list[Group]:
    """The groups with an instance of that study, the oldest first."""
    ids = sa.select(col(Instance.group_id)).where(col(Instance.study_uid) == study_uid)
    query = select(Group).where(col(Group.id).in_(ids)).order_by(col(Group.opened), col(Group.id))
    with reading(engine) as session:
        return list(session.exec(query))


def submissions_of(engine: sa.Engine, group_id: uuid.UUID) -> list[Submission]:
    """The jobs that a group becomes, by label."""
    query = select(Submission).where(col(Submission.group_id) == group_id).order_by(col(Submission.label))
    with reading(engine) as session:
        return list(session.exec(query))


def _attribute(name: str) -> sa.ColumnElement[str]:
    return col(Instance.attributes)[name].astext  # type: ignore[no-any-return]


def _open_associations(ids: Sequence[uuid.UUID]) -> Any:
    return (
        sa.select(col(Instance.group_id), sa.func.count(sa.distinct(col(Association.id))))
        .join(Association, col(Association.id) == col(Instance.association))
        .where(col(Instance.group_id).in_(ids), col(Association.how) == "")
        .group_by(col(Instance.group_id))
    )


def _unreleased(ids: Sequence[uuid.UUID]) -> Any:
    again, released = sa.orm.aliased(Instance), sa.orm.aliased(Association)
    sent_again = sa.exists().where(
        col(again.group_id) == col(Instance.group_id),
        col(again.sop_instance_uid) == col(Instance.sop_instance_uid),
        col(released.id) == col(again.association),
        sa.or_(~col(released.require_release), col(released.how) == "released"),
    )
    return (
        sa.select(col(Instance.group_id), sa.func.count())
        .join(Association, col(Association.id) == col(Instance.association))
        .where(
            col(Instance.group_id).in_(ids),
            ~col(Instance.superseded),
            col(Association.require_release),
            col(Association.how) != "released",
            ~sent_again,
        )
        .group_by(col(Instance.group_id))
    )


def _series(ids: Sequence[uuid.UUID]) -> Any:
    def agreed(name: str) -> Any:
        """The value of all instances that have one, NULL where they differ."""
        least, most = sa.func.min(_attribute(name)), sa.func.max(_attribute(name))
        return sa.case((least == most, least)).label(name)

    return (
        sa.select(
            col(Instance.group_id).label("group_id"),
            sa.func.count().label("instances"),
            agreed("Modality"),
            agreed("SeriesDescription"),
            agreed("NumberOfSeriesRelatedInstances"),
            agreed("ImagesInAcquisition"),
            agreed("NumberOfStudyRelatedInstances"),
            agreed("NumberOfStudyRelatedSeries"),
        )
        .where(col(Instance.group_id).in_(ids), ~col(Instance.superseded))
        .group_by(col(Instance.group_id), col(Instance.series_uid))
    )


def _facts(
    row: Group, opened: Mapping[uuid.UUID, int], unreleased: Mapping[uuid.UUID, int], series: Sequence[Any]
) -> GroupFacts:
    return GroupFacts(
        id=row.id,
        aetitle=row.aetitle,
        calling_ae=row.calling_ae,
        study_uid=row.study_uid,
        instances=row.instances,
        open_associations=opened.get(row.id, 0),
        unreleased=unreleased.get(row.id, 0),
        series=tuple(
            SeriesFacts(
                modality=one.Modality or "",
                description=one.SeriesDescription or "",
                instances=one.instances,
                related=_number(one.NumberOfSeriesRelatedInstances),
                acquisition=_number(one.ImagesInAcquisition),
            )
            for one in series
        ),
        study_instances=_agreed({one.NumberOfStudyRelatedInstances for one in series}),
        study_series=_agreed({one.NumberOfStudyRelatedSeries for one in series}),
    )


def _number(text: str | None) -> int | None:
    """A count of DICOM (IS: up to 12 characters); None for what is none."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and 0 < len(text) <= 12 and int(text) > 0 else None


def _agreed(texts: set[str | None]) -> int | None:
    values = {_number(text) for text in texts if text}
    return values.pop() if len(values) == 1 else None
