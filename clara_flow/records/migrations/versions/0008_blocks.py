"""Sources and destinations that Prefect blocks make."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

TABLES = ("dicom_sources", "dicom_destinations")


def upgrade() -> None:
    """A row knows its block."""
    for table in TABLES:
        op.add_column(table, sa.Column("block", sa.Text(), server_default="", nullable=False))
        op.add_column(table, sa.Column("block_updated", sa.DateTime(timezone=True), nullable=True))
        op.create_check_constraint(op.f(f"ck_{table}_block"), table, "(block = '') = (block_updated IS NULL)")


def downgrade() -> None:
    """Those of blocks stay, as if made by hand."""
    for table in TABLES:
        op.drop_constraint(op.f(f"ck_{table}_block"), table)
        op.drop_column(table, "block_updated")
        op.drop_column(table, "block")
