"""What becomes of groups: complete, submitted, failed, retried, discarded. Each function is one transaction around the
pure state machine of `group_states`; times are the database's.

The jobs of a group are noted (`Submission`) before they are made, in the transaction that makes the group complete, and
their ids are made of the group and the label: however often a process ends between, each job is made once.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col, select

from clara_flow.errors import NotFound
from clara_flow.records.database import reading, transaction
from clara_flow.records.delivery_steps import clock
from clara_flow.records.dicom_models import Group, GroupState, Instance, Submission
from clara_flow.records.group_states import GroupEvent, Standing, advance
from clara_flow.records.transitions import announce, storable

CHANNEL = "clara_flow_dicom_groups"  # {"group", "event"}: somebody changed it


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job that a group shall become: the label that names it there, and a reference to its pipeline."""

    label: str
    pipeline: str


@dataclass(frozen=True, slots=True)
class Work:
    """A complete group with what its jobs are made of; instances in the order of their coming."""

    group: Group
    submissions: list[Submission]
    instances: list[Instance]


def job_id_of(group_id: uuid.UUID, label: str) -> uuid.UUID:
    """Id of the job that a group becomes for a label (UUID version 5): the same one whenever it is asked for."""
    return uuid.uuid5(group_id, label)


def complete(
    engine: sa.Engine,
    group_id: uuid.UUID,
    planned: Sequence[PlannedJob],
    *,
    instances: int,
    rule: str,
    expected: int | None = None,
) -> Group | None:
    """Close an open group that has `instances`, and note its jobs. None, and nothing, when it has changed since.

    planned     none: they are planned later (`plan`). rule: why it is complete, for people.

    Raises NotFound.
    """
    with transaction(engine) as session:
        group = _locked(session, group_id)
        if group.state is not GroupState.OPEN or group.instances != instances:
            return None
        _step(group, GroupEvent.COMPLETED)
        group.completed, group.due = clock(session), None
        group.rule, group.expected = storable(rule), expected
        _note_jobs(session, group_id, planned)
        return group


def plan(engine: sa.Engine, group_id: uuid.UUID, planned: Sequence[PlannedJob]) -> Work:
    """Note jobs of a complete group; those that are noted already stay. Returns its work anew. Raises NotFound."""
    with transaction(engine) as session:
        _locked(session, group_id)
        _note_jobs(session, group_id, planned)
    return work_of(engine, group_id)


def work_of(engine: sa.Engine, group_id: uuid.UUID) -> Work:
    """What the jobs of a group are made of. Raises NotFound."""
    current = select(Instance).where(col(Instance.group_id) == group_id, ~col(Instance.superseded))
    noted = select(Submission).where(col(Submission.group_id) == group_id).order_by(col(Submission.label))
    with reading(engine) as session:
        group = session.get(Group, group_id)
        if group is None:
            raise _unknown(group_id)
        return Work(group, list(session.exec(noted)), list(session.exec(current.order_by(col(Instance.id)))))


def note_submitted(engine: sa.Engine, group_id: uuid.UUID, label: str) -> None:
    """The job of that label was made. To say it twice is harmless."""
    _note(engine, group_id, label, submitted=sa.func.coalesce(Submission.submitted, sa.func.now()), message="")


def note_problem(engine: sa.Engine, group_id: uuid.UUID, label: str, message: str) -> None:
    """The job of that label could not be made; why, for people."""
    _note(engine, group_id, label, message=storable(message))


def finish(engine: sa.Engine, group_id: uuid.UUID) -> Group:
    """All jobs of a complete group were made. Raises NotFound, InvalidTransition."""
    with transaction(engine) as session:
        group = _locked(session, group_id)
        if group.state is not GroupState.SUBMITTED:
            _step(group, GroupEvent.SUBMITTED)
            group.ended, group.not_before, group.message = clock(session), None, ""
        return group


def fail(engine: sa.Engine, group_id: uuid.UUID, message: str, *, retries: int, delay_s: float) -> Group:
    """Jobs of a complete group could not be made: it is tried again after `delay_s`, `retries` times in all; then it
    has FAILED. Raises NotFound, InvalidTransition."""
    with transaction(engine) as session:
        group = _locked(session, group_id)
        if group.state is not GroupState.COMPLETE:  # somebody gave it up meanwhile
            return group
        is_over = _step(group, GroupEvent.FAILED, retries=retries) is GroupState.FAILED
        now = clock(session)
        group.message = storable(message)
        group.not_before = None if is_over else now + timedelta(seconds=delay_s)
        group.ended = now if is_over else None
        return group


def postpone(engine: sa.Engine, group_id: uuid.UUID, message: str, *, delay_s: float) -> None:
    """What its jobs need is not there now (room on the disk, a service): it waits, and that counts for nothing."""
    with transaction(engine) as session:
        group = _locked(session, group_id)
        group.message, group.not_before = storable(message), clock(session) + timedelta(seconds=delay_s)


def drop(engine: sa.Engine, group_id: uuid.UUID, rule: str) -> Group:
    """Nothing shall become of a complete group, by rule. Raises NotFound, Conflict."""
    return _give_up(engine, group_id, rule, by_rule=True)


def retry(engine: sa.Engine, group_id: uuid.UUID) -> Group:
    """Somebody wants the jobs of a group made now: of one that failed, waits for its turn, or waits for more instances.

    Jobs that were not made are planned anew, so that a changed AE title counts. Raises Conflict, NotFound.
    """
    with transaction(engine) as session:
        group = _locked(session, group_id)
        was_open = group.state is GroupState.OPEN
        _step(group, GroupEvent.RETRY)
        if was_open:
            group.completed, group.due, group.rule = clock(session), None, "somebody did not want to wait for more"
        group.not_before, group.ended, group.message = None, None, ""
        unmade = sa.delete(Submission).where(col(Submission.group_id) == group_id, col(Submission.submitted).is_(None))
        session.execute(unmade)
        announce(session, [(CHANNEL, {"group": str(group_id), "event": "retry"})])
        return group


def discard(engine: sa.Engine, group_id: uuid.UUID, reason: str = "") -> Group:
    """Somebody gives a group up; its files are removed. Raises Conflict when its jobs were made; NotFound."""
    return _give_up(engine, group_id, reason or "discarded", by_rule=False)


def _give_up(engine: sa.Engine, group_id: uuid.UUID, reason: str, *, by_rule: bool) -> Group:
    with transaction(engine) as session:
        group = _locked(session, group_id)
        if group.state is GroupState.DISCARDED:
            return group
        _step(group, GroupEvent.DISCARD)
        group.ended, group.due, group.not_before = clock(session), None, None
        group.message = storable(reason)
        if not by_rule:
            announce(session, [(CHANNEL, {"group": str(group_id), "event": "discard"})])
        return group


def _step(group: Group, event: GroupEvent, *, retries: int = 0) -> GroupState:
    standing, _ = advance(Standing(group.state, group.attempts), event, retries=retries, group=str(group.id))
    group.state, group.attempts = standing.state, standing.attempts
    return group.state


def _locked(session: Session, group_id: uuid.UUID) -> Group:
    group = session.get(Group, group_id, with_for_update=True)
    if group is None:
        raise _unknown(group_id)
    return group


def _unknown(group_id: uuid.UUID) -> NotFound:
    return NotFound(f"there is no group {group_id}", group=str(group_id))


def _note_jobs(session: Session, group_id: uuid.UUID, planned: Iterable[PlannedJob]) -> None:
    rows = [
        {"group_id": group_id, "label": job.label, "pipeline": job.pipeline, "job_id": job_id_of(group_id, job.label)}
        for job in planned
    ]
    if rows:
        session.execute(insert(Submission).values(rows).on_conflict_do_nothing())


def _note(engine: sa.Engine, group_id: uuid.UUID, label: str, **values: object) -> None:
    with transaction(engine) as session:
        row = sa.and_(col(Submission.group_id) == group_id, col(Submission.label) == label)
        session.execute(sa.update(Submission).where(row).values(**values))


@dataclass(frozen=True, slots=True)
class Turn:
    """A complete group that waits for its jobs. wait_s: until its next try by the database's clock, 0 for at once."""

    group_id: uuid.UUID
    aetitle: str
    completed: datetime
    wait_s: float


def turns(engine: sa.Engine) -> list[Turn]:
    """Of all complete groups, the oldest first."""
    query = (
        sa.select(
            col(Group.id),
            col(Group.aetitle),
            col(Group.completed),
            sa.func.extract("epoch", col(Group.not_before) - sa.func.clock_timestamp()),
        )
        .where(col(Group.state) == GroupState.COMPLETE)
        .order_by(col(Group.completed), col(Group.id))
    )
    with reading(engine) as session:
        rows = session.execute(query).all()
    return [Turn(group_id, aetitle, since, max(0.0, float(wait or 0))) for group_id, aetitle, since, wait in rows]
