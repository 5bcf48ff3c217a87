"""Whether instances that a peer asks for by storage commitment are ours to answer for."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import col

from clara_flow.errors import ClaraFlowError
from clara_flow.infra.postgres import records_url
from clara_flow.records import dicom_ingest
from clara_flow.records.database import connect, statements
from clara_flow.records.dicom_models import Group, GroupState, Instance
from clara_flow.services.dicom.journal import JournalReader
from clara_flow.services.dicom.journal_entries import Stored
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.wire.command_set import Status
from clara_flow.services.dicom.wire.commitment import SAFE, CommitmentCheck, Reference
from clara_flow.settings import Settings

log = logging.getLogger(__name__)


def asking_the_records(settings: Settings) -> CommitmentCheck:
    """A check that looks into the tables and the journals; it connects when it is asked for the first time.

    While the database is away nothing is promised: the peer is told of a processing failure, and asks again (PS3.3
    section C.14, Failure Reason 0110H).
    """
    engine: sa.Engine | None = None
    journals = JournalReader(Places.of(settings).spool)

    def check(references: Sequence[Reference]) -> Sequence[int]:
        nonlocal engine
        try:
            engine = engine or connect(records_url(settings), pool_size=1)
            return reasons(engine, journals, references)
        except ClaraFlowError as error:
            log.warning("a request for storage commitment cannot be answered now: %s", error)
            return [Status.PROCESSING_FAILURE] * len(references)

    return check


def reasons(engine: sa.Engine, journals: JournalReader, references: Sequence[Reference]) -> list[int]:
    """For each reference SAFE, or the Failure Reason.

    An instance is safe when a group has it that was not discarded, or when it will have it: when a journal tells of it
    behind what is in the tables. Raises ServiceError when the database is away, StorageError.
    """
    wanted = {reference.sop_instance for reference in references}
    classes = _grouped(engine, wanted)
    if missing := wanted - classes.keys():
        arriving = _arriving(engine, journals, missing)
        # Then again: what was not in a table before its journal was looked at is in one by now, or in `arriving`.
        classes |= {uid: arriving.get(uid, set()) | found for uid, found in _grouped(engine, missing).items()}
        classes = arriving | classes
    return [_reason(reference, classes.get(reference.sop_instance, set())) for reference in references]


def _grouped(engine: sa.Engine, instances: Collection[str]) -> dict[str, set[str]]:
    """SOP classes of these instances, as groups have them."""
    query = (
        sa.select(col(Instance.sop_instance_uid), col(Instance.sop_class_uid))
        .join(Group, col(Group.id) == col(Instance.group_id))
        .where(
            col(Instance.sop_instance_uid) == sa.any_(sa.cast(list(instances), ARRAY(sa.Text))),
            col(Group.state) != GroupState.DISCARDED,
        )
    )
    classes: dict[str, set[str]] = {}
    with statements(engine) as connection:
        for sop_instance, sop_class in connection.execute(query):
            classes.setdefault(sop_instance, set()).add(sop_class)
    return classes


def _arriving(engine: sa.Engine, journals: JournalReader, instances: Collection[str]) -> dict[str, set[str]]:
    """The same of those that stand in journals and not yet in the tables."""
    classes: dict[str, set[str]] = {}
    offsets = dicom_ingest.offsets(engine)
    for name in journals.names():
        after = offsets.get(name, 0)
        offset = -1
        while after != offset:
            offset = after
            entries, after = journals.read(name, offset)
            for entry in entries:
                if isinstance(entry, Stored) and entry.sop_instance in instances:
                    classes.setdefault(entry.sop_instance, set()).add(entry.sop_class)
    return classes


def _reason(reference: Reference, classes: set[str]) -> int:
    if not classes:
        return Status.NO_SUCH_INSTANCE
    return SAFE if reference.sop_class in classes else Status.CLASS_INSTANCE_CONFLICT
