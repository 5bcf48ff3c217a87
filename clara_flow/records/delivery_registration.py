"""What is registered for delivery becomes tasks: once, whoever registers it how often."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col, select

from clara_flow.errors import Conflict, InputError, StaleOwner
from clara_flow.records import inference, transitions
from clara_flow.records.database import transaction
from clara_flow.records.delivery_steps import clock, offer
from clara_flow.records.dicom_models import Delivery, DeliveryState
from clara_flow.records.owner import Owner
from clara_flow.records.state_machine import JobState
from clara_flow.records.transitions import storable

_AGENT = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]*[A-Za-z0-9])?")


def checked_agent(name: str, own_agents: Collection[str] = ()) -> str:
    """The name of an agent, as given. Raises InputError for one that breaks Clara's rule and is not our own."""
    if not _AGENT.fullmatch(name) and name.casefold() not in {own.casefold() for own in own_agents}:
        raise InputError(
            "the name of an agent has letters, digits and hyphens, begins with a letter and does not end with a hyphen"
        )
    return name


def checked_uris(uris: Sequence[str]) -> list[str]:
    """Names of files relative to the payload's folder, without a leading slash, each once.

    Raises InputError for what is no such name: they become paths.
    """
    names: dict[str, None] = {}
    for uri in uris:
        name = uri.lstrip("/")
        parts = name.split("/")
        if not name or not name.isprintable() or any(part in {"", ".", ".."} for part in parts):
            raise InputError("a uri must be the name of a file inside the payload, such as operators/writer/seg.dcm")
        names[str(PurePosixPath(name))] = None
    return list(names)


def destinations_in(parameters: str) -> list[str]:
    """The names in an agent's parameters: a JSON text or a list of them, each name once whatever its case.

    Empty for everything else.

    >>> destinations_in('["PACS", "pacs", "ARCHIVE"]'), destinations_in('"PACS"'), destinations_in('{"a": 1}')
    (['PACS', 'ARCHIVE'], ['PACS'], [])
    """
    try:
        value = json.loads(parameters)
    except (ValueError, RecursionError):
        return []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and _is_name(name) for name in names):
        return []
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(name.strip().casefold(), name.strip())
    return list(found.values())


def _is_name(text: str) -> bool:
    return text.isprintable() and bool(text.strip())


def checked_text(text: str) -> str:
    """`text` as given. Raises InputError when the database cannot keep it."""
    if "\0" in text or storable(text) != text:
        raise InputError("a text with a NUL or half a character cannot be kept")
    return text


def register(
    engine: sa.Engine,
    *,
    job_id: str | uuid.UUID,
    pipeline_id: str | uuid.UUID = "",
    payload_id: str | uuid.UUID = "",
    agent: str,
    parameters: str = "",
    uris: Sequence[str],
    delivery_id: uuid.UUID | None = None,
    own_agents: Collection[str] = (),
    stow_agent: str = "",
    owner: Owner | None = None,
) -> list[Delivery]:
    """Register files of a payload for delivery. Returns the tasks that there are then.

    parameters  JSON text for the agent alone.
    delivery_id idempotency key: registering again under it makes nothing. It is the task's id; where destinations are
                named, each task's is made of it and the destination (UUID version 5).
    own_agents  names of the agents that are ours: several destinations in the parameters become a task each, whose
                parameters name that one, as Clara's exporters expect it.
    stow_agent  the one of them that delivers by STOW-RS: results of an inference request's job that are registered for
                it go to each DICOMweb server that the request names, too; each is a task of its own.
    owner       the runner of the job: nothing is registered for a job that is not its own any more.

    Raises InputError for what cannot be delivered, StaleOwner, and Conflict where other files were registered under the
    key and were handed out already; a task that waits takes the new ones.
    """
    agent, names = checked_agent(agent, own_agents), checked_uris(uris)
    if not names:
        raise InputError("nothing to deliver: uris is empty")
    key = delivery_id or uuid.uuid4()
    ours = agent.casefold() in {own.casefold() for own in own_agents}
    split = {_id_of(key, name): (name, json.dumps(name)) for name in destinations_in(parameters)} if ours else {}
    common: dict[str, Any] = {
        "job_id": checked_text(str(job_id)),
        "pipeline_id": checked_text(str(pipeline_id)),
        "payload_id": checked_text(str(payload_id)),
        "agent": agent,
        "uris": names,
    }
    with transaction(engine) as session:
        if owner is not None:
            _check_owner(session, job_id, owner)
        if stow_agent and agent.casefold() == stow_agent.casefold():
            for output in inference.outputs_of_job(session, common["job_id"], common["payload_id"]):
                split[_id_of(key, output.destination)] = output.destination, checked_text(parameters)
        rows: list[dict[str, Any]] = [
            {"id": task_id, "destination": destination, "parameters": text, **common}
            for task_id, (destination, text) in (split or {key: ("", checked_text(parameters))}).items()
        ]
        now = clock(session)
        _store(session, rows, now)
        query = select(Delivery).where(col(Delivery.id).in_([row["id"] for row in rows]))
        found = {row.id: row for row in session.exec(query)}
        return [found[row["id"]] for row in rows]


def _id_of(key: uuid.UUID, destination: str) -> uuid.UUID:
    return uuid.uuid5(key, destination.casefold())


def _check_owner(session: Session, job_id: str | uuid.UUID, owner: Owner) -> None:
    job = transitions.locked(session, uuid.UUID(str(job_id)))
    transitions.check_owner(job, owner)
    if job.state is not JobState.RUNNING:
        raise StaleOwner(f"job {job.id} is over ({job.phase}): it registers nothing any more", job=str(job.id))


def _store(session: Session, rows: Sequence[dict[str, Any]], now: datetime) -> None:
    """Insert those that are new; of the others, correct what waits. Rows are locked by id, so that none deadlock."""
    stamped = [{**row, "state": DeliveryState.PENDING, "created": now, "updated": now} for row in rows]
    stamped.sort(key=lambda row: row["id"].bytes)
    statement = insert(Delivery).values(stamped).on_conflict_do_nothing(index_elements=["id"])
    new = set(session.execute(statement.returning(col(Delivery.id))).scalars())
    given = {row["id"]: row for row in rows}
    query = select(Delivery).where(col(Delivery.id).in_(given)).order_by(col(Delivery.id)).with_for_update()
    stored = list(session.exec(query))
    for row in stored:
        facts = {name: value for name, value in given[row.id].items() if getattr(row, name) != value}
        if facts and row.state is not DeliveryState.PENDING:
            raise Conflict(
                f"delivery {row.id} is {row.state}: what it delivers cannot be changed", delivery=str(row.id)
            )
        for name, value in facts.items():
            setattr(row, name, value)
            row.updated = now
    offer(session, *(row for row in stored if row.id in new))
