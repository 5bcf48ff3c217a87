"""What the tables are told of the spool's journals, and how AE titles group: values, nothing of the database.

The journals' own entries (`services.dicom.journal_entries`) say the same; the records know nothing of the services.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from clara_flow.records.dicom_models import StepStatus
from clara_flow.records.transitions import storable

STUDY_TAG = "0020000D"
SERIES_TAG = "0020000E"
LONGEST_TEXT = 128  # a UID has 64 characters at most (PS3.5 9.1); what is longer is a mistake, and stays distinct
LONGEST_VALUE = 512


class Late(StrEnum):
    """What becomes of instances that come when their group takes none any more."""

    IGNORE = "ignore"  # they are recorded, and no job is made of them
    RERUN = "rerun"  # a new group of all instances of the earlier one and these
    NEW = "new"  # a new group of these


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupingRule:
    """How an AE title groups.

    group_tag   GGGGEEEE of the attribute whose value makes a group.
    timeout_s   silence after which a group is complete, in seconds.
    overwrite   an instance that comes again in a group replaces the one before; else it is skipped.
    """

    group_tag: str = STUDY_TAG
    timeout_s: float = 5.0
    late: Late = Late.NEW
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An association began."""

    association: uuid.UUID
    at: datetime
    calling_ae: str
    called_ae: str
    aetitle: str
    peer: str = ""
    require_release: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An instance was received; `path` is relative to the spool, `keys` are digests of attributes by GGGGEEEE."""

    association: uuid.UUID
    at: datetime
    path: str
    size_bytes: int
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    transfer_syntax: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)

    def key(self, tag: str) -> str:
        """What its group is known by: the digest of the attribute; of the study where it has no such attribute."""
        if tag == SERIES_TAG:
            return digest(self.series_uid)
        return digest(self.study_uid) if tag == STUDY_TAG else self.keys.get(tag) or digest(self.study_uid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """An association ended; how: released, aborted or lost."""

    association: uuid.UUID
    at: datetime
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentAsked:
    """A peer is owed a report of storage commitment; `references`: SOP Instance UIDs by their SOP class.

    is_last     a long request has several lines.
    """

    association: uuid.UUID
    at: datetime
    report: uuid.UUID
    transaction_uid: str
    references: Mapping[str, Sequence[str]]
    is_last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentTold:
    """It is owed no longer."""

    association: uuid.UUID
    at: datetime
    report: uuid.UUID


@dataclass(frozen=True, slots=True)
class PerformedSeries:
    """Instances of one SOP class that a step has made in a series: UIDs."""

    series: str
    sop_class: str
    instances: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is known of a performed procedure step after its modality's last word.

    version     counts the words, from 1 on.
    studies     that it is for, by their UIDs.
    """

    uid: str
    version: int
    status: StepStatus
    studies: tuple[str, ...]
    series: tuple[PerformedSeries, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """A modality said something of a performed procedure step."""

    association: uuid.UUID
    at: datetime
    step: Step


Line = Opened | Stored | Stepped | Closed | CommitmentAsked | CommitmentTold


def digest(value: str) -> str:
    """SHA-256 (hex) of an attribute's value without its padding, as listeners make them."""
    return hashlib.sha256(value.strip(" \0").encode("utf-8", "replace")).hexdigest()


def fitted(text: str) -> str:
    """`text` as a column with an index takes it: without zeros, cut where it is too long, still distinct then."""
    text = storable(text)
    return text if len(text) <= LONGEST_TEXT else f"{text[:32]}~{digest(text)}"


def fitted_values(values: Mapping[str, str]) -> dict[str, str]:
    """Attributes as a JSON column takes them, cut where they are too long."""
    return {fitted(name): storable(value)[:LONGEST_VALUE] for name, value in values.items()}
