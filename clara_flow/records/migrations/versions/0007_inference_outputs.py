"""Where the results of inference requests go."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Servers for the results of a request, with how to log in there."""
    outputs = sa.Column(
        "outputs", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False
    )
    op.add_column("inference_requests", outputs)


def downgrade() -> None:
    """Requests do not know any more where their results go."""
    op.drop_column("inference_requests", "outputs")
