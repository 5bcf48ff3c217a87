"""Which files of the spool are still needed, and where else an instance's bytes are."""

from __future__ import annotations

import uuid
from collections.abc import Collection

import sqlalchemy as sa
from sqlmodel import col, select

from clara_flow.records.database import reading, statements
from clara_flow.records.dicom_models import Group, GroupState, Instance, Submission
from clara_flow.records.models import Job

NEEDED = (GroupState.OPEN, GroupState.COMPLETE, GroupState.FAILED)


def removable(engine: sa.Engine, group_id: uuid.UUID) -> list[str]:
    """Files of a group, relative to the spool, that no group needs any more."""
    query = sa.select(col(Instance.path)).where(col(Instance.group_id) == group_id, ~_is_needed())
    with statements(engine) as connection:
        return sorted(connection.execute(query).scalars())


def removable_of_association(engine: sa.Engine, association: uuid.UUID) -> tuple[list[str], list[str]]:
    """Files of an association: those in the tables that no group needs any more, and those that some group needs."""
    query = sa.select(col(Instance.path), _is_needed()).where(col(Instance.association) == association).distinct()
    with statements(engine) as connection:
        rows = connection.execute(query).all()
    return sorted(path for path, needed in rows if not needed), sorted(path for path, needed in rows if needed)


def payloads_with(engine: sa.Engine, paths: Collection[str]) -> list[tuple[uuid.UUID, list[Instance]]]:
    """The payloads of jobs that instances at `paths` became part of, each with all instances of its group."""
    query = (
        sa.select(col(Instance.group_id), col(Job.payload_id))
        .join(Submission, col(Submission.group_id) == col(Instance.group_id))
        .join(Job, col(Job.id) == col(Submission.job_id))
        .where(col(Instance.path).in_(list(paths)), ~col(Instance.superseded))
        .distinct()
    )
    members: dict[uuid.UUID, list[Instance]] = {}
    with reading(engine) as session:
        found = session.execute(query).all()
        groups = {group_id for group_id, _ in found}
        current = select(Instance).where(col(Instance.group_id).in_(groups), ~col(Instance.superseded))
        for instance in session.exec(current):
            members.setdefault(instance.group_id, []).append(instance)
    return [(payload_id, members[group_id]) for group_id, payload_id in found]


def spooled(engine: sa.Engine, aetitle: str, study: str, series: str = "", instance: str = "") -> dict[str, str]:
    """What open groups of an AE title (its name) have of a study, or of a series or instance of it: files, relative to
    the spool, by SOP Instance UID."""
    query = (
        sa.select(col(Instance.sop_instance_uid), col(Instance.path))
        .join(Group, col(Group.id) == col(Instance.group_id))
        .where(
            col(Group.aetitle) == aetitle,
            col(Group.state) == GroupState.OPEN,
            col(Instance.study_uid) == study,
            ~col(Instance.superseded),
        )
    )
    if series:
        query = query.where(col(Instance.series_uid) == series)
    if instance:
        query = query.where(col(Instance.sop_instance_uid) == instance)
    with statements(engine) as connection:
        return {row.sop_instance_uid: row.path for row in connection.execute(query)}


def _is_needed() -> sa.ColumnElement[bool]:
    other = sa.orm.aliased(Instance)
    return (
        sa.exists()
        .where(
            col(other.path) == col(Instance.path),
            col(Group.id) == col(other.group_id),
            col(Group.state).in_(NEEDED),
        )
        .correlate(Instance)
    )
