"""Answers in OpenAI's form: response bodies, and the lines of a batch output file.

Pure: ids and the time of creation arrive as arguments, so that the same run gives the same
answers.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from glinthawk.errors import (
    CapacityExceeded,
    GlinthawkError,
    InvalidRequest,
    NotFound,
    PeerUnavailable,
    StoreUnavailable,
    Unauthenticated,
)
from glinthawk.gateway.detokenize import ChoiceResult
from glinthawk.gateway.limits import ContextTooLong
from glinthawk.gateway.logprobs import build_chat_logprobs, build_completion_logprobs, build_echo
from glinthawk.gateway.requests import Endpoint, ParsedRequest, RefusedLine, UnknownModel
from glinthawk.models.tokenizer import Tokenizer

_LINE_ID = re.compile(r"batch_req_([0-9a-f]{16})_([0-9]{1,18})\Z")

_MOST_PARAM_CHARACTERS = 200
"""Of a field's name: one that is unknown is the caller's own, however long."""

_INVALID = "invalid_request_error"
_SERVER = "server_error"
_FORMS: tuple[tuple[type[GlinthawkError], HTTPStatus, str, str | None], ...] = (
    (ContextTooLong, HTTPStatus.BAD_REQUEST, _INVALID, "context_length_exceeded"),
    (InvalidRequest, HTTPStatus.BAD_REQUEST, _INVALID, None),
    (Unauthenticated, HTTPStatus.UNAUTHORIZED, _INVALID, "invalid_api_key"),
    (UnknownModel, HTTPStatus.NOT_FOUND, _INVALID, "model_not_found"),
    (NotFound, HTTPStatus.NOT_FOUND, _INVALID, None),
    (CapacityExceeded, HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_error", "rate_limit_exceeded"),
    (PeerUnavailable, HTTPStatus.SERVICE_UNAVAILABLE, _SERVER, None),
    (StoreUnavailable, HTTPStatus.SERVICE_UNAVAILABLE, _SERVER, None),
    (GlinthawkError, HTTPStatus.INTERNAL_SERVER_ERROR, _SERVER, None),
)
"""Status, type and code of each error; the first that fits counts. OpenAI's, where it has one:
type says whose fault it is, code is a word that programs branch on."""


@dataclass(frozen=True)
class LineIds:
    """The ids in an output line. They follow from the run and the input line alone.

    line carries the line's number, so that an output file tells which lines it answers.
    """

    line: str
    request: str
    body: str


def build_line_ids(run_digest: str, line_number: int) -> LineIds:
    """Return the ids for line `line_number` of the run whose SHA-256 is `run_digest` (hex)."""
    unique = hashlib.sha256(f"{run_digest}\n{line_number}".encode()).hexdigest()
    return LineIds(
        line=f"batch_req_{run_digest[:16]}_{line_number}",
        request=f"req_{unique[:32]}",
        body=unique[32:],
    )


def parse_line_id(line_id: object, run_digest: str) -> int | None:
    """Return the number of the input line that `line_id` answers; None: not of this run."""
    match = _LINE_ID.match(line_id) if isinstance(line_id, str) else None
    if match is None or match[1] != run_digest[:16]:
        return None
    return int(match[2])


def build_body(
    request: ParsedRequest,
    results: Sequence[ChoiceResult],
    tokenizer: Tokenizer,
    *,
    body_id: str,
    created: int,
) -> dict[str, Any]:
    """Return a chat.completion or text_completion with all choices, sorted by index.

    created: seconds since 1970. results: one for each choice, in any order.
    """
    is_chat = request.endpoint is Endpoint.CHAT
    build_choice = _build_chat_choice if is_chat else _build_completion_choice
    ordered = sorted(results, key=lambda result: result.index)
    num_prompt_tokens = request.num_prompt_tokens
    num_completion_tokens = sum(len(result.tokens) for result in ordered)
    return {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{body_id}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": created,
        "model": request.model,
        "choices": [build_choice(request, result, tokenizer) for result in ordered],
        "usage": {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": num_completion_tokens,
            "total_tokens": num_prompt_tokens + num_completion_tokens,
        },
    }


def build_error_body(error: GlinthawkError) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the body that tell a caller of `error`, here and in a batch."""
    status, kind, code = next(
        (status, kind, code) for leaf, status, kind, code in _FORMS if isinstance(error, leaf)
    )
    param = error.param if isinstance(error, InvalidRequest | UnknownModel) else None
    param = None if param is None else param[:_MOST_PARAM_CHARACTERS]
    document = {"message": str(error), "type": kind, "param": param, "code": code}
    return int(status), {"error": document}


def build_output_line(
    ids: LineIds, custom_id: str | None, status_code: int, body: Mapping[str, Any]
) -> bytes:
    """Return one line of a batch output file, its line end included."""
    document = {
        "id": ids.line,
        "custom_id": custom_id,
        "response": {"status_code": status_code, "request_id": ids.request, "body": body},
        "error": None,
    }
    return encode_json_line(document)


def build_error_line(ids: LineIds, custom_id: str | None, error: GlinthawkError) -> bytes:
    """Return the output line of a request that failed with `error`."""
    status_code, body = build_error_body(error)
    return build_output_line(ids, custom_id, status_code, body)


def build_refused_line(ids: LineIds, refused: RefusedLine) -> bytes:
    """Return the output line of an input line that is no request."""
    error = InvalidRequest(refused.message, param=refused.param)
    return build_error_line(ids, refused.custom_id, error)


def build_unanswered_line(ids: LineIds, custom_id: str | None, *, code: str, message: str) -> bytes:
    """Return the output line of a request that was never answered, as OpenAI has it: the batch
    ended before."""
    document = {
        "id": ids.line,
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }
    return encode_json_line(document)


def encode_json_line(document: Mapping[str, Any]) -> bytes:
    """Return `document` as one line of UTF-8 that every reader takes for one line.

    Some readers also split at the line ends of Unicode; half a surrogate pair has no UTF-8.
    """
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for separator in ("\x85", "\u2028", "\u2029"):
        text = text.replace(separator, f"\\u{ord(separator):04x}")
    try:
        return text.encode("utf-8") + b"\n"
    except UnicodeEncodeError:
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _build_chat_choice(
    request: ParsedRequest, result: ChoiceResult, tokenizer: Tokenizer
) -> dict[str, Any]:
    wants_logprobs = request.num_logprobs is not None
    choice: dict[str, Any] = {
        "index": result.index,
        "message": {"role": "assistant", "content": result.text},
        "logprobs": build_chat_logprobs(result, tokenizer) if wants_logprobs else None,
        "finish_reason": str(result.finish_reason),
    }
    return choice | _build_token_ids(request, result)


def _build_completion_choice(
    request: ParsedRequest, result: ChoiceResult, tokenizer: Tokenizer
) -> dict[str, Any]:
    echo = None
    if request.echo:
        echo = build_echo(request.prompts[result.prompt_index], tokenizer)
    logprobs = None
    if request.num_logprobs is not None:
        logprobs = build_completion_logprobs(result, echo, request.num_logprobs, tokenizer)
    choice: dict[str, Any] = {
        "index": result.index,
        "text": result.text if echo is None else echo.text + result.text,
        "logprobs": logprobs,
        "finish_reason": str(result.finish_reason),
    }
    return choice | _build_token_ids(request, result)


def _build_token_ids(request: ParsedRequest, result: ChoiceResult) -> dict[str, Any]:
    """Return the token ids of a choice where return_token_ids asks for them (vLLM's)."""
    if not request.return_token_ids:
        return {}
    return {
        "prompt_token_ids": list(request.prompts[result.prompt_index].tokens),
        "token_ids": list(result.tokens),
    }
