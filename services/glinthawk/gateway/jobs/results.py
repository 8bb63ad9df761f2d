"""From what became of a line to the one result that is kept of it. Pure, but for the time."""

import hashlib
from http import HTTPStatus

from glinthawk.errors import GlinthawkError, InvalidRequest
from glinthawk.gateway.bodies import (
    build_body,
    build_error_line,
    build_line_ids,
    build_output_line,
    build_unanswered_line,
)
from glinthawk.gateway.engine import Completion
from glinthawk.gateway.store.records import BatchStatus, LineRecord, LineResult
from glinthawk.models.tokenizer import Tokenizer

_WHY_UNANSWERED = {
    BatchStatus.EXPIRED: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
    BatchStatus.CANCELLED: (
        "batch_cancelled",
        "This request was not executed before the batch was cancelled.",
    ),
}


MAX_ANSWER_BYTES = 256 << 20
"""Longest output line that is kept; the store ends at a thousand million bytes."""


def digest_batch(batch_id: str) -> str:
    """Return the digest from which the ids in a batch's output lines are made."""
    return hashlib.sha256(batch_id.encode()).hexdigest()


def build_failure(digest: str, line: LineRecord, error: GlinthawkError) -> LineResult:
    """Return the result of a line that cannot run, or failed."""
    ids = build_line_ids(digest, line.line_number)
    return LineResult(line.line_number, True, build_error_line(ids, line.custom_id, error))


def build_answer(
    digest: str, line: LineRecord, completion: Completion, tokenizer: Tokenizer, *, created: int
) -> LineResult:
    """Return the result of a line whose request ended. created: seconds since 1970."""
    if completion.error is not None:
        return build_failure(digest, line, completion.error)
    ids = build_line_ids(digest, line.line_number)
    body = build_body(
        completion.request, completion.choices, tokenizer, body_id=ids.body, created=created
    )
    content = build_output_line(ids, line.custom_id, HTTPStatus.OK, body)
    if len(content) > MAX_ANSWER_BYTES:
        return build_failure(
            digest,
            line,
            InvalidRequest(
                f"the answer has {len(content)} bytes; {MAX_ANSWER_BYTES} are kept at most. Lower "
                "n, max_tokens or the number of logprobs"
            ),
        )
    return LineResult(line.line_number, False, content)


def build_unanswered(digest: str, line: LineRecord, outcome: BatchStatus) -> LineResult:
    """Return the result of a line that the end of its batch overtook: expired or cancelled."""
    code, message = _WHY_UNANSWERED[outcome]
    ids = build_line_ids(digest, line.line_number)
    content = build_unanswered_line(ids, line.custom_id, code=code, message=message)
    return LineResult(line.line_number, True, content)
