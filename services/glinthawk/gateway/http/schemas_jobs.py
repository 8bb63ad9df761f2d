"""The shapes of files and batches, for /openapi.json. See `schemas`."""

from typing import Literal

from pydantic import BaseModel, Field

from glinthawk.gateway.http.schemas import ClosedBody

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


class FileObject(ClosedBody):
    """A file."""

    id: str = Field(description="Of the file.")
    object: Literal["file"] = Field(description="What this is.")
    bytes: int = Field(description="Its size.")
    created_at: int = Field(description="When it was uploaded or written; seconds since 1970.")
    filename: str = Field(description="As it was uploaded.")
    purpose: Literal["batch", "batch_output"] = Field(
        description="`batch`: uploaded, the input of batches. `batch_output`: answers or errors."
    )
    status: Literal["processed"] = Field(description="A file that is listed is whole.")
    status_details: None = Field(description="Nothing.")
    expires_at: None = Field(description="Files stay until they are deleted.")


class FileList(ClosedBody):
    """A page of files."""

    object: Literal["list"] = Field(description="What this is.")
    data: list[FileObject] = Field(description="The files.")
    first_id: str | None = Field(description="Of the page's first file.")
    last_id: str | None = Field(description="Of its last one: `after` of the next page.")
    has_more: bool = Field(description="There is a next page.")


class FileDeleted(ClosedBody):
    """A file that is gone."""

    id: str = Field(description="Of the file.")
    object: Literal["file"] = Field(description="What this is.")
    deleted: Literal[True] = Field(description="It is gone.")


class FileUpload(ClosedBody):
    """The form that uploads a file."""

    purpose: Literal["batch"] = Field(description="What the file is for.")
    file: str = Field(
        description="The bytes, with a file name; up to the configured size.",
        json_schema_extra={"format": "binary"},
    )


class BatchRequest(ClosedBody):
    """A batch to create."""

    input_file_id: str = Field(description="An uploaded file of requests, a line each.")
    endpoint: Literal["/v1/chat/completions", "/v1/completions"] = Field(
        description="What all lines ask of."
    )
    completion_window: str = Field(
        pattern=r"^[1-9][0-9]{0,3}[hd]$",
        description="Hours or days until the batch expires, like `24h` or `7d`; at most 366 days.",
    )
    metadata: dict[str, str] | None = Field(
        default=None,
        max_length=16,
        description="The caller's own pairs; keys to 64 characters, values to 512.",
    )
    priority: int | None = Field(
        default=0,
        ge=-100,
        le=100,
        description="Each step doubles the batch's share of the tokens, up to 8 steps from 0. "
        "Glinthawk's own field.",
    )


class BatchErrorDetail(ClosedBody):
    """Why a batch failed as a whole, or does not get on."""

    code: str = Field(description="A word that programs may branch on.")
    message: str = Field(description="What is wrong.")
    line: int | None = Field(description="Of the input, from 1.")
    param: str | None = Field(description="The field at fault.")


class BatchErrors(ClosedBody):
    """All such reasons."""

    object: Literal["list"] = Field(description="What this is.")
    data: list[BatchErrorDetail] = Field(description="The reasons.")


class RequestCountsBody(ClosedBody):
    """Lines of a batch."""

    total: int = Field(description="All that are known; 0 before validation has ended.")
    completed: int = Field(description="Answered.")
    failed: int = Field(description="Answered with an error.")


class Batch(ClosedBody):
    """A batch. Times are seconds since 1970, null for what did not happen."""

    id: str = Field(description="Of the batch.")
    object: Literal["batch"] = Field(description="What this is.")
    endpoint: str = Field(description="What all lines ask of.")
    errors: BatchErrors | None = Field(description="Why it failed, or does not get on.")
    input_file_id: str = Field(description="The file of requests.")
    completion_window: str = Field(description="As it was asked for.")
    status: BatchStatusWord = Field(
        description="`validating`, `in_progress`, `finalizing`, `completed` in the good case. "
        "`expired` and `cancelled` keep what was answered; `failed` has no valid line."
    )
    output_file_id: str | None = Field(description="The answers, once it is over.")
    error_file_id: str | None = Field(description="The errors, once it is over, if there are any.")
    created_at: int = Field(description="When it was created.")
    in_progress_at: int | None = Field(description="When its validation had ended.")
    expires_at: int = Field(description="When it expires.")
    finalizing_at: int | None = Field(description="When its last line was answered.")
    completed_at: int | None = Field(description="When it was completed.")
    failed_at: int | None = Field(description="When it failed.")
    expired_at: int | None = Field(description="When it expired.")
    cancelling_at: int | None = Field(description="When its end was asked for.")
    cancelled_at: int | None = Field(description="When it ended by that.")
    request_counts: RequestCountsBody = Field(description="Its lines.")
    metadata: dict[str, str] | None = Field(description="The caller's own pairs.")
    priority: int = Field(description="As it was asked for.")


class BatchList(ClosedBody):
    """A page of batches, newest first."""

    object: Literal["list"] = Field(description="What this is.")
    data: list[Batch] = Field(description="The batches.")
    first_id: str | None = Field(description="Of the page's first batch.")
    last_id: str | None = Field(description="Of its last one: `after` of the next page.")
    has_more: bool = Field(description="There is a next page.")


DESCRIBED: list[type[BaseModel]] = [BatchRequest, FileUpload]
"""Models that a route names by reference."""
