"""The delivery record: which files of a job go to which agent, and with which parameters.

    {"version": 1, "agent": "ClaraSCU", "parameters": "[\\"MYPACS\\"]", "job_id": "6f1c...", "operator": "register",
     "uris": ["/operators/seg-writer/dicom/seg.dcm"],
     "files": [{"input": "seg-writer.dicom", "name": "seg.dcm", "size": 1234, "sha256": "..."}],
     "created": "2030-01-01T00:00:00Z"}

`parameters` is a text that holds JSON, empty when none were given: the agent reads it, nobody else. `uris` are names
inside the job's payload, one for each of `files`, in the same order.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clara_flow.operators.sdk import PayloadCollection, PayloadEntry

RECORD_VERSION = 1
RECORD_NAME = "delivery"

_AGENT = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]*[A-Za-z0-9])?")


class RegistrationError(Exception):
    """The results cannot be registered; the message says why and what would help."""


def checked_agent(name: str) -> str:
    """The name of an agent, as given. Raises RegistrationError: letters, digits, inner hyphens, a letter first."""
    if not _AGENT.fullmatch(name):
        raise RegistrationError(
            f"agent {name!r}: a name has letters, digits and hyphens, begins with a letter and does not end with a "
            "hyphen, such as ClaraSCU"
        )
    return name


def checked_parameters(text: str) -> str:
    """The agent's parameters as JSON text: as given, or freed of the escapes that published definitions write.

    Raises RegistrationError where neither reading is JSON.

    >>> checked_parameters('["MYPACS"]') == checked_parameters('[\\\\"MYPACS\\\\"]') == '["MYPACS"]'
    True
    """
    if not text:
        return ""
    fault = ""
    for reading in (text, text.replace('\\"', '"')):
        try:
            json.loads(reading, parse_constant=_refuse_constant)
        except ValueError as problem:
            fault = fault or str(problem)
        else:
            return reading
    raise RegistrationError(f'--data {text!r} is not JSON ({fault}); expected a list such as ["MYPACS"]')


def delivery_record(
    inputs: PayloadCollection, *, agent: str, parameters: str, job_id: str, operator: str
) -> dict[str, Any]:
    """The record of all files of all inputs.

    Raises RegistrationError where an input is empty or holds what cannot be delivered.
    """
    if not len(inputs):
        raise RegistrationError("no inputs: name the results to register in the operator's `input`")
    uris, files = [], []
    for entry in inputs:
        found = list(_files(entry))
        if not found:
            raise RegistrationError(f"input {entry.keys[0]!r} holds no file; did the step before write its result?")
        for name, path in found:
            uris.append(f"{_payload_folder(entry)}/{name}")
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files.append({"input": entry.keys[0], "name": name, "size": path.stat().st_size, "sha256": digest})
    return {
        "version": RECORD_VERSION,
        "agent": agent,
        "parameters": parameters,
        "job_id": job_id,
        "operator": operator,
        "uris": uris,
        "files": files,
        "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


def is_registered(record: dict[str, Any], folder: Path) -> bool:
    """Whether `folder` holds a record that says the same, whenever it was made."""
    try:
        earlier = json.loads((folder / f"{RECORD_NAME}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(earlier, dict) and {**earlier, "created": None} == {**record, "created": None}


def _payload_folder(entry: PayloadEntry) -> str:
    """Where the input lies inside the payload: `/input`, `/operators/<from>` or `/operators/<from>/<output>`."""
    if not entry.source:
        return "/input"
    return f"/operators/{entry.source}/{entry.output}".rstrip("/")


def _files(entry: PayloadEntry) -> Iterator[tuple[str, Path]]:
    """(name relative to the input, path) of each file, in the order of names."""
    folder = Path(entry.path)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise RegistrationError(f"input {entry.keys[0]!r}: {name!r} is a link; a result must be a file of its own")
        if not path.is_file():
            continue
        if not name.isprintable():  # undecodable bytes come as surrogates, which are not printable either
            raise RegistrationError(f"input {entry.keys[0]!r}: {name!r} is not a readable file name; rename the result")
        yield name, path


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
