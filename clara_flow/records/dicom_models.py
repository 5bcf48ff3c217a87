"""The tables of what comes in and goes out: who may send, what was received, what it became, what is delivered.

No patient's name or number stands in them. `key_digest` and `attributes` see to that: a group's key is a digest, and of
an instance only what rules may look at is kept.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlmodel import Field

from clara_flow.records.models import Record, counted, flag, moment, words
from clara_flow.records.owner import Owner


class GroupState(StrEnum):
    """OPEN takes instances; COMPLETE takes none and becomes jobs; SUBMITTED: it has become all of them.

    FAILED      its jobs could not be made; somebody has to look (`clara-flow dicom groups retry`).
    DISCARDED   given up by somebody or by rule; its files may go.
    """

    OPEN = "OPEN"
    COMPLETE = "COMPLETE"
    SUBMITTED = "SUBMITTED"
    FAILED = "FAILED"
    DISCARDED = "DISCARDED"


class StepStatus(StrEnum):
    """Performed Procedure Step Status (0040,0252); the last two are final."""

    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    DISCONTINUED = "DISCONTINUED"


class DeliveryState(StrEnum):
    """The results service's words: Pending, InProgress, Succeeded, Failed (the last two are final).

    A failed task that somebody wants tried again becomes PENDING by `retry` only.
    """

    PENDING = "Pending"
    IN_PROGRESS = "InProgress"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ItemState(StrEnum):
    """One file of a delivery: COMMITTED is SENT and confirmed by storage commitment; POISON is never tried again."""

    PENDING = "PENDING"
    SENT = "SENT"
    COMMITTED = "COMMITTED"
    FAILED = "FAILED"
    POISON = "POISON"


class DestinationKind(StrEnum):
    """How a destination is reached."""

    DIMSE = "DIMSE"
    STOW = "STOW"


class InferenceState(StrEnum):
    """States of a REST inference request."""

    QUEUED = "Queued"
    IN_PROCESS = "InProcess"
    COMPLETED = "Completed"


class InferenceStatus(StrEnum):
    """Status of a REST inference request."""

    UNKNOWN = "Unknown"
    SUCCESS = "Success"
    FAIL = "Fail"


def text(default: str = "") -> Any:
    """A text that is never missing."""
    return Field(default=default, sa_type=sa.Text, sa_column_kwargs={"server_default": default})


def mapping() -> Any:
    """A JSON object, {} by default."""
    return Field(default_factory=dict, sa_type=JSONB, sa_column_kwargs={"server_default": "{}"})


def sequence() -> Any:
    """A JSON array, [] by default."""
    return Field(default_factory=list, sa_type=JSONB, sa_column_kwargs={"server_default": "[]"})


class AeTitle(Record, table=True):
    """An application entity that we are: what is sent to it becomes jobs.

    processor           name of the job processor plug-in; processor_settings: its own, validated by it.
    require_release     instances of an association that was aborted wait for being sent again.
    deidentify          name of a de-identification profile; "" means off.
    draining            deleted, but groups of it are still open: nothing new is taken.
    """

    __tablename__ = "dicom_aetitles"

    name: str = Field(sa_type=sa.Text, primary_key=True)
    ae_title: str = Field(sa_type=sa.Text, unique=True)
    overwrite_same_instance: bool = flag()
    ignored_sop_classes: list[str] = sequence()
    processor: str = text("ae-title")
    processor_settings: dict[str, str] = mapping()
    require_release: bool = flag()
    deidentify: str = text()
    draining: bool = flag()
    created: datetime = moment(nullable=False)
    updated: datetime = moment(nullable=False)


class SourceNode(Record, table=True):
    """Who may send. `host` is an IP address, a network (CIDR) or a host name.

    maximum_associations    at once; None: only the listener's own limit.
    user_name, user_secret  what its user identity negotiation must say; "" means that it is not asked for. The secret
                            is kept as a salted hash.
    block, block_updated    name of the Prefect block that it is made of, and when that was saved last, as Prefect tells
                            it; "" and None: made by REST or CLI.
    """

    __tablename__ = "dicom_sources"
    __table_args__ = (sa.CheckConstraint("(block = '') = (block_updated IS NULL)", name="block"),)

    ae_title: str = Field(sa_type=sa.Text, primary_key=True)
    host: str = Field(sa_type=sa.Text)
    maximum_associations: int | None = None
    user_name: str = text()
    user_secret: str = text()
    block: str = text()
    block_updated: datetime | None = moment()
    created: datetime = moment(nullable=False)
    updated: datetime = moment(nullable=False)


class Destination(Record, table=True):
    """Where results may go. DIMSE uses ae_title, host and port; STOW uses url.

    calling_ae              how we call ourselves there; "": the setting dicom_scu_ae_title.
    concurrency             deliveries at once. storage_commitment: whether the peer is asked to confirm.
    credentials             name of a Prefect block or variable of the environment with `user:password` or a bearer
                            token; never the secret itself.
    paused                  nothing is sent until somebody resumes it.
    block, block_updated    as of sources.
    """

    __tablename__ = "dicom_destinations"
    __table_args__ = (
        sa.CheckConstraint("port IS NULL OR port BETWEEN 1 AND 65535", name="port"),
        sa.CheckConstraint("kind <> 'DIMSE' OR (ae_title <> '' AND host <> '' AND port IS NOT NULL)", name="dimse"),
        sa.CheckConstraint("kind <> 'STOW' OR url <> ''", name="stow"),
        sa.CheckConstraint("concurrency >= 1", name="concurrency"),
        sa.CheckConstraint("(block = '') = (block_updated IS NULL)", name="block"),
    )

    name: str = Field(sa_type=sa.Text, primary_key=True)
    kind: DestinationKind = Field(
        default=DestinationKind.DIMSE,
        sa_type=words(DestinationKind, "kind"),
        sa_column_kwargs={"server_default": "DIMSE"},
    )
    ae_title: str = text()
    host: str = text()
    port: int | None = None
    url: str = text()
    tls: bool = flag()
    calling_ae: str = text()
    concurrency: int = counted(2)
    storage_commitment: bool = flag()
    deidentify: str = text()
    credentials: str = text()
    paused: bool = flag()
    block: str = text()
    block_updated: datetime | None = moment()
    created: datetime = moment(nullable=False)
    updated: datetime = moment(nullable=False)


class SpoolJournal(Record, table=True):
    """How far a listener's journal was read: `offset` bytes of file `name` are in the tables."""

    __tablename__ = "dicom_journals"

    name: str = Field(sa_type=sa.Text, primary_key=True)
    offset: int = Field(default=0, sa_type=sa.BigInteger, sa_column_kwargs={"server_default": "0"})


class Association(Record, table=True):
    """An association that instances came by, as its listener's journal tells of it. `peer` is the host's address.

    how             released, aborted or lost; "" while it is open.
    require_release its instances count only once it was released.
    """

    __tablename__ = "dicom_associations"

    id: uuid.UUID = Field(primary_key=True)
    journal: str = Field(sa_type=sa.Text, index=True)
    aetitle: str = Field(sa_type=sa.Text)
    calling_ae: str = text()
    called_ae: str = text()
    peer: str = text()
    require_release: bool = flag()
    opened: datetime = moment(nullable=False)
    closed: datetime | None = moment()
    how: str = text()


class Group(Record, table=True):
    """Instances that become jobs together: of one called AE title, with one value of the attribute it groups by.

    key_digest      SHA-256 of that value; study_uid is there when it is a study.
    last_arrival    of an instance; due: when it is complete if nothing more comes.
    expected        how many instances it should have, None if nobody knows; rule: why it was complete, for people.
    amends          the group of the same key that was complete before, for instances that came late.
    attempts        at making its jobs; not_before: of the next one.
    """

    __tablename__ = "dicom_groups"
    __table_args__ = (
        sa.Index(
            "ux_dicom_groups_open", "aetitle", "key_digest", unique=True, postgresql_where=sa.text("state = 'OPEN'")
        ),
        sa.Index("ix_dicom_groups_live", "state", postgresql_where=sa.text("state IN ('OPEN', 'COMPLETE')")),
    )

    id: uuid.UUID = Field(default_factory=uuid.uuid4, primary_key=True)
    aetitle: str = Field(sa_type=sa.Text, index=True)
    calling_ae: str = text()
    called_ae: str = text()
    key_digest: str = Field(sa_type=sa.Text, index=True)
    study_uid: str = text()
    state: GroupState = Field(default=GroupState.OPEN, sa_type=words(GroupState, "state"))
    opened: datetime = moment(nullable=False)
    last_arrival: datetime = moment(nullable=False)
    due: datetime | None = moment()
    completed: datetime | None = moment()
    ended: datetime | None = moment()
    instances: int = counted()
    size_bytes: int = Field(default=0, sa_type=sa.BigInteger, sa_column_kwargs={"server_default": "0"})
    expected: int | None = None
    rule: str = text()
    amends: uuid.UUID | None = Field(default=None, foreign_key="dicom_groups.id", ondelete="SET NULL", index=True)
    attempts: int = counted()
    not_before: datetime | None = moment()
    message: str = text()


class Instance(Record, table=True):
    """A received instance. `path` is relative to the spool; `attributes` are those that rules may look at, by keyword.

    association     id of the association it came by.
    superseded      another one with the same SOP Instance UID is in the group instead of it.
    """

    __tablename__ = "dicom_instances"
    __table_args__ = (
        # A group that amends another one has that one's instances, too.
        sa.UniqueConstraint("path", "group_id"),
        sa.Index("ix_dicom_instances_association", "association"),
        sa.Index(
            "ux_dicom_instances_current", "group_id", "sop_instance_uid", unique=True,
            postgresql_where=sa.text("NOT superseded"),
        ),
    )  # fmt: skip

    id: int | None = Field(default=None, sa_type=sa.BigInteger, primary_key=True)
    group_id: uuid.UUID = Field(foreign_key="dicom_groups.id", ondelete="CASCADE", index=True)
    sop_instance_uid: str = Field(sa_type=sa.Text, index=True)
    sop_class_uid: str = Field(sa_type=sa.Text)
    series_uid: str = Field(sa_type=sa.Text)
    study_uid: str = Field(sa_type=sa.Text, index=True)
    transfer_syntax: str = Field(sa_type=sa.Text)
    path: str = Field(sa_type=sa.Text)
    size_bytes: int = Field(sa_type=sa.BigInteger)
    association: uuid.UUID
    arrived: datetime = moment(nullable=False)
    superseded: bool = flag()
    attributes: dict[str, str] = mapping()


class ProcedureStep(Record, table=True):
    """What a modality says of a performed procedure step (MPPS): its last word, and no patient's.

    version     counts its words; an older one changes nothing.
    studies     Study Instance UIDs that the step is for.
    series      what it has made: `{"series", "sop_class", "instances"}`, all of them UIDs.
    """

    __tablename__ = "dicom_procedure_steps"
    __table_args__ = (sa.Index("ix_dicom_procedure_steps_studies", "studies", postgresql_using="gin"),)

    uid: str = Field(sa_type=sa.Text, primary_key=True)
    version: int
    status: StepStatus = Field(sa_type=words(StepStatus, "status"))
    studies: list[str] = Field(sa_type=ARRAY(sa.Text))
    series: list[dict[str, Any]] = sequence()
    changed: datetime = moment(nullable=False, index=True)


class Submission(Record, table=True):
    """One job that a group becomes: for `label` of its processor. The job's id is made of both, so it is made once."""

    __tablename__ = "dicom_submissions"

    group_id: uuid.UUID = Field(foreign_key="dicom_groups.id", ondelete="CASCADE", primary_key=True)
    label: str = Field(sa_type=sa.Text, primary_key=True)
    pipeline: str = Field(sa_type=sa.Text)
    job_id: uuid.UUID = Field(index=True)
    submitted: datetime | None = moment()
    message: str = text()


class Delivery(Record, table=True):
    """A delivery task of the results service: files of a payload for one destination of one agent.

    job_id, pipeline_id, payload_id     texts, as whoever registered it gave them.
    uris            names of files relative to the payload's folder.
    parameters      JSON text for the agent: as registered, or, where the agent is ours, the one destination.
    destination     that one's name; "" where the agent is another's, or the parameters name none.
    retries         how often it failed and was put back. lease, lease_expires: who works at it, and until when.
    owner_*         the process that does, where its agent told.
    not_before      of the next attempt.
    """

    __tablename__ = "deliveries"
    __table_args__ = (
        sa.CheckConstraint("(state = 'InProgress') = (lease IS NOT NULL)", name="leased_in_progress"),
        sa.CheckConstraint("(state IN ('Succeeded', 'Failed')) = (ended IS NOT NULL)", name="ended_is_final"),
        sa.Index("ix_deliveries_pending", "agent", "created", postgresql_where=sa.text("state = 'Pending'")),
        sa.Index("ix_deliveries_leased", "lease_expires", postgresql_where=sa.text("state = 'InProgress'")),
    )

    id: uuid.UUID = Field(default_factory=uuid.uuid4, primary_key=True)
    job_id: str = Field(sa_type=sa.Text, index=True)
    pipeline_id: str = text()
    payload_id: str = text()
    agent: str = Field(sa_type=sa.Text)
    destination: str = text()
    parameters: str = text()
    uris: list[str] = sequence()
    state: DeliveryState = Field(default=DeliveryState.PENDING, sa_type=words(DeliveryState, "state"))
    retries: int = counted()
    lease: uuid.UUID | None = None
    lease_expires: datetime | None = moment()
    owner_host: str | None = Field(default=None, sa_type=sa.Text)
    owner_pid: int | None = None
    owner_process_start: str | None = Field(default=None, sa_type=sa.Text)
    not_before: datetime | None = moment()
    message: str = text()
    discarded: bool = flag()
    created: datetime = moment(nullable=False)
    updated: datetime = moment(nullable=False)
    ended: datetime | None = moment(index=True)

    @property
    def owner(self) -> Owner | None:
        """The process that works at it; None where nobody does, or it did not tell."""
        if self.lease is None or self.owner_host is None or self.owner_pid is None:
            return None
        return Owner(self.owner_host, self.owner_pid, self.owner_process_start or "", self.lease)


class DeliveryItem(Record, table=True):
    """What became of one file of a delivery; `reason` is the peer's status or what kept it, for people."""

    __tablename__ = "delivery_items"

    delivery_id: uuid.UUID = Field(foreign_key="deliveries.id", ondelete="CASCADE", primary_key=True)
    uri: str = Field(sa_type=sa.Text, primary_key=True)
    state: ItemState = Field(default=ItemState.PENDING, sa_type=words(ItemState, "state"))
    sop_class_uid: str = text()
    sop_instance_uid: str = text()
    reason: str = text()
    attempts: int = counted()
    updated: datetime = moment(nullable=False)


class CommitmentReport(Record, table=True):
    """What a peer asked of storage commitment and was not told yet. It is judged when it is told.

    association     the one on which it asked. calling_ae: the peer; called_ae: what it called us; peer: its address.
    asked           [SOP class UID, [SOP Instance UIDs]] pairs; is_whole: all of them are there.
    destination     name of the destination that is the peer; "" when there is none: then `message` says so.
    attempts        at telling it; not_before: of the next one, None as long as the association is there.
    message         why it was not told, for people.
    """

    __tablename__ = "dicom_commitment_reports"
    __table_args__ = (sa.UniqueConstraint("calling_ae", "transaction_uid"),)

    id: uuid.UUID = Field(primary_key=True)
    association: uuid.UUID = Field(index=True)
    calling_ae: str = text()
    called_ae: str = text()
    peer: str = text()
    transaction_uid: str = Field(sa_type=sa.Text)
    asked: list[Any] = sequence()
    is_whole: bool = flag()
    destination: str = text()
    attempts: int = counted()
    not_before: datetime | None = moment()
    message: str = text()
    created: datetime = moment(nullable=False)


class InferenceRequest(Record, table=True):
    """A REST inference request. `body` is as it came; fetched: what was retrieved already, so that a retry goes on.

    outputs         DICOMweb servers that its results go to, as `records.inference.Output`.
    """

    __tablename__ = "inference_requests"

    transaction_id: str = Field(sa_type=sa.Text, primary_key=True)
    body: dict[str, Any] = Field(sa_type=JSONB)
    state: InferenceState = Field(default=InferenceState.QUEUED, sa_type=words(InferenceState, "state"))
    status: InferenceStatus = Field(default=InferenceStatus.UNKNOWN, sa_type=words(InferenceStatus, "status"))
    job_id: uuid.UUID = Field(index=True)
    payload_id: uuid.UUID
    fetched: dict[str, Any] = mapping()
    outputs: list[dict[str, str]] = sequence()
    attempts: int = counted()
    not_before: datetime | None = moment()
    message: str = text()
    created: datetime = moment(nullable=False)
    updated: datetime = moment(nullable=False)
