"""Whether instances that a peer asks for by storage commitment are ours to answer for."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import sqlalchemy as sa
from sqlmodel import col

from clara_flow.errors import ClaraFlowError
from clara_flow.infra.postgres import records_url
from clara_flow.records.database import connect, statements
from clara_flow.records.dicom_models import Group, GroupState, Instance
from clara_flow.services.dicom.wire.command_set import Status
from clara_flow.services.dicom.wire.commitment import SAFE, CommitmentCheck, Reference
from clara_flow.settings import Settings

log = logging.getLogger(__name__)


def asking_the_records(settings: Settings) -> CommitmentCheck:
    """A check that looks into the tables; it connects when it is asked for the first time.

    An instance is safe when a group has it that was not discarded. While the database is away nothing is promised:
    the peer is told of a processing failure, and asks again (PS3.3 section C.14, Failure Reason 0110H).
    """
    engine: sa.Engine | None = None

    def check(references: Sequence[Reference]) -> Sequence[int]:
        nonlocal engine
        try:
            engine = engine or connect(records_url(settings), pool_size=1)
            return reasons(engine, references)
        except ClaraFlowError as error:
            log.warning("a request for storage commitment cannot be answered now: %s", error)
            return [Status.PROCESSING_FAILURE] * len(references)

    return check


def reasons(engine: sa.Engine, references: Sequence[Reference]) -> list[int]:
    """For each reference SAFE, or the Failure Reason. Raises ServiceError when the database is away."""
    query = (
        sa.select(col(Instance.sop_instance_uid), col(Instance.sop_class_uid))
        .join(Group, col(Group.id) == col(Instance.group_id))
        .where(
            col(Instance.sop_instance_uid).in_({reference.sop_instance for reference in references}),
            col(Group.state) != GroupState.DISCARDED,
        )
    )
    classes: dict[str, set[str]] = {}
    with statements(engine) as connection:
        for sop_instance, sop_class in connection.execute(query):
            classes.setdefault(sop_instance, set()).add(sop_class)
    return [_reason(reference, classes.get(reference.sop_instance, set())) for reference in references]


def _reason(reference: Reference, classes: set[str]) -> int:
    if not classes:
        return Status.NO_SUCH_INSTANCE
    return SAFE if reference.sop_class in classes else Status.CLASS_INSTANCE_CONFLICT
