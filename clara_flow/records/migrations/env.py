"""Runs the migrations on the connection that `records.database.migration` hands over."""

from alembic import context

from clara_flow.records import dicom_models  # noqa: F401  its tables stand in METADATA, too
from clara_flow.records.models import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
