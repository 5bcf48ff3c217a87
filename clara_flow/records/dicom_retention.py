"""What of studies, deliveries and inference requests has been over for long enough, and forgetting it.

Records stay for as long as any file that they tell of: a payload that is there keeps the groups, the deliveries and the
request that it came from. What is not over is never forgotten, nor are groups that failed: they wait for people.

The groups of one study for one AE title (the same key: those that amend one another, and sendings again) are a family,
and go together: one whose amendment is gone would look like one that was complete at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlmodel import col, select
from sqlmodel.sql.expression import SelectOfScalar

from clara_flow.records.database import statements, transaction
from clara_flow.records.dicom_group_queries import HISTORY
from clara_flow.records.dicom_models import Group


@dataclass(frozen=True, slots=True)
class Family:
    """The groups of one AE title with one key; see `dicom_models.Group`."""

    aetitle: str
    key_digest: str


# Groups that tell what to expect of the next ones (`dicom_group_queries.earlier_shapes`) stay, whatever their age.
EXPIRED = sa.text("""
WITH told AS (
    SELECT aetitle, key_digest, row_number() OVER (PARTITION BY aetitle, calling_ae ORDER BY opened DESC) AS place
    FROM dicom_groups one
    WHERE state = 'SUBMITTED' AND amends IS NULL AND NOT EXISTS (
        SELECT FROM dicom_groups later WHERE later.amends = one.id
    )
)
SELECT aetitle, key_digest FROM dicom_groups one
WHERE CAST(:key AS text) IS NULL OR (key_digest = :key AND aetitle = :aetitle)
GROUP BY aetitle, key_digest
HAVING bool_and(state IN ('SUBMITTED', 'DISCARDED'))
    AND max(ended) < clock_timestamp() - make_interval(secs => :kept_s)
    AND NOT EXISTS (
        SELECT FROM told WHERE place <= :history AND told.aetitle = one.aetitle AND told.key_digest = one.key_digest
    )
    AND NOT EXISTS (
        SELECT FROM dicom_groups mine
        JOIN dicom_submissions ON dicom_submissions.group_id = mine.id
        JOIN jobs ON jobs.id = dicom_submissions.job_id
        JOIN payloads ON payloads.id = jobs.payload_id
        WHERE payloads.removed IS NULL AND mine.aetitle = one.aetitle AND mine.key_digest = one.key_digest
    )
ORDER BY max(ended) LIMIT :limit
""")

ASSOCIATIONS = sa.text("""
DELETE FROM dicom_associations WHERE id IN (
    SELECT id FROM dicom_associations one
    WHERE how <> '' AND closed < clock_timestamp() - make_interval(secs => :kept_s)
        AND NOT EXISTS (SELECT FROM dicom_instances WHERE association = one.id)
    LIMIT :limit
)
""")

# Ids of jobs and payloads are texts here, dashed or not, as whoever registered the delivery gave them.
DELIVERIES = sa.text("""
DELETE FROM deliveries WHERE ended < clock_timestamp() - make_interval(secs => :kept_s) AND id IN (
    SELECT id FROM deliveries one
    WHERE ended < clock_timestamp() - make_interval(secs => :kept_s)
        AND NOT EXISTS (
            SELECT FROM payloads WHERE removed IS NULL
                AND replace(id::text, '-', '') = replace(lower(one.payload_id), '-', '')
        )
        AND NOT EXISTS (
            SELECT FROM jobs JOIN payloads ON payloads.id = jobs.payload_id WHERE payloads.removed IS NULL
                AND replace(jobs.id::text, '-', '') = replace(lower(one.job_id), '-', '')
        )
    ORDER BY ended LIMIT :limit
)
""")

REQUESTS = sa.text("""
DELETE FROM inference_requests WHERE transaction_id IN (
    SELECT transaction_id FROM inference_requests one
    WHERE state = 'Completed' AND updated < clock_timestamp() - make_interval(secs => :kept_s)
        AND NOT EXISTS (
            SELECT FROM payloads LEFT JOIN jobs ON jobs.payload_id = payloads.id
            WHERE removed IS NULL AND (jobs.id = one.job_id OR payloads.id = one.payload_id)
        )
    ORDER BY updated LIMIT :limit
)
""")

# Of one that is never ended nobody says anything more either.
STEPS = sa.text("""
DELETE FROM dicom_procedure_steps WHERE uid IN (
    SELECT uid FROM dicom_procedure_steps
    WHERE changed < clock_timestamp() - make_interval(secs => :kept_s)
    ORDER BY changed LIMIT :limit
)
""")


def expired_families(engine: sa.Engine, kept_s: float, limit: int) -> list[Family]:
    """Those that ended more than `kept_s` ago, at most `limit`, the oldest first."""
    with statements(engine) as connection:
        return [Family(*row) for row in connection.execute(EXPIRED, _facts(kept_s, limit))]


def groups_of(engine: sa.Engine, family: Family) -> list[Group]:
    """All of a family, in the order of their ids."""
    with transaction(engine) as session:
        return list(session.exec(_members(family)))


def forget_family(engine: sa.Engine, family: Family, kept_s: float) -> int:
    """Delete its groups with their instances and submissions, if its time is over still; how many groups."""
    with transaction(engine) as session:
        members = session.exec(_members(family).with_for_update()).all()  # whoever brings something late waits here
        if not session.execute(EXPIRED, _facts(kept_s, 1, family)).first():
            return 0
        session.execute(sa.delete(Group).where(col(Group.id).in_([group.id for group in members])))
        return len(members)


def forget_associations(engine: sa.Engine, kept_s: float, limit: int) -> int:
    """Delete those that ended more than `kept_s` ago and of which no instance is known; how many, at most `limit`."""
    return _delete(engine, ASSOCIATIONS, kept_s, limit)


def forget_deliveries(engine: sa.Engine, kept_s: float, limit: int) -> int:
    """Delete those that ended more than `kept_s` ago and have no files any more; how many, at most `limit`."""
    return _delete(engine, DELIVERIES, kept_s, limit)


def forget_requests(engine: sa.Engine, kept_s: float, limit: int) -> int:
    """Delete inference requests that ended more than `kept_s` ago and whose job has no files any more."""
    return _delete(engine, REQUESTS, kept_s, limit)


def forget_steps(engine: sa.Engine, kept_s: float, limit: int) -> int:
    """Delete procedure steps of which their modality has said nothing for `kept_s`; how many, at most `limit`."""
    return _delete(engine, STEPS, kept_s, limit)


def _members(family: Family) -> SelectOfScalar[Group]:
    mine = col(Group.aetitle) == family.aetitle, col(Group.key_digest) == family.key_digest
    return select(Group).where(*mine).order_by(col(Group.id))


def _facts(kept_s: float, limit: int, family: Family | None = None) -> dict[str, object]:
    return {
        "kept_s": kept_s,
        "limit": limit,
        "history": HISTORY,
        "aetitle": family.aetitle if family else None,
        "key": family.key_digest if family else None,
    }


def _delete(engine: sa.Engine, statement: sa.TextClause, kept_s: float, limit: int) -> int:
    with statements(engine) as connection:
        return connection.execute(statement, {"kept_s": kept_s, "limit": limit}).rowcount
