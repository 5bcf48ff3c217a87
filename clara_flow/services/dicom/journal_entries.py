"""What a journal of the spool says: one JSON object per line. No patient's name or number stands in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal, get_args
from uuid import UUID

How = Literal["released", "aborted", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFacts:
    """What the header of a received instance says; "" for a UID that it lacks.

    attributes      those that rules may look at, by keyword; several values are separated by backslashes.
    keys            `records.dicom_lines.digest` of those that groups are made by, by tag (GGGGEEEE); absent when empty.
    """

    sop_class: str
    sop_instance: str
    study: str
    series: str
    transfer_syntax: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An association was accepted.

    aetitle             name of the AE title's rule; calling, called: AE titles on the wire; peer: address of the host.
    require_release     whether its instances count only once it is released.
    """

    kind: ClassVar[str] = "open"
    association: UUID
    at: datetime
    calling: str
    called: str
    aetitle: str
    peer: str
    require_release: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored(InstanceFacts):
    """An instance is on the disk: a whole Part 10 file at `path`, relative to the spool, of `size` bytes."""

    kind: ClassVar[str] = "stored"
    association: UUID
    at: datetime
    path: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """An association ended: by its release, by an abort of either side, or with its connection."""

    kind: ClassVar[str] = "closed"
    association: UUID
    at: datetime
    how: How


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """A modality said something of a procedure step that it performs: see the file `path`, relative to the spool."""

    kind: ClassVar[str] = "step"
    association: UUID
    at: datetime
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentAsked:
    """A peer asked for storage commitment; a report is owed to it until `CommitmentTold`.

    report          its id. references: SOP Instance UIDs by their SOP class; a long request has several lines, all but
                    the last of which say so.
    """

    kind: ClassVar[str] = "commitment-asked"
    association: UUID
    at: datetime
    report: UUID
    transaction: str
    references: Mapping[str, Sequence[str]]
    is_last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentTold:
    """The peer acknowledged a report on the association on which it had asked."""

    kind: ClassVar[str] = "commitment-told"
    association: UUID
    at: datetime
    report: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentReported:
    """A peer said what it keeps of what we sent: SOP Instance UIDs, and Failure Reasons of those that it does not.

    A long report has several lines; each stands for itself.
    """

    kind: ClassVar[str] = "commitment-reported"
    association: UUID
    at: datetime
    transaction: str
    ok: Sequence[str]
    failed: Mapping[str, int]


Entry = Opened | Stored | Stepped | Closed | CommitmentAsked | CommitmentTold | CommitmentReported
KINDS: Mapping[str, type[Entry]] = {kind.kind: kind for kind in get_args(Entry)}
IDS = ("association", "report")


def now() -> datetime:
    """The time of an entry, UTC."""
    return datetime.now(UTC)


def to_line(entry: Entry) -> bytes:
    """As a line, with its newline."""
    content: dict[str, Any] = {"kind": entry.kind}
    content |= {name.name: getattr(entry, name.name) for name in fields(entry)}
    content |= {name: str(content[name]) for name in IDS if name in content}
    content["at"] = entry.at.isoformat()
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def from_line(line: bytes) -> Entry:
    """What `to_line` was given. Raises ValueError for anything else."""
    try:
        content: dict[str, Any] = json.loads(line)
        kind = KINDS[content.pop("kind")]
        content = {name.name: content[name.name] for name in fields(kind)}
        content |= {name: UUID(content[name]) for name in IDS if name in content}
        content["at"] = datetime.fromisoformat(content["at"])
        if kind is Closed and content["how"] not in get_args(How):
            raise ValueError(content["how"])
        return kind(**content)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        raise ValueError("this is no line of a journal") from None
