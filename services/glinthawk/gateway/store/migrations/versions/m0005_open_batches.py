"""Batches by their owner and status."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the index."""
    op.create_index("batches_by_owner", "batches", ["owner", "status"])
