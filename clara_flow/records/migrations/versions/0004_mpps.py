"""What modalities say of the procedure steps that they perform (MPPS)."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Performed procedure steps."""
    op.create_table(
        "dicom_procedure_steps",
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "IN PROGRESS",
                "COMPLETED",
                "DISCONTINUED",
                name="status",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("studies", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("series", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False),
        sa.Column("changed", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("uid", name=op.f("pk_dicom_procedure_steps")),
    )
    op.create_index(
        "ix_dicom_procedure_steps_studies", "dicom_procedure_steps", ["studies"], unique=False, postgresql_using="gin"
    )
    op.create_index(op.f("ix_dicom_procedure_steps_changed"), "dicom_procedure_steps", ["changed"], unique=False)


def downgrade() -> None:
    """Undo it."""
    op.drop_table("dicom_procedure_steps")
