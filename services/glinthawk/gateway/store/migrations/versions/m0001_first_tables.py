"""Files, batches, lines, results, keys and counters."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make all tables."""
    _create_files()
    _create_batches()
    _create_lines_and_results()
    _create_keys_and_counters()


def _create_files() -> None:
    op.create_table(
        "files",
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("owner", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("files_by_id", "files", ["id"], unique=True)
    op.create_index("files_by_creation", "files", ["created_at", "sequence"])


def _create_batches() -> None:
    op.create_table(
        "batches",
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("input_file_id", sa.Text, nullable=False),
        sa.Column("completion_window", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("completed", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False),
        sa.Column("errors", sa.JSON, nullable=False),
        sa.Column("outcome", sa.Text),
        sa.Column("output_file_id", sa.Text),
        sa.Column("error_file_id", sa.Text),
        sa.Column("in_progress_at", sa.BigInteger),
        sa.Column("finalizing_at", sa.BigInteger),
        sa.Column("completed_at", sa.BigInteger),
        sa.Column("failed_at", sa.BigInteger),
        sa.Column("expired_at", sa.BigInteger),
        sa.Column("cancelling_at", sa.BigInteger),
        sa.Column("cancelled_at", sa.BigInteger),
        sqlite_autoincrement=True,
    )
    op.create_index("batches_by_id", "batches", ["id"], unique=True)
    op.create_index("batches_by_creation", "batches", ["created_at", "sequence"])
    op.create_index("batches_by_input", "batches", ["input_file_id"])


def _create_lines_and_results() -> None:
    op.create_table(
        "lines",
        sa.Column(
            "batch",
            sa.Integer,
            sa.ForeignKey("batches.sequence"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("line_number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("custom_key", sa.LargeBinary, nullable=False),
        sa.Column("long_custom_id", sa.LargeBinary),
        sa.Column("byte_offset", sa.BigInteger, nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("lines_by_custom_key", "lines", ["batch", "custom_key"], unique=True)
    op.create_table(
        "results",
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("batch", sa.Integer, sa.ForeignKey("batches.sequence"), nullable=False),
        sa.Column("line_number", sa.BigInteger, nullable=False),
        sa.Column("is_error", sa.Boolean, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )
    op.create_index("results_by_line", "results", ["batch", "line_number"], unique=True)
    op.create_index("results_by_commit", "results", ["batch", "is_error", "sequence"])


def _create_keys_and_counters() -> None:
    op.create_table(
        "keys",
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
        sqlite_autoincrement=True,
    )
    op.create_index("keys_by_id", "keys", ["id"], unique=True)
    op.create_index(
        "keys_valid_by_name",
        "keys",
        ["name"],
        unique=True,
        sqlite_where=sa.text("revoked_at IS NULL"),
        postgresql_where=sa.text("revoked_at IS NULL"),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
