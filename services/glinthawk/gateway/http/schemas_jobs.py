"""The shapes of files and batches, for /openapi.json. See `schemas`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

BatchStatusWord = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]


class _Closed(BaseModel):
    """No other fields."""

    model_config = ConfigDict(extra="forbid")


class FileObject(_Closed):
    """A file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]
    status_details: None
    expires_at: None


class FileList(_Closed):
    """A page of files."""

    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(_Closed):
    """A file that is gone."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class FileUpload(_Closed):
    """The form that uploads a file."""

    purpose: Literal["batch"]
    file: str = Field(json_schema_extra={"format": "binary"})


class BatchRequest(_Closed):
    """A batch to create."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions"]
    completion_window: str = Field(
        pattern=r"^[1-9][0-9]{0,3}[hd]$",
        description="Hours or days until the batch expires, like 24h or 7d; at most a year.",
    )
    metadata: dict[str, str] | None = Field(
        default=None,
        max_length=16,
        description="At most 16 pairs; keys to 64 characters, values to 512.",
    )
    priority: int | None = Field(
        default=None, ge=-100, le=100, description="Higher ones get more; the default is 0."
    )


class BatchErrorDetail(_Closed):
    """Why a batch failed as a whole. line: of the input."""

    code: str
    message: str
    line: int | None
    param: str | None


class BatchErrors(_Closed):
    """All such reasons."""

    object: Literal["list"]
    data: list[BatchErrorDetail]


class RequestCountsBody(_Closed):
    """Lines of a batch: all, answered, and answered with an error."""

    total: int
    completed: int
    failed: int


class Batch(_Closed):
    """A batch."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatusWord
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCountsBody
    metadata: dict[str, str] | None
    priority: int


class BatchList(_Closed):
    """A page of batches."""

    object: Literal["list"]
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


DESCRIBED: list[type[BaseModel]] = [BatchRequest, FileUpload]
"""Models that a route names by reference."""
