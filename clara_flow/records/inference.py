"""Records of REST inference requests: each is one transaction id, one job, and what was fetched for it so far."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col, select

from clara_flow.errors import Conflict, NotFound
from clara_flow.records.database import reading, statements, transaction
from clara_flow.records.delivery_steps import clock
from clara_flow.records.dicom_models import (
    Delivery,
    DeliveryState,
    InferenceRequest,
    InferenceState,
    InferenceStatus,
)
from clara_flow.records.models import Job

CHANNEL = "clara_flow_inference"
DIGEST, ITEMS = "digest", "items"  # keys of `InferenceRequest.fetched`
INPUTS, OUTPUTS = "inputresources", "outputresources"
OUTPUT = "output/"  # begins the names of servers that requests name; names of destinations have no slash
SHOWN_HOST, DIGITS = 100, 20
SECRETS = frozenset({"authid", "apikey"})
HIDDEN = "***"


@dataclass(frozen=True, slots=True)
class Output:
    """A DICOMweb server that results of a request go to. authorization: the header's value, "" for none."""

    uri: str
    authorization: str = ""

    @property
    def destination(self) -> str:
        """Names it in deliveries: the same for all requests with this address, and no configured destination's name."""
        digest = hashlib.sha256(self.uri.encode()).hexdigest()
        return f"{OUTPUT}{(urlsplit(self.uri).hostname or '')[:SHOWN_HOST]}/{digest[:DIGITS]}"


def submit(
    engine: sa.Engine, transaction_id: str, body: Mapping[str, Any], outputs: Sequence[Output] = ()
) -> InferenceRequest:
    """Queue a request; the same one again gives what it gave the first time.

    outputs     where its results go; of several with one address, the first counts.

    Raises Conflict when another request has that transaction id.
    """
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    now = datetime.now(UTC)
    distinct = {output.destination: output for output in reversed(outputs)}
    new = InferenceRequest(
        transaction_id=transaction_id, body=_without(OUTPUTS, body), job_id=uuid.uuid4(), payload_id=uuid.uuid4(),
        fetched={DIGEST: digest, ITEMS: []}, outputs=[asdict(output) for output in reversed(distinct.values())],
        created=now, updated=now,
    )  # fmt: skip
    values = {column.name: getattr(new, key) for key, column in sa.inspect(InferenceRequest).columns.items()}
    with transaction(engine) as session:
        session.execute(insert(InferenceRequest).values(values).on_conflict_do_nothing())
        row = session.get_one(InferenceRequest, transaction_id)
        if row.fetched.get(DIGEST) != digest:
            raise Conflict("another inference request has this transactionID: give each request one of its own")
        session.execute(sa.select(sa.func.pg_notify(CHANNEL, "{}")))
        return row


def find(engine: sa.Engine, reference: str) -> InferenceRequest:
    """The request of that transaction id, or of that job id. Raises NotFound."""
    with reading(engine) as session:
        row = session.get(InferenceRequest, reference)
        if row is None and (job_id := _uuid(reference)) is not None:
            query = select(InferenceRequest).where(col(InferenceRequest.job_id) == job_id)
            row = session.exec(query).first()
        if row is None:
            raise NotFound("there is no inference request of that transactionID or job id")
        return row


def due(engine: sa.Engine, *, limit: int = 100, but: Collection[str] = ()) -> list[InferenceRequest]:
    """Requests to work at, oldest first: those that wait, and those that a process which ended had in hand.

    but     transaction ids that the caller has in hand itself.
    """
    not_before, now = col(InferenceRequest.not_before), sa.func.clock_timestamp()
    query = (
        select(InferenceRequest)
        .where(
            col(InferenceRequest.state) != InferenceState.COMPLETED,
            # The last: the clock was set back after its wait had begun.
            sa.or_(not_before.is_(None), not_before <= now, col(InferenceRequest.updated) > now),
            col(InferenceRequest.transaction_id).not_in(list(but)),
        )
        .order_by(col(InferenceRequest.created))
        .limit(limit)
    )
    with reading(engine) as session:
        return list(session.exec(query))


def begin(engine: sa.Engine, transaction_id: str) -> InferenceRequest:
    """Somebody works at it."""
    with transaction(engine) as session:
        return _changed(session, transaction_id, state=InferenceState.IN_PROCESS, not_before=None)


def note_item(engine: sa.Engine, transaction_id: str, item: str) -> None:
    """Something was fetched whole: it is not fetched again."""
    with transaction(engine) as session:
        row = _locked(session, transaction_id)
        if item not in row.fetched.get(ITEMS, ()):
            fetched = {**row.fetched, ITEMS: [*row.fetched.get(ITEMS, ()), item]}
            _changed(session, transaction_id, fetched=fetched)


def note_progress(engine: sa.Engine, transaction_id: str, message: str) -> None:
    """How the fetching goes on, for people; nothing once it is over."""
    with transaction(engine) as session:
        if _locked(session, transaction_id).state is InferenceState.IN_PROCESS:
            _changed(session, transaction_id, message=message)


def retry_later(
    engine: sa.Engine, transaction_id: str, *, delay_s: float, message: str, counts: bool = True
) -> InferenceRequest:
    """There will be another attempt. counts: this one failed, and was one of those that there may be."""
    with transaction(engine) as session:
        row = _locked(session, transaction_id)
        not_before = clock(session) + timedelta(seconds=delay_s)
        facts = {"attempts": row.attempts + counts, "not_before": not_before, "message": message}
        return _changed(session, transaction_id, state=InferenceState.QUEUED, **facts)


def complete(engine: sa.Engine, transaction_id: str, status: InferenceStatus, *, message: str = "") -> InferenceRequest:
    """It is over. What it says to log in for its inputs is forgotten; its outputs' is still needed."""
    with transaction(engine) as session:
        row = _locked(session, transaction_id)
        body = _without(INPUTS, row.body)
        facts: dict[str, Any] = {"status": status, "message": message, "not_before": None, "body": body}
        if status is InferenceStatus.FAIL:
            facts["outputs"] = []
        return _changed(session, transaction_id, state=InferenceState.COMPLETED, **facts)


def without_secrets(value: Any) -> Any:
    """A JSON value in which every secret is `***`."""
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if name.lower() in SECRETS and inner else without_secrets(inner)
            for name, inner in value.items()
        }
    return [without_secrets(inner) for inner in value] if isinstance(value, list) else value


def is_output(destination: str) -> bool:
    """Whether the destination of a delivery is a server that a request named."""
    return destination.startswith(OUTPUT)


def outputs_of_job(session: Session, job_id: str, payload_id: str) -> list[Output]:
    """Where results of a job go, if it is one of a request, or goes on from one; ids as texts, dashed or not."""
    asked, payload = _uuid(job_id), _uuid(payload_id)
    while asked is not None or payload is not None:
        query = select(InferenceRequest).where(
            sa.or_(col(InferenceRequest.job_id) == asked, col(InferenceRequest.payload_id) == payload)
        )
        if (row := session.exec(query).first()) is not None:
            return [Output(**output) for output in row.outputs]
        job = session.get(Job, asked) if asked is not None else None
        asked, payload = (job.resumes if job is not None else None), None
    return []


def output_of(engine: sa.Engine, delivery_id: uuid.UUID) -> Output:
    """Where that delivery goes, and how to log in there. Raises NotFound when its request is not known any more."""
    with reading(engine) as session:
        row = session.get(Delivery, delivery_id)
        for output in outputs_of_job(session, row.job_id, row.payload_id) if row is not None else ():
            if row is not None and output.destination.casefold() == row.destination.casefold():
                return output
    raise NotFound("the inference request that it is of is not known any more")


def output_waited_for(engine: sa.Engine, destination: str) -> Output:
    """The server of that name, of a delivery that waits or is under way. Raises NotFound."""
    query = sa.select(col(Delivery.id)).where(
        col(Delivery.destination) == destination,
        col(Delivery.state).in_([DeliveryState.PENDING, DeliveryState.IN_PROGRESS]),
    )
    with statements(engine) as connection:
        waiting = list(connection.execute(query.order_by(col(Delivery.created))).scalars())
    for delivery_id in waiting:
        with suppress(NotFound):  # somebody registered that name, for a job that is of no such request
            return output_of(engine, delivery_id)
    raise NotFound("no inference request that is known names that server")


def _without(name: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """A body without the secrets of that member."""
    return {key: without_secrets(value) if key.lower() == name else value for key, value in body.items()}


def _locked(session: Session, transaction_id: str) -> InferenceRequest:
    return session.get_one(InferenceRequest, transaction_id, with_for_update=True)


def _changed(session: Session, transaction_id: str, **values: Any) -> InferenceRequest:
    row = session.get_one(InferenceRequest, transaction_id, with_for_update=True)
    for name, value in values.items():
        setattr(row, name, value)
    row.updated = clock(session)
    session.add(row)
    session.flush()
    return row


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
