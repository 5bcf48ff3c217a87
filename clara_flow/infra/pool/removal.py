"""How the files of a payload go, whoever decided it."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from clara_flow.errors import InputError
from clara_flow.records import payloads, upkeep
from clara_flow.records.log_archive import LogArchive
from clara_flow.records.payload_store import PayloadFolder, PayloadStore
from clara_flow.records.upkeep import IdlePayload


def remove_payload(engine: sa.Engine, store: PayloadStore, archive: LogArchive, payload: IdlePayload) -> bool:
    """Remove a payload's files, unless somebody uses it now; its logs are kept. Whether they went.

    The record of a payload that never became a job goes with them. Raises StorageError; it may be called again then.
    """
    after = payload.idle_since + timedelta(microseconds=1)
    if payload.id not in {still.id for still in upkeep.idle_payloads(engine, after, only=payload.id)}:
        return False
    folder: PayloadFolder = store.folder(payload.id)
    if payload.job_ids:
        archive.keep(folder, payload.idle_since)
    store.remove(payload.id)
    try:
        payloads.mark_removed(engine, payload.id)
    except InputError:  # somebody deleted its record meanwhile
        return False
    if not payload.job_ids:
        upkeep.forget_payload(engine, payload.id)
    return True
