"""What the store keeps: files, batches, their lines and results, as frozen data.

Times are whole seconds since 1970, as OpenAI's objects have them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class BatchStatus(StrEnum):
    """Where a batch stands, in OpenAI's words.

    validating -> in_progress -> finalizing -> completed
        |             |-> (time is over) --> finalizing -> expired
        v             `-> cancelling ------> finalizing -> cancelled
      failed
    """

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens to the batch."""
        return self in _FINAL


_FINAL = frozenset(
    {BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}
)


class FilePurpose(StrEnum):
    """What a file is for."""

    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"


@dataclass(frozen=True)
class FileRecord:
    """A file whose content is complete. owner: the key that uploaded it; None without keys."""

    id: str
    purpose: FilePurpose
    filename: str
    num_bytes: int
    created_at: int
    owner: str | None = None


@dataclass(frozen=True)
class BatchError:
    """Why a batch failed as a whole. line: of the input, from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True)
class RequestCounts:
    """Lines of a batch: all, answered with a 200, and answered with an error."""

    total: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True)
class BatchRecord:
    """A batch job. Times are None until they come. outcome: the final status that a batch in
    `finalizing` goes to; None in every other status."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: BatchStatus
    created_at: int
    expires_at: int
    priority: int = 0
    owner: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    counts: RequestCounts = RequestCounts()
    errors: tuple[BatchError, ...] = ()
    outcome: BatchStatus | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None


@dataclass(frozen=True)
class LineRecord:
    """Where a line of a batch's input lies: its number from 1, its bytes without the line end."""

    line_number: int
    custom_id: str
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class LineResult:
    """The one answer of a line: a whole output line, its line end included. is_error: it
    belongs into the error file."""

    line_number: int
    is_error: bool
    content: bytes


@dataclass(frozen=True)
class DrainRecord:
    """A worker that is to be empty by a time, in milliseconds since 1970. instance: tells the
    process from another one of its name."""

    worker: str
    instance: str
    until_ms: int


@dataclass(frozen=True)
class WorkerSize:
    """KV memory that an attention worker has or had, in bytes, and when such a one was last
    there, in seconds since 1970."""

    kv_bytes: int
    seen_at: int


@dataclass(frozen=True)
class KeyRecord:
    """An API key as it is kept: its hash, never the key. revoked_at: None while it is valid."""

    id: str
    name: str
    sha256: str
    created_at: int
    revoked_at: int | None = None
