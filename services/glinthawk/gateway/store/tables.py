"""The tables of the store on SQL, as the newest migration leaves them.

    files ---< batches ---< lines      what a batch asks, a row a line of its input
                      |`--< results    what was answered, a row a line of its output
                      `---- batch_keys by which its maker may ask for it again
    keys   counters   drains   worker_sizes

`sequence` numbers rows in the order of their creation. Lines and results name their batch by
its sequence, which is short: a batch may have a million of them. A batch names its files by id
without a foreign key, for it outlives them.

Change a table here and add a migration to `migrations/versions`; a test holds the two in step.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

METADATA = MetaData()

FILES = Table(
    "files",
    METADATA,
    Column("sequence", Integer, primary_key=True),
    Column("id", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("owner", Text),
    Index("files_by_id", "id", unique=True),
    Index("files_by_creation", "created_at", "sequence"),
    sqlite_autoincrement=True,
)

BATCHES = Table(
    "batches",
    METADATA,
    Column("sequence", Integer, primary_key=True),
    Column("id", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("input_file_id", Text, nullable=False),
    Column("completion_window", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("owner", Text),
    Column("metadata", JSON, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("completed", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("errors", JSON, nullable=False),
    Column("outcome", Text),
    Column("output_file_id", Text),
    Column("error_file_id", Text),
    Column("in_progress_at", BigInteger),
    Column("finalizing_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("failed_at", BigInteger),
    Column("expired_at", BigInteger),
    Column("cancelling_at", BigInteger),
    Column("cancelled_at", BigInteger),
    Index("batches_by_id", "id", unique=True),
    Index("batches_by_creation", "created_at", "sequence"),
    Index("batches_by_input", "input_file_id"),
    Index("batches_by_owner", "owner", "status"),
    sqlite_autoincrement=True,
)

BATCH_KEYS = Table(
    "batch_keys",
    METADATA,
    # Empty for who has no key of the API.
    Column("owner", Text, primary_key=True),
    Column("idempotency_key", Text, primary_key=True),
    Column("batch", Integer, ForeignKey("batches.sequence"), nullable=False),
    sqlite_with_rowid=False,
)

LINES = Table(
    "lines",
    METADATA,
    Column("batch", Integer, ForeignKey("batches.sequence"), primary_key=True, autoincrement=False),
    Column("line_number", BigInteger, primary_key=True, autoincrement=False),
    # See custom_ids.py: the custom_id itself where it is short, else a digest of it.
    Column("custom_key", LargeBinary, nullable=False),
    Column("long_custom_id", LargeBinary),
    Column("byte_offset", BigInteger, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Index("lines_by_custom_key", "batch", "custom_key", unique=True),
    sqlite_with_rowid=False,
)

RESULTS = Table(
    "results",
    METADATA,
    Column("sequence", Integer, primary_key=True),
    Column("batch", Integer, ForeignKey("batches.sequence"), nullable=False),
    Column("line_number", BigInteger, nullable=False),
    Column("is_error", Boolean, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Index("results_by_line", "batch", "line_number", unique=True),
    Index("results_by_commit", "batch", "is_error", "sequence"),
)

KEYS = Table(
    "keys",
    METADATA,
    Column("sequence", Integer, primary_key=True),
    Column("id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    Index("keys_by_id", "id", unique=True),
    Index(
        "keys_valid_by_name",
        "name",
        unique=True,
        sqlite_where=text("revoked_at IS NULL"),
        postgresql_where=text("revoked_at IS NULL"),
    ),
    sqlite_autoincrement=True,
)

DRAINS = Table(
    "drains",
    METADATA,
    Column("worker", Text, primary_key=True),
    Column("instance", Text, nullable=False),
    Column("until_ms", BigInteger, nullable=False),
)

WORKER_SIZES = Table(
    "worker_sizes",
    METADATA,
    Column("kv_bytes", BigInteger, primary_key=True, autoincrement=False),
    Column("seen_at", BigInteger, nullable=False),
)

COUNTERS = Table(
    "counters",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
