"""Idempotency keys of batches."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "batch_keys",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("idempotency_key", sa.Text, primary_key=True),
        sa.Column("batch", sa.Integer, sa.ForeignKey("batches.sequence"), nullable=False),
        sqlite_with_rowid=False,
    )
