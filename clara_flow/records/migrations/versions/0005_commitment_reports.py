"""Reports of storage commitment that peers are owed."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"

JSONB = postgresql.JSONB(astext_type=sa.Text())


def upgrade() -> None:
    """A row for each, until it is acknowledged."""
    op.create_table(
        "dicom_commitment_reports",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("association", sa.Uuid(), nullable=False),
        sa.Column("calling_ae", sa.Text(), server_default="", nullable=False),
        sa.Column("called_ae", sa.Text(), server_default="", nullable=False),
        sa.Column("peer", sa.Text(), server_default="", nullable=False),
        sa.Column("transaction_uid", sa.Text(), nullable=False),
        sa.Column("asked", JSONB, server_default="[]", nullable=False),
        sa.Column("is_whole", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("destination", sa.Text(), server_default="", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dicom_commitment_reports")),
        sa.UniqueConstraint(
            "calling_ae", "transaction_uid", name=op.f("uq_dicom_commitment_reports_calling_ae_transaction_uid")
        ),
    )
    op.create_index(
        op.f("ix_dicom_commitment_reports_association"), "dicom_commitment_reports", ["association"], unique=False
    )


def downgrade() -> None:
    """Undo it."""
    op.drop_table("dicom_commitment_reports")
