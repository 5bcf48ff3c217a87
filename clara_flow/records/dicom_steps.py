"""Performed procedure steps (MPPS): what modalities say that they do for a study, and whether it has arrived."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlmodel import Session, col

from clara_flow.records.database import statements
from clara_flow.records.dicom_lines import Stepped
from clara_flow.records.dicom_models import ProcedureStep, StepStatus

# Of each step of a group's study: the instances that it names, by where they are. One that came with another study of
# the same step is none of the group's; one that the AE title ignores will never come.
STEPS_OF = sa.text("""
    WITH named AS (
        SELECT DISTINCT step.uid AS step, instance.uid, step.status, its.id AS group_id, its.aetitle, its.study_uid
        FROM dicom_groups its
        JOIN dicom_procedure_steps step ON step.studies @> ARRAY[its.study_uid]
        LEFT JOIN LATERAL (
            SELECT made.uid
            FROM jsonb_array_elements(step.series) AS series (one),
                 jsonb_array_elements_text(series.one -> 'instances') AS made (uid)
            WHERE series.one ->> 'sop_class' <> ALL (:ignored)
        ) instance ON true
        WHERE its.id = :group_id AND its.study_uid <> ''
    ), placed AS (
        SELECT step, status, uid IS NOT NULL AS is_one, (
            SELECT min(CASE WHEN other.group_id = named.group_id THEN 1 WHEN other.study_uid = named.study_uid THEN 2
                       ELSE 3 END)
            FROM dicom_instances other
            JOIN dicom_groups holder ON holder.id = other.group_id
            WHERE other.sop_instance_uid = named.uid AND holder.aetitle = named.aetitle AND holder.state <> 'DISCARDED'
        ) AS place
        FROM named
    )
    SELECT status,
           count(*) FILTER (WHERE is_one AND coalesce(place, 0) <> 3),
           count(*) FILTER (WHERE place = 1),
           count(*) FILTER (WHERE is_one AND place IS NULL)
    FROM placed GROUP BY step, status ORDER BY step
""").bindparams(sa.bindparam("ignored", type_=ARRAY(sa.Text)))


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What a step of a group's study says of the group.

    named       instances of the study that it has made, as far as it told.
    here        those of them that are in the group.
    missing     those that were not received; the others are in earlier groups of the study.
    """

    status: StepStatus
    named: int = 0
    here: int = 0
    missing: int = 0


def keep(session: Session, line: Stepped) -> set[str]:
    """Write what a modality said, unless it said something later already; the studies that it concerns."""
    step = line.step
    values = {
        "version": step.version,
        "status": step.status,
        "studies": list(step.studies),
        "series": [
            {"series": one.series, "sop_class": one.sop_class, "instances": list(one.instances)} for one in step.series
        ],
        "changed": line.at,
    }
    statement = insert(ProcedureStep).values(uid=step.uid, **values)
    newer = col(ProcedureStep.version) < statement.excluded.version
    session.execute(statement.on_conflict_do_update(index_elements=["uid"], set_=values, where=newer))
    return set(step.studies)


def steps_of(engine: sa.Engine, group_id: uuid.UUID, ignored_classes: Collection[str] = ()) -> list[StepFacts]:
    """Of a group's study; none when it is not grouped by study.

    ignored_classes     SOP classes that the AE title does not take: what a step names of them is not counted.
    """
    with statements(engine) as connection:
        rows = connection.execute(STEPS_OF, {"group_id": group_id, "ignored": list(ignored_classes)}).all()
    return [StepFacts(StepStatus(status), named, here, missing) for status, named, here, missing in rows]


def statuses_of(engine: sa.Engine, study_uid: str) -> list[StepStatus]:
    """Of the steps that are for a study, the last word first."""
    query = (
        sa.select(col(ProcedureStep.status))
        .where(col(ProcedureStep.studies).contains([study_uid]))
        .order_by(col(ProcedureStep.changed).desc())
    )
    with statements(engine) as connection:
        return list(connection.execute(query).scalars())
