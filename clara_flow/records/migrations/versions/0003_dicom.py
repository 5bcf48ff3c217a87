"""DICOM in and out: who may send, what was received, what it became, what is delivered."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

JSONB = postgresql.JSONB(astext_type=sa.Text())


def upgrade() -> None:
    """AE titles, sources, destinations; groups of instances; deliveries; inference requests."""
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("pipeline_id", sa.Text(), server_default="", nullable=False),
        sa.Column("payload_id", sa.Text(), server_default="", nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("destination", sa.Text(), server_default="", nullable=False),
        sa.Column("parameters", sa.Text(), server_default="", nullable=False),
        sa.Column("uris", JSONB, server_default="[]", nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "Pending",
                "InProgress",
                "Succeeded",
                "Failed",
                name="state",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("retries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lease", sa.Uuid(), nullable=True),
        sa.Column("lease_expires", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.Column("discarded", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'InProgress') = (lease IS NOT NULL)", name=op.f("ck_deliveries_leased_in_progress")
        ),
        sa.CheckConstraint(
            "(state IN ('Succeeded', 'Failed')) = (ended IS NOT NULL)", name=op.f("ck_deliveries_ended_is_final")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    op.create_index(op.f("ix_deliveries_ended"), "deliveries", ["ended"], unique=False)
    op.create_index(op.f("ix_deliveries_job_id"), "deliveries", ["job_id"], unique=False)
    op.create_index(
        "ix_deliveries_pending",
        "deliveries",
        ["agent", "created"],
        unique=False,
        postgresql_where=sa.text("state = 'Pending'"),
    )
    op.create_index(
        "ix_deliveries_leased",
        "deliveries",
        ["lease_expires"],
        unique=False,
        postgresql_where=sa.text("state = 'InProgress'"),
    )
    op.create_table(
        "dicom_aetitles",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ae_title", sa.Text(), nullable=False),
        sa.Column("overwrite_same_instance", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("ignored_sop_classes", JSONB, server_default="[]", nullable=False),
        sa.Column("processor", sa.Text(), server_default="ae-title", nullable=False),
        sa.Column("processor_settings", JSONB, server_default="{}", nullable=False),
        sa.Column("require_release", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("deidentify", sa.Text(), server_default="", nullable=False),
        sa.Column("draining", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_dicom_aetitles")),
        sa.UniqueConstraint("ae_title", name=op.f("uq_dicom_aetitles_ae_title")),
    )
    op.create_table(
        "dicom_associations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("journal", sa.Text(), nullable=False),
        sa.Column("aetitle", sa.Text(), nullable=False),
        sa.Column("calling_ae", sa.Text(), server_default="", nullable=False),
        sa.Column("called_ae", sa.Text(), server_default="", nullable=False),
        sa.Column("peer", sa.Text(), server_default="", nullable=False),
        sa.Column("require_release", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("opened", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed", sa.DateTime(timezone=True), nullable=True),
        sa.Column("how", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dicom_associations")),
    )
    op.create_index(op.f("ix_dicom_associations_journal"), "dicom_associations", ["journal"], unique=False)
    op.create_table(
        "dicom_destinations",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "kind",
            sa.Enum("DIMSE", "STOW", name="kind", native_enum=False, create_constraint=True, length=32),
            server_default="DIMSE",
            nullable=False,
        ),
        sa.Column("ae_title", sa.Text(), server_default="", nullable=False),
        sa.Column("host", sa.Text(), server_default="", nullable=False),
        sa.Column("port", sa.Integer(), nullable=True),
        sa.Column("url", sa.Text(), server_default="", nullable=False),
        sa.Column("tls", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("calling_ae", sa.Text(), server_default="", nullable=False),
        sa.Column("concurrency", sa.Integer(), server_default="2", nullable=False),
        sa.Column("storage_commitment", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("deidentify", sa.Text(), server_default="", nullable=False),
        sa.Column("credentials", sa.Text(), server_default="", nullable=False),
        sa.Column("paused", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "kind <> 'DIMSE' OR (ae_title <> '' AND host <> '' AND port IS NOT NULL)",
            name=op.f("ck_dicom_destinations_dimse"),
        ),
        sa.CheckConstraint("kind <> 'STOW' OR url <> ''", name=op.f("ck_dicom_destinations_stow")),
        sa.CheckConstraint("concurrency >= 1", name=op.f("ck_dicom_destinations_concurrency")),
        sa.CheckConstraint("port IS NULL OR port BETWEEN 1 AND 65535", name=op.f("ck_dicom_destinations_port")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_dicom_destinations")),
    )
    op.create_table(
        "dicom_groups",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("aetitle", sa.Text(), nullable=False),
        sa.Column("calling_ae", sa.Text(), server_default="", nullable=False),
        sa.Column("called_ae", sa.Text(), server_default="", nullable=False),
        sa.Column("key_digest", sa.Text(), nullable=False),
        sa.Column("study_uid", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "OPEN",
                "COMPLETE",
                "SUBMITTED",
                "FAILED",
                "DISCARDED",
                name="state",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("opened", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_arrival", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended", sa.DateTime(timezone=True), nullable=True),
        sa.Column("instances", sa.Integer(), server_default="0", nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("expected", sa.Integer(), nullable=True),
        sa.Column("rule", sa.Text(), server_default="", nullable=False),
        sa.Column("amends", sa.Uuid(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["amends"], ["dicom_groups.id"], name=op.f("fk_dicom_groups_amends"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dicom_groups")),
    )
    op.create_index(op.f("ix_dicom_groups_aetitle"), "dicom_groups", ["aetitle"], unique=False)
    op.create_index(op.f("ix_dicom_groups_key_digest"), "dicom_groups", ["key_digest"], unique=False)
    op.create_index(
        "ix_dicom_groups_live",
        "dicom_groups",
        ["state"],
        unique=False,
        postgresql_where=sa.text("state IN ('OPEN', 'COMPLETE')"),
    )
    op.create_index(
        "ux_dicom_groups_open",
        "dicom_groups",
        ["aetitle", "key_digest"],
        unique=True,
        postgresql_where=sa.text("state = 'OPEN'"),
    )
    op.create_table(
        "dicom_journals",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("offset", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_dicom_journals")),
    )
    op.create_table(
        "dicom_sources",
        sa.Column("ae_title", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("maximum_associations", sa.Integer(), nullable=True),
        sa.Column("user_name", sa.Text(), server_default="", nullable=False),
        sa.Column("user_secret", sa.Text(), server_default="", nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("ae_title", name=op.f("pk_dicom_sources")),
    )
    op.create_table(
        "inference_requests",
        sa.Column("transaction_id", sa.Text(), nullable=False),
        sa.Column("body", JSONB, nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "Queued", "InProcess", "Completed", name="state", native_enum=False, create_constraint=True, length=32
            ),
            nullable=False,
        ),
        sa.Column(
            "status",
            sa.Enum("Unknown", "Success", "Fail", name="status", native_enum=False, create_constraint=True, length=32),
            nullable=False,
        ),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("payload_id", sa.Uuid(), nullable=False),
        sa.Column("fetched", JSONB, server_default="{}", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("transaction_id", name=op.f("pk_inference_requests")),
    )
    op.create_index(op.f("ix_inference_requests_job_id"), "inference_requests", ["job_id"], unique=False)
    op.create_table(
        "delivery_items",
        sa.Column("delivery_id", sa.Uuid(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "PENDING",
                "SENT",
                "COMMITTED",
                "FAILED",
                "POISON",
                name="state",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("sop_class_uid", sa.Text(), server_default="", nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), server_default="", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["deliveries.id"], name=op.f("fk_delivery_items_delivery_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("delivery_id", "uri", name=op.f("pk_delivery_items")),
    )
    op.create_table(
        "dicom_instances",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("group_id", sa.Uuid(), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("sop_class_uid", sa.Text(), nullable=False),
        sa.Column("series_uid", sa.Text(), nullable=False),
        sa.Column("study_uid", sa.Text(), nullable=False),
        sa.Column("transfer_syntax", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("association", sa.Uuid(), nullable=False),
        sa.Column("arrived", sa.DateTime(timezone=True), nullable=False),
        sa.Column("superseded", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("attributes", JSONB, server_default="{}", nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"], ["dicom_groups.id"], name=op.f("fk_dicom_instances_group_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dicom_instances")),
        sa.UniqueConstraint("path", "group_id", name=op.f("uq_dicom_instances_path_group_id")),
    )
    op.create_index("ix_dicom_instances_association", "dicom_instances", ["association"], unique=False)
    op.create_index(op.f("ix_dicom_instances_group_id"), "dicom_instances", ["group_id"], unique=False)
    op.create_index(op.f("ix_dicom_instances_sop_instance_uid"), "dicom_instances", ["sop_instance_uid"], unique=False)
    op.create_index(op.f("ix_dicom_instances_study_uid"), "dicom_instances", ["study_uid"], unique=False)
    op.create_index(
        "ux_dicom_instances_current",
        "dicom_instances",
        ["group_id", "sop_instance_uid"],
        unique=True,
        postgresql_where=sa.text("NOT superseded"),
    )
    op.create_table(
        "dicom_submissions",
        sa.Column("group_id", sa.Uuid(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("pipeline", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("submitted", sa.DateTime(timezone=True), nullable=True),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"], ["dicom_groups.id"], name=op.f("fk_dicom_submissions_group_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("group_id", "label", name=op.f("pk_dicom_submissions")),
    )
    op.create_index(op.f("ix_dicom_submissions_job_id"), "dicom_submissions", ["job_id"], unique=False)


def downgrade() -> None:
    """Undo it."""
    for table in (
        "dicom_submissions",
        "dicom_instances",
        "delivery_items",
        "inference_requests",
        "dicom_sources",
        "dicom_journals",
        "dicom_groups",
        "dicom_destinations",
        "dicom_associations",
        "dicom_aetitles",
        "deliveries",
    ):
        op.drop_table(table)
