"""Tasks of the results service as they travel: JSON with Clara's names, identifiers with or without dashes."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clara_flow.errors import InputError
from clara_flow.records.dicom_models import Delivery, DeliveryState

DEFAULT_SIZE, MOST_TASKS = 10, 1000
SHOWN_CHARACTERS = 2000  # of a message that an agent sends

_SIZE = re.compile(r"[0-9]{1,4}")
_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What somebody registers. `parameters` is a text with JSON, or ""."""

    job_id: str
    pipeline_id: str
    payload_id: str
    agent: str
    parameters: str
    uris: tuple[str, ...]


def task_json(task: Delivery) -> dict[str, Any]:
    """A task as agents read it; what follows `uris` is ours, and they ignore it."""
    return {
        "taskId": str(task.id),
        "jobId": task.job_id,
        "pipelineId": task.pipeline_id,
        "payloadId": task.payload_id,
        "parameters": task.parameters,
        "state": str(task.state),
        "agent": task.agent,
        "retries": task.retries,
        "uris": task.uris,
        "destination": task.destination,
        "message": task.message,
        "created": task.created.isoformat(),
        "updated": task.updated.isoformat(),
    }


def parse_id(text: str) -> uuid.UUID:
    """A GUID, dashed or not, in any case. Raises InputError."""
    if not _ID.fullmatch(text):
        raise InputError("the id of a task is a GUID, such as 6f1c2b1e-7a53-4f0e-9a5e-0a4b6a0a9f11")
    return uuid.UUID(text)


def parse_size(query: Mapping[str, str]) -> int:
    """How many tasks are asked for. Raises InputError unless it is 1 to 1000."""
    text = query.get("size", str(DEFAULT_SIZE))
    if not _SIZE.fullmatch(text) or not 1 <= int(text) <= MOST_TASKS:
        raise InputError(f"size is a number from 1 to {MOST_TASKS}")
    return int(text)


def parse_state(text: str | None) -> DeliveryState | None:
    """A state by its name, in any case. Raises InputError."""
    if text is None:
        return None
    for state in DeliveryState:
        if state.casefold() == text.casefold():
            return state
    raise InputError(f"state is one of {', '.join(DeliveryState)}")


def parse_failure(body: bytes) -> tuple[bool, str]:
    """RetryLater (a name in any case, or the bare boolean of before 0.6.0), and the message that ours may add.

    Raises InputError.
    """
    content = _parse(body)
    if isinstance(content, bool):
        return content, ""
    fields = _fields(content)
    retry_later, message = fields.get("retrylater"), fields.get("message", "")
    if not isinstance(retry_later, bool) or not isinstance(message, str):
        raise InputError('the body of a failure is {"RetryLater": true} or {"RetryLater": false}')
    return retry_later, message[:SHOWN_CHARACTERS]


def parse_registration(body: bytes) -> Registration:
    """Raises InputError."""
    fields = _fields(_parse(body))
    texts = {name: _text(fields.get(name.lower(), "")) for name in ("jobId", "pipelineId", "payloadId", "agent")}
    uris = fields.get("uris")
    if not isinstance(uris, list) or not all(isinstance(uri, str) for uri in uris):
        raise InputError("uris is a list of names of files in the payload")
    for name in ("jobId", "payloadId", "agent"):
        if not texts[name]:
            raise InputError(f"{name} is missing")
    parameters = fields.get("parameters")
    return Registration(
        job_id=texts["jobId"],
        pipeline_id=texts["pipelineId"],
        payload_id=texts["payloadId"],
        agent=texts["agent"],
        parameters=parameters if isinstance(parameters, str) else "" if parameters is None else json.dumps(parameters),
        uris=tuple(uris),
    )


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8-sig"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise InputError("the body is no JSON") from None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _fields(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputError("the body is no JSON object")
    return {name.lower(): value for name, value in content.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InputError("jobId, pipelineId, payloadId and agent are texts")
    return value
