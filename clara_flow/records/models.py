"""The tables. Ids are UUIDs, times UTC, states the words of the Platform API. Change them by a migration only."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

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


def words(kind: type[StrEnum], name: str) -> sa.Enum:
    """A text column that takes the words of `kind` only."""
    return sa.Enum(
        kind, name=name, native_enum=False, length=32, create_constraint=True,
        values_callable=lambda members: [member.value for member in members],
    )  # fmt: skip


def moment(*, index: bool = False, nullable: bool = True) -> Any:
    """A point in time, UTC."""
    return Field(default=None, sa_type=sa.DateTime(timezone=True), index=index, nullable=nullable)


class Record(SQLModel, registry=registry(metadata=METADATA)):
    """Base of the tables, with metadata of their own."""


class Pipeline(Record, table=True):
    """A pipeline definition, compiled once. `digest` (SHA-256 of name, definition and plan) makes it unique."""

    __tablename__ = "pipelines"

    id: uuid.UUID = Field(default_factory=uuid.uuid4, primary_key=True)
    name: str = Field(sa_type=sa.Text, index=True)
    definition: str = Field(sa_type=sa.Text)
    plan: dict[str, Any] = Field(sa_type=JSONB)
    source: str = Field(default="", sa_type=sa.Text)
    digest: str = Field(sa_type=sa.Text, unique=True)
    created: datetime = moment(nullable=False)
    metadata_: dict[str, str] = Field(
        default_factory=dict, sa_column=sa.Column("metadata", JSONB, nullable=False, server_default="{}")
    )


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
    """

    __tablename__ = "jobs"
    __table_args__ = (
        sa.CheckConstraint("(stopped IS NOT NULL) = (state = 'STOPPED')", name="stopped_is_final"),
        sa.CheckConstraint(
            "state <> 'RUNNING' OR (started IS NOT NULL AND fence IS NOT NULL)", name="running_is_owned"
        ),
        sa.CheckConstraint("state = 'STOPPED' OR status = 'HEALTHY'", name="unhealthy_is_stopped"),
        sa.Index(None, "state", "created"),
    )

    id: uuid.UUID = Field(default_factory=uuid.uuid4, primary_key=True)
    name: str = Field(sa_type=sa.Text)
    pipeline_id: uuid.UUID = Field(foreign_key="pipelines.id", index=True)
    payload_id: uuid.UUID = Field(foreign_key="payloads.id", index=True)
    resumes: uuid.UUID | None = Field(default=None, foreign_key="jobs.id")
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
