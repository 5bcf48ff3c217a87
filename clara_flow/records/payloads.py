"""Records of payloads. The files themselves are the payload store's."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import sqlalchemy as sa

from clara_flow.errors import InputError
from clara_flow.records.database import transaction
from clara_flow.records.models import Payload, PayloadKind


def create_payload(
    engine: sa.Engine,
    *,
    kind: PayloadKind = PayloadKind.PIPELINE,
    input_digest: str | None = None,
    input_files: int | None = None,
    input_bytes: int | None = None,
    payload_id: uuid.UUID | None = None,
) -> Payload:
    """A new payload. The `input_` facts are its sealed input's (`Manifest.digest`, `len(files)`, `size_bytes`)."""
    with transaction(engine) as session:
        payload = Payload(
            id=payload_id or uuid.uuid4(),
            kind=kind,
            created=datetime.now(UTC),
            input_digest=input_digest,
            input_files=input_files,
            input_bytes=input_bytes,
        )
        session.add(payload)
        return payload


def get_payload(engine: sa.Engine, payload_id: uuid.UUID) -> Payload:
    """The payload of that id. Raises InputError when there is none."""
    with transaction(engine) as session:
        payload = session.get(Payload, payload_id)
        if payload is None:
            raise InputError(f"there is no payload {payload_id}", payload_id=payload_id)
        return payload


def mark_removed(engine: sa.Engine, payload_id: uuid.UUID) -> None:
    """Note that the files of a payload are gone; the first time stays. Raises InputError when there is no such one."""
    with transaction(engine) as session:
        payload = session.get(Payload, payload_id, with_for_update=True)
        if payload is None:
            raise InputError(f"there is no payload {payload_id}", payload_id=payload_id)
        payload.removed = payload.removed or datetime.now(UTC)
