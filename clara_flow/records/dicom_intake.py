"""Within one transaction: which group each received instance belongs to, and what its coming means for the group."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on
from sqlmodel import Session, col, select

from clara_flow.records import commitment_reports
from clara_flow.records.dicom_lines import (
    STUDY_TAG,
    Closed,
    CommitmentAsked,
    CommitmentTold,
    GroupingRule,
    Late,
    Line,
    Opened,
    Stepped,
    Stored,
    fitted,
    fitted_values,
)
from clara_flow.records.dicom_models import Association, Group, GroupState, Instance
from clara_flow.records.dicom_steps import keep
from clara_flow.records.group_states import GroupEffect, GroupEvent, Standing, advance

Key = tuple[str, str]  # name of the AE title, digest of what it groups by
IGNORED = "late: ignored"
INHERITED = ("sop_instance_uid", "sop_class_uid", "series_uid", "study_uid", "transfer_syntax", "path", "size_bytes",
             "association", "arrived", "attributes")  # fmt: skip


@dataclass(slots=True)
class _Current:
    """The instance that counts among those of one SOP Instance UID in a group: a stored row, or one to be stored."""

    size_bytes: int
    row_id: int | None = None
    new: dict[str, Any] | None = None
    inherited: bool = False


class Intake:
    """Takes lines of one journal; nothing is sure before the transaction of `session` is committed.

    touched     groups that took an instance, with the names of their AE titles.
    settled     open groups that an association of theirs ended for.
    spoken_of   open groups of whose study a modality said something.
    """

    def __init__(self, session: Session, journal: str, rules: Mapping[str, GroupingRule], now: datetime) -> None:
        self.touched: dict[uuid.UUID, str] = {}
        self.settled: set[uuid.UUID] = set()
        self.spoken_of: set[uuid.UUID] = set()
        self._session, self._journal, self._rules, self._now = session, journal, rules, now
        self._associations: dict[uuid.UUID, Association] = {}
        self._groups: dict[Key, Group] = {}
        self._ignored: dict[uuid.UUID, Group] = {}
        self._current: dict[tuple[uuid.UUID, str], _Current] = {}
        self._rows: list[dict[str, Any]] = []
        self._superseded: list[int] = []
        self._ended: dict[uuid.UUID, str] = {}
        self._uids: set[str] = set()
        self._studies: set[str] = set()  # that steps were told of

    def take(self, lines: Sequence[Line]) -> None:
        """All of them, in their order."""
        self._load_associations({line.association for line in lines})
        for line in lines:
            if isinstance(line, Opened):
                self._open(line)
        self._load_groups([line for line in lines if isinstance(line, Stored)])
        for line in lines:
            if isinstance(line, Stored):
                self._store(line)
            elif isinstance(line, Stepped):
                self._studies |= keep(self._session, line)
            elif isinstance(line, Closed):
                self._end(self._association(line), line.how, line.at)
            elif isinstance(line, CommitmentAsked):
                commitment_reports.owe(self._session, line, self._association(line))
            elif isinstance(line, CommitmentTold):
                commitment_reports.settle(self._session, line.report)
        self._flush()

    def lose(self) -> None:
        """Whoever wrote the journal is gone: the associations that it left open were lost."""
        query = select(Association).where(col(Association.journal) == self._journal, col(Association.how) == "")
        for association in self._session.exec(query):
            self._end(association, "lost", self._now)
        self._flush()

    def _load_associations(self, ids: set[uuid.UUID]) -> None:
        query = select(Association).where(col(Association.id).in_(ids))
        self._associations = {row.id: row for row in self._session.exec(query)}

    def _open(self, line: Opened) -> None:
        if line.association not in self._associations:
            self._add_association(
                line, aetitle=line.aetitle, calling_ae=fitted(line.calling_ae), called_ae=fitted(line.called_ae),
                peer=fitted(line.peer), require_release=line.require_release,
            )  # fmt: skip

    def _add_association(self, line: Line, **facts: Any) -> Association:
        association = Association(id=line.association, journal=self._journal, opened=line.at, **facts)
        self._session.add(association)
        self._associations[line.association] = association
        return association

    def _association(self, line: Line) -> Association:
        # Its first line may have been one that nobody could read: then no AE title is known, and people have to look.
        return self._associations.get(line.association) or self._add_association(line, aetitle="")

    def _rule(self, association: Association) -> GroupingRule:
        return self._rules.get(association.aetitle, GroupingRule())

    def _key(self, line: Stored) -> Key:
        association = self._association(line)
        return association.aetitle, line.key(self._rule(association).group_tag)

    def _load_groups(self, lines: Sequence[Stored]) -> None:
        """Lock the newest group of each key, those that were discarded aside, and learn what is in the open ones.

        One that another amends is not the newest, whatever a clock that was set back between them says.
        """
        keys = {self._key(line) for line in lines}
        if not keys:
            return
        later = sa.orm.aliased(Group)
        amended = sa.exists().where(col(later.amends) == col(Group.id), col(later.state) != GroupState.DISCARDED)
        newest = (
            sa.select(col(Group.id))
            .where(col(Group.key_digest).in_({key for _, key in keys}), col(Group.state) != GroupState.DISCARDED)
            .where(~amended)
            .ext(distinct_on(col(Group.aetitle), col(Group.key_digest)))
            .order_by(
                col(Group.aetitle),
                col(Group.key_digest),
                (col(Group.state) == GroupState.OPEN).desc(),
                col(Group.opened).desc(),
            )
        )
        ids = self._session.execute(newest).scalars().all()
        locked = select(Group).where(col(Group.id).in_(ids)).order_by(col(Group.id)).with_for_update()
        for group in self._session.exec(locked):
            key = (group.aetitle, group.key_digest)
            if key in keys and group.state is not GroupState.DISCARDED:
                self._groups[key] = group
        open_ids = [group.id for group in self._groups.values() if group.state is GroupState.OPEN]
        self._uids = {fitted(line.sop_instance_uid) for line in lines}
        self._load_current(open_ids)

    def _load_current(self, group_ids: Iterable[uuid.UUID]) -> None:
        other = sa.orm.aliased(Instance)
        elsewhere = sa.exists().where(
            col(other.path) == col(Instance.path), col(other.group_id) != col(Instance.group_id)
        )
        columns = col(Instance.group_id), col(Instance.sop_instance_uid), col(Instance.id), col(Instance.size_bytes)
        query = sa.select(*columns, elsewhere).where(
            col(Instance.group_id).in_(list(group_ids)),
            col(Instance.sop_instance_uid).in_(self._uids),
            ~col(Instance.superseded),
        )  # fmt: skip
        for group_id, uid, row_id, size_bytes, inherited in self._session.execute(query):
            self._current[group_id, uid] = _Current(size_bytes, row_id=row_id, inherited=inherited)

    def _store(self, line: Stored) -> None:
        association = self._association(line)
        rule = self._rule(association)
        group = self._group(association, rule, line)
        uid = fitted(line.sop_instance_uid)
        row = {
            "group_id": group.id,
            "sop_instance_uid": uid,
            "sop_class_uid": fitted(line.sop_class_uid),
            "series_uid": fitted(line.series_uid),
            "study_uid": fitted(line.study_uid),
            "transfer_syntax": fitted(line.transfer_syntax),
            "path": line.path,
            "size_bytes": line.size_bytes,
            "association": line.association,
            "arrived": line.at,
            "superseded": False,
            "attributes": fitted_values(line.attributes),
        }
        known = self._current.get((group.id, uid))
        if known is not None and not rule.overwrite and not known.inherited:
            row["superseded"] = True
        else:
            if known is not None:
                self._supersede(group, known)
            self._current[group.id, uid] = _Current(line.size_bytes, new=row)
            group.instances += 1
            group.size_bytes += line.size_bytes
        self._rows.append(row)
        group.last_arrival = self._now
        if group.state is GroupState.OPEN:
            group.due = self._now + timedelta(seconds=rule.timeout_s)
        self.touched[group.id] = group.aetitle

    def _supersede(self, group: Group, known: _Current) -> None:
        if known.new is not None:
            known.new["superseded"] = True
        elif known.row_id is not None:
            self._superseded.append(known.row_id)
        group.instances -= 1
        group.size_bytes -= known.size_bytes

    def _group(self, association: Association, rule: GroupingRule, line: Stored) -> Group:
        """The group that takes the instance."""
        key = association.aetitle, line.key(rule.group_tag)
        known = self._groups.get(key)
        if known is None:
            self._groups[key] = self._new_group(association, rule, line)
            return self._groups[key]
        event = GroupEvent.INSTANCE if known.state is GroupState.OPEN else GroupEvent.LATE
        _, effects = advance(Standing(known.state, known.attempts), event, group=str(known.id))
        if GroupEffect.AMEND not in effects:
            return known
        if rule.late is Late.IGNORE:
            return self._ignoring(known, association, rule, line)
        self._groups[key] = self._new_group(association, rule, line, amends=known.id)
        if rule.late is Late.RERUN:
            self._inherit(known, self._groups[key])
        return self._groups[key]

    def _new_group(
        self, association: Association, rule: GroupingRule, line: Stored, amends: uuid.UUID | None = None
    ) -> Group:
        group = Group(
            aetitle=association.aetitle,
            calling_ae=association.calling_ae,
            called_ae=association.called_ae,
            key_digest=line.key(rule.group_tag),
            study_uid=fitted(line.study_uid) if rule.group_tag == STUDY_TAG else "",
            opened=self._now,
            last_arrival=self._now,
            amends=amends,
        )
        self._session.add(group)
        return group

    def _ignoring(self, late_for: Group, association: Association, rule: GroupingRule, line: Stored) -> Group:
        """The discarded group that keeps account of what came late for `late_for`."""
        if late_for.id not in self._ignored:
            query = select(Group).where(
                col(Group.amends) == late_for.id,
                col(Group.state) == GroupState.DISCARDED,
                col(Group.rule) == IGNORED,
            )
            group = self._session.exec(query.with_for_update()).first()
            if group is None:
                group = self._new_group(association, rule, line, amends=late_for.id)
                group.state, group.rule, group.ended = GroupState.DISCARDED, IGNORED, self._now
            else:
                self._load_current([group.id])
            self._ignored[late_for.id] = group
        group = self._ignored[late_for.id]
        advance(Standing(group.state), GroupEvent.INSTANCE, group=str(group.id))
        return group

    def _inherit(self, earlier: Group, group: Group) -> None:
        """Give `group` all instances of an earlier one."""
        self._session.flush()
        columns = [getattr(Instance, name) for name in INHERITED]
        rows = sa.select(sa.literal(group.id), *columns).where(
            col(Instance.group_id) == earlier.id, ~col(Instance.superseded)
        )
        statement = sa.insert(Instance).from_select(["group_id", *INHERITED], rows)
        returned = statement.returning(col(Instance.sop_instance_uid), col(Instance.id), col(Instance.size_bytes))
        for uid, row_id, size_bytes in self._session.execute(returned).all():
            self._current[group.id, uid] = _Current(size_bytes, row_id=row_id, inherited=True)
            group.instances += 1
            group.size_bytes += size_bytes

    def _end(self, association: Association, how: str, at: datetime) -> None:
        if not association.how:
            association.how, association.closed = how, at
            self._ended[association.id] = how

    def _flush(self) -> None:
        self._session.flush()
        if self._superseded:  # before the rows that take their place
            change = sa.update(Instance).where(col(Instance.id).in_(self._superseded)).values(superseded=True)
            self._session.execute(change)
        if self._rows:
            self._session.execute(sa.insert(Instance), self._rows)
        if self._ended:
            self._settle()
        if self._studies:
            spoken_of = sa.select(col(Group.id)).where(
                col(Group.state) == GroupState.OPEN, col(Group.study_uid).in_(self._studies)
            )
            self.spoken_of.update(self._session.execute(spoken_of).scalars())

    def _settle(self) -> None:
        """What the end of associations means for groups, and for reports that their peers are owed."""
        commitment_reports.release(self._session, self._ended)
        query = (
            select(Group, Instance.association)
            .join(Instance, col(Instance.group_id) == col(Group.id))
            .where(col(Instance.association).in_(list(self._ended)))
            .distinct()
        )
        busy = set()
        for group, association in self._session.exec(query):
            busy.add(association)
            event = GroupEvent.RELEASED if self._ended[association] == "released" else GroupEvent.ABORTED
            _, effects = advance(Standing(group.state, group.attempts), event, group=str(group.id))
            if GroupEffect.LOOK in effects:
                self.settled.add(group.id)
        idle = set(self._ended) - busy  # echoes, and what was refused: nobody asks for them any more
        self._session.execute(sa.delete(Association).where(col(Association.id).in_(idle)))
