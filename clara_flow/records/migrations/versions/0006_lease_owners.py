"""Deliveries know the process that works at them; groups are found by what they amend."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Who has the lease of a delivery; an index."""
    op.add_column("deliveries", sa.Column("owner_host", sa.Text(), nullable=True))
    op.add_column("deliveries", sa.Column("owner_pid", sa.Integer(), nullable=True))
    op.add_column("deliveries", sa.Column("owner_process_start", sa.Text(), nullable=True))
    op.create_index(op.f("ix_dicom_groups_amends"), "dicom_groups", ["amends"], unique=False)


def downgrade() -> None:
    """Leases end by their time alone."""
    op.drop_index(op.f("ix_dicom_groups_amends"), table_name="dicom_groups")
    op.drop_column("deliveries", "owner_process_start")
    op.drop_column("deliveries", "owner_pid")
    op.drop_column("deliveries", "owner_host")
