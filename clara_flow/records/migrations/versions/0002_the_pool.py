"""The pool: nodes, leases and quotas; what a job asks for, and where it runs."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

JSONB = postgresql.JSONB(astext_type=sa.Text())
JOB_CHECKS = {
    "on_restart": "on_restart IN ('resume', 'evict')",
    "pending_is_unowned": "state <> 'PENDING' OR fence IS NULL",
    "admitted_was_queued": "node IS NULL OR queued IS NOT NULL",
}


def upgrade() -> None:
    """Nodes, leases, quotas; more of a job."""
    op.add_column("pipelines", sa.Column("deployment_id", sa.Uuid(), nullable=True))
    op.create_unique_constraint(op.f("uq_pipelines_deployment_id"), "pipelines", ["deployment_id"])
    for column in job_columns():
        op.add_column("jobs", column)
    for name, condition in JOB_CHECKS.items():
        op.create_check_constraint(op.f(f"ck_jobs_{name}"), "jobs", condition)
    op.create_index("ix_jobs_history_due", "jobs", ["history_due"], postgresql_where=sa.text("history_due"))
    op.create_index(op.f("ix_jobs_resumes"), "jobs", ["resumes"], unique=False)
    refer_to_resumed_job(ondelete="SET NULL")
    op.create_table(
        "nodes",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("session", sa.Uuid(), nullable=False),
        sa.Column("owner_pid", sa.Integer(), nullable=False),
        sa.Column("owner_process_start", sa.Text(), nullable=False),
        sa.Column("inventory", JSONB, nullable=False),
        sa.Column("jobs", sa.Integer(), nullable=False),
        sa.Column("heartbeat", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=False),
        sa.Column("drained", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("drained_devices", JSONB, server_default="[]", nullable=False),
        sa.CheckConstraint("jobs >= 0", name=op.f("ck_nodes_jobs_not_negative")),
        sa.CheckConstraint("expires >= heartbeat", name=op.f("ck_nodes_expires_later")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_nodes")),
    )
    op.create_table(
        "leases",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("operator", sa.Text(), nullable=False),
        sa.Column("part", sa.Text(), server_default="", nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("amounts", JSONB, nullable=False),
        sa.Column(
            "state",
            sa.Enum("WAITING", "GRANTED", name="state", native_enum=False, create_constraint=True, length=32),
            nullable=False,
        ),
        sa.Column("node", sa.Text(), nullable=True),
        sa.Column("devices", JSONB, server_default="[]", nullable=False),
        sa.Column("owner", sa.Uuid(), nullable=True),
        sa.Column("asked", sa.DateTime(timezone=True), nullable=False),
        sa.Column("granted", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=True),
        sa.Column("limit_s", sa.Float(), nullable=False),
        sa.Column("expected_s", sa.Float(), nullable=True),
        sa.Column("preemptible", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("early", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("yielding", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint("priority BETWEEN 1 AND 4", name=op.f("ck_leases_priority")),
        sa.CheckConstraint("part IN ('', 'gpu') AND (operator <> '' OR part = '')", name=op.f("ck_leases_part")),
        sa.CheckConstraint(
            "state <> 'GRANTED' OR (node IS NOT NULL AND granted IS NOT NULL AND expires IS NOT NULL)",
            name=op.f("ck_leases_granted_is_somewhere"),
        ),
        sa.CheckConstraint(
            "state <> 'WAITING' OR (granted IS NULL AND devices = '[]')",
            name=op.f("ck_leases_waiting_holds_nothing"),
        ),
        sa.CheckConstraint(
            "state <> 'WAITING' OR (operator <> '' AND owner IS NOT NULL)", name=op.f("ck_leases_waiting_is_owned")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_leases_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leases")),
        sa.UniqueConstraint("job_id", "operator", "part", name=op.f("uq_leases_job_id_operator_part")),
    )
    op.create_table(
        "quotas",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("weight", sa.Float(), server_default="1", nullable=False),
        sa.Column("nominal", JSONB, server_default="{}", nullable=False),
        sa.Column("hard", JSONB, server_default="{}", nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("weight > 0", name=op.f("ck_quotas_weight_positive")),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_quotas")),
    )


def downgrade() -> None:
    """Undo it."""
    for table in ("quotas", "leases", "nodes"):
        op.drop_table(table)
    op.drop_column("pipelines", "deployment_id")
    refer_to_resumed_job(ondelete=None)
    op.drop_index(op.f("ix_jobs_resumes"), "jobs")
    for column in job_columns():  # with their checks and index
        op.drop_column("jobs", column.name)
    op.drop_constraint(op.f("ck_jobs_pending_is_unowned"), "jobs")


def refer_to_resumed_job(*, ondelete: str | None) -> None:
    """What becomes of a job when the earlier one that it resumed is deleted."""
    op.drop_constraint(op.f("fk_jobs_resumes"), "jobs")
    op.create_foreign_key(op.f("fk_jobs_resumes"), "jobs", "jobs", ["resumes"], ["id"], ondelete=ondelete)


def job_columns() -> list[sa.Column[Any]]:
    """What is new of a job."""
    return [
        sa.Column("tenant", sa.Text(), server_default="default", nullable=False),
        sa.Column("demand", JSONB, server_default="{}", nullable=False),
        sa.Column("preemptible", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("on_restart", sa.String(32), server_default="resume", nullable=False),
        sa.Column("node", sa.Text(), nullable=True),
        sa.Column("history_due", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("requeues", sa.Integer(), server_default="0", nullable=False),
        sa.Column("losses", sa.Integer(), server_default="0", nullable=False),
        sa.Column("fastio_mib", sa.Integer(), server_default="0", nullable=False),
    ]
