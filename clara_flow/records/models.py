"""The tables. Ids are UUIDs, times UTC, states the words of the Platform API. Change them by a migration only."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel, col

from clara_flow.records.owner import Owner
from clara_flow.records.state_machine import JobPhase, JobPriority, JobState, JobStatus, OperatorPhase, OperatorStatus

METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class PayloadKind(StrEnum):
    """PIPELINE payloads are made with a job, one to one; REUSABLE ones are inputs of any job."""

    PIPELINE = "PIPELINE"
    REUSABLE = "REUSABLE"


class OnRestart(StrEnum):
    """What becomes of a running job whose runner or node is gone: it goes on from its sealed operators, or it ends."""

    RESUME = "resume"
    EVICT = "evict"


class LeaseState(StrEnum):
    """Whether a lease is only asked for, or held."""

    WAITING = "WAITING"
    GRANTED = "GRANTED"


def words(kind: type[StrEnum], name: str) -> sa.Enum:
    """A text column that takes the words of `kind` only."""
    return sa.Enum(
        kind, name=name, native_enum=False, length=32, create_constraint=True,
        values_callable=lambda members: [member.value for member in members],
    )  # fmt: skip


def moment(*, index: bool = False, nullable: bool = True) -> Any:
    """A point in time, UTC."""
    return Field(default=None, sa_type=sa.DateTime(timezone=True), index=index, nullable=nullable)


def counted(default: int = 0) -> Any:
    """A whole number that is never missing."""
    return Field(default=default, sa_column_kwargs={"server_default": str(default)})


def flag() -> Any:
    """Yes or no; no by default."""
    return Field(default=False, sa_column_kwargs={"server_default": sa.false()})


VARIANT = "variant"  # key in the metadata of a pipeline
TRIGGER, AE_TITLE = "Trigger", "AETitle"  # in the metadata of a job: by what it was made, and what that was sent to
BY_DICOM, BY_REQUEST = "dicom", "inference"  # what may have made it
INSTANCES = "Instances"  # of how many files


class Record(SQLModel, registry=registry(metadata=METADATA)):
    """Base of the tables, with metadata of their own."""


class Pipeline(Record, table=True):
    """A pipeline definition, compiled once. `digest` (SHA-256 of name, definition and plan) makes it unique.

    deployment_id   the Prefect deployment that runs this one; an earlier version of the same name has none any more.
    """

    __tablename__ = "pipelines"

    id: uuid.UUID = Field(default_factory=uuid.uuid4, primary_key=True)
    name: str = Field(sa_type=sa.Text, index=True)
    definition: str = Field(sa_type=sa.Text)
    plan: dict[str, Any] = Field(sa_type=JSONB)
    source: str = Field(default="", sa_type=sa.Text)
    digest: str = Field(sa_type=sa.Text, unique=True)
    deployment_id: uuid.UUID | None = Field(default=None, unique=True)
    created: datetime = moment(nullable=False)
    metadata_: dict[str, str] = Field(
        default_factory=dict, sa_column=sa.Column("metadata", JSONB, nullable=False, server_default="{}")
    )

    @property
    def is_variant(self) -> bool:
        """Whether it is another one with some values changed for one job: nobody deploys it."""
        return VARIANT in self.metadata_


class Payload(Record, table=True):
    """A folder of files below `<data_dir>/payloads`. The three `input_` columns are set when its input is sealed."""

    __tablename__ = "payloads"

    id: uuid.UUID = Field(default_factory=uuid.uuid4, primary_key=True)
    kind: PayloadKind = Field(default=PayloadKind.PIPELINE, sa_type=words(PayloadKind, "kind"))
    created: datetime = moment(nullable=False)
    removed: datetime | None = moment()
    input_digest: str | None = Field(default=None, sa_type=sa.Text)
    input_files: int | None = None
    input_bytes: int | None = Field(default=None, sa_type=sa.BigInteger)
    metadata_: dict[str, str] = Field(
        default_factory=dict, sa_column=sa.Column("metadata", JSONB, nullable=False, server_default="{}")
    )


class Job(Record, table=True):
    """One run of a pipeline on a payload.

    queued              when it was asked to run; until then it is PENDING and nobody may take it.
    cancel_requested    when somebody asked its runner to stop it.
    timeout_s           counted from `started`.
    messages            texts for people; story: its events, `<UTC> <event>`.
    resumes             the earlier job whose completed operators it may adopt.
    owner_*, fence      the process that runs it, and the token its writes must carry.
    tenant              for whom it runs: what quotas and fair shares count.
    demand              what the pool must have for it, as `records.job_queue.QueuedJob` tells.
    preemptible         it may be sent back to the queue between two operators.
    node                where it was admitted to run; None while it waits for that.
    history_due         it was begun, and Prefect has not been told everything of it yet.
    requeues, losses    how often it went back to the queue, and how many of those times because its runner was lost.
    fastio_mib          size of its FastIO volume.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        sa.CheckConstraint("(stopped IS NOT NULL) = (state = 'STOPPED')", name="stopped_is_final"),
        sa.CheckConstraint(
            "state <> 'RUNNING' OR (started IS NOT NULL AND fence IS NOT NULL)", name="running_is_owned"
        ),
        sa.CheckConstraint("state = 'STOPPED' OR status = 'HEALTHY'", name="unhealthy_is_stopped"),
        sa.CheckConstraint("state <> 'PENDING' OR fence IS NULL", name="pending_is_unowned"),
        sa.CheckConstraint("node IS NULL OR queued IS NOT NULL", name="admitted_was_queued"),
        sa.Index("ix_jobs_history_due", "history_due", postgresql_where=sa.text("history_due")),
        sa.Index(None, "state", "created"),
    )

    id: uuid.UUID = Field(default_factory=uuid.uuid4, primary_key=True)
    name: str = Field(sa_type=sa.Text)
    pipeline_id: uuid.UUID = Field(foreign_key="pipelines.id", index=True)
    payload_id: uuid.UUID = Field(foreign_key="payloads.id", index=True)
    resumes: uuid.UUID | None = Field(default=None, foreign_key="jobs.id", ondelete="SET NULL", index=True)
    flow_run_id: uuid.UUID | None = Field(default=None, index=True)
    state: JobState = Field(default=JobState.PENDING, sa_type=words(JobState, "state"))
    status: JobStatus = Field(default=JobStatus.HEALTHY, sa_type=words(JobStatus, "status"))
    priority: JobPriority = Field(default=JobPriority.NORMAL, sa_type=words(JobPriority, "priority"))
    runtime: str = Field(sa_type=sa.Text)
    timeout_s: int
    arguments: dict[str, str] = Field(default_factory=dict, sa_type=JSONB)
    messages: list[str] = Field(default_factory=list, sa_type=JSONB)
    story: list[str] = Field(default_factory=list, sa_type=JSONB)
    created: datetime = moment(index=True, nullable=False)
    queued: datetime | None = moment()
    started: datetime | None = moment()
    stopped: datetime | None = moment(index=True)
    cancel_requested: datetime | None = moment()
    owner_host: str | None = Field(default=None, sa_type=sa.Text)
    owner_pid: int | None = None
    owner_process_start: str | None = Field(default=None, sa_type=sa.Text)
    fence: uuid.UUID | None = None
    tenant: str = Field(default="default", sa_type=sa.Text, sa_column_kwargs={"server_default": "default"})
    demand: dict[str, Any] = Field(default_factory=dict, sa_type=JSONB, sa_column_kwargs={"server_default": "{}"})
    preemptible: bool = flag()
    on_restart: OnRestart = Field(
        default=OnRestart.RESUME,
        sa_type=words(OnRestart, "on_restart"),
        sa_column_kwargs={"server_default": OnRestart.RESUME},
    )
    node: str | None = Field(default=None, sa_type=sa.Text)
    history_due: bool = flag()
    requeues: int = counted()
    losses: int = counted()
    fastio_mib: int = counted()
    metadata_: dict[str, str] = Field(
        default_factory=dict, sa_column=sa.Column("metadata", JSONB, nullable=False, server_default="{}")
    )

    @property
    def phase(self) -> JobPhase:
        """Where it stands."""
        return JobPhase.of(self.state, self.status, queued=self.queued is not None)

    @property
    def owner(self) -> Owner | None:
        """Who runs it, or ran it; None before somebody took it."""
        if self.fence is None or self.owner_host is None or self.owner_pid is None:
            return None
        return Owner(self.owner_host, self.owner_pid, self.owner_process_start or "", self.fence)


class JobOperator(Record, table=True):
    """One operator of one job; `position` is its place in the plan, `detail` the truer name behind `status`.

    waited_s            seconds it waited for resources.
    run_time_s          seconds of the last attempt, from launch to exit.
    digest              of the operator, its configuration and its inputs: what a resumed job compares.
    identity            container id or `host:pid` of the last attempt.
    """

    __tablename__ = "job_operators"
    __table_args__ = (sa.UniqueConstraint("job_id", "name"),)

    id: uuid.UUID = Field(default_factory=uuid.uuid4, primary_key=True)
    job_id: uuid.UUID = Field(foreign_key="jobs.id", ondelete="CASCADE")
    name: str = Field(sa_type=sa.Text)
    position: int
    status: OperatorStatus = Field(default=OperatorStatus.PENDING, sa_type=words(OperatorStatus, "status"))
    detail: OperatorPhase = Field(default=OperatorPhase.PENDING, sa_type=words(OperatorPhase, "detail"))
    attempt: int = 0
    created: datetime = moment(nullable=False)
    started: datetime | None = moment()
    stopped: datetime | None = moment()
    waited_s: float | None = None
    run_time_s: float | None = None
    peak_memory_bytes: int | None = Field(default=None, sa_type=sa.BigInteger)
    exit_code: int | None = None
    message: str = Field(default="", sa_type=sa.Text)
    digest: str | None = Field(default=None, sa_type=sa.Text, index=True)
    identity: str = Field(default="", sa_type=sa.Text)


class Node(Record, table=True):
    """One machine of the pool, as its worker announces it.

    session             the worker's incarnation: another one with the same name puts this one out.
    owner_*             the worker's process.
    inventory           what the machine has (`infra.gpu`); records do not look inside, but for devices' `uuid`.
    jobs                how many jobs may run there at once.
    heartbeat, expires  when the worker was last heard of, and from when on it counts as gone.
    drained             nothing new is put there; drained_devices: nor on these GPUs (UUIDs).
    """

    __tablename__ = "nodes"
    __table_args__ = (
        sa.CheckConstraint("jobs >= 0", name="jobs_not_negative"),
        sa.CheckConstraint("expires >= heartbeat", name="expires_later"),
    )

    name: str = Field(sa_type=sa.Text, primary_key=True)
    session: uuid.UUID
    owner_pid: int
    owner_process_start: str = Field(sa_type=sa.Text)
    inventory: dict[str, Any] = Field(sa_type=JSONB)
    jobs: int
    heartbeat: datetime = moment(nullable=False)
    expires: datetime = moment(nullable=False)
    drained: bool = flag()
    drained_devices: list[str] = Field(default_factory=list, sa_type=JSONB, sa_column_kwargs={"server_default": "[]"})


def is_silent() -> sa.ColumnElement[bool]:
    """A node whose worker said nothing for its time; while the database was down nobody could say anything."""
    ttl = col(Node.expires) - col(Node.heartbeat)
    return sa.func.greatest(col(Node.expires), sa.func.pg_postmaster_start_time() + ttl) < sa.func.now()


class Lease(Record, table=True):
    """What a job (`operator` "") or one operator of a running job asks for or holds on a node.

    part                "" or "gpu": the rest of an operator that was started early.
    priority            1 (LOWER) to 4 (IMMEDIATE).
    owner               fence of the runner; None for a job that was admitted and has not begun.
    devices             UUIDs of GPUs. limit_s: how long it will be held at most; expected_s: how long, likely.
    early               it would start before its inputs are there; yielding: its job was asked to go back to the queue.
    reason              what it waits for, for people.
    """

    __tablename__ = "leases"
    __table_args__ = (
        sa.UniqueConstraint("job_id", "operator", "part"),
        sa.CheckConstraint("priority BETWEEN 1 AND 4", name="priority"),
        sa.CheckConstraint("part IN ('', 'gpu') AND (operator <> '' OR part = '')", name="part"),
        sa.CheckConstraint(
            "state <> 'GRANTED' OR (node IS NOT NULL AND granted IS NOT NULL AND expires IS NOT NULL)",
            name="granted_is_somewhere",
        ),
        sa.CheckConstraint("state <> 'WAITING' OR (granted IS NULL AND devices = '[]')", name="waiting_holds_nothing"),
        sa.CheckConstraint("state <> 'WAITING' OR (operator <> '' AND owner IS NOT NULL)", name="waiting_is_owned"),
    )

    id: uuid.UUID = Field(default_factory=uuid.uuid4, primary_key=True)
    job_id: uuid.UUID = Field(foreign_key="jobs.id", ondelete="CASCADE")
    operator: str = Field(sa_type=sa.Text)
    part: str = Field(default="", sa_type=sa.Text, sa_column_kwargs={"server_default": ""})
    tenant: str = Field(sa_type=sa.Text)
    priority: int
    amounts: dict[str, int] = Field(sa_type=JSONB)
    state: LeaseState = Field(default=LeaseState.WAITING, sa_type=words(LeaseState, "state"))
    node: str | None = Field(default=None, sa_type=sa.Text)
    devices: list[str] = Field(default_factory=list, sa_type=JSONB, sa_column_kwargs={"server_default": "[]"})
    owner: uuid.UUID | None = None
    asked: datetime = moment(nullable=False)
    granted: datetime | None = moment()
    expires: datetime | None = moment()
    limit_s: float
    expected_s: float | None = None
    preemptible: bool = flag()
    early: bool = flag()
    yielding: bool = flag()
    reason: str = Field(default="", sa_type=sa.Text, sa_column_kwargs={"server_default": ""})


class Quota(Record, table=True):
    """What a tenant may hold over the whole pool, by resource name; a name that is missing is unlimited.

    weight              its share relative to other tenants'.
    nominal, hard       amounts that are its own, and that it never exceeds.
    """

    __tablename__ = "quotas"
    __table_args__ = (sa.CheckConstraint("weight > 0", name="weight_positive"),)

    tenant: str = Field(sa_type=sa.Text, primary_key=True)
    weight: float = Field(default=1.0, sa_column_kwargs={"server_default": "1"})
    nominal: dict[str, int] = Field(default_factory=dict, sa_type=JSONB, sa_column_kwargs={"server_default": "{}"})
    hard: dict[str, int] = Field(default_factory=dict, sa_type=JSONB, sa_column_kwargs={"server_default": "{}"})
    updated: datetime = moment(nullable=False)
