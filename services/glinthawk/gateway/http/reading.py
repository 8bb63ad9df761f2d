"""Bodies of requests, read up to a bound: one that is larger is refused while it arrives."""

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Receive

from glinthawk.errors import InvalidRequest
from glinthawk.gateway.fields import name_kind
from glinthawk.gateway.http.errors import RefusedCall
from glinthawk.gateway.requests import load_json

MOST_SILENCE_S = 60.0
"""A body of which nothing more comes for so long is given up."""


def build_too_large(what: str, max_bytes: int) -> RefusedCall:
    """Return the refusal of something that is longer than it may be."""
    return RefusedCall(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"{what} is larger than {max_bytes} bytes, the most that is taken; send less",
        code="request_too_large",
    )


def check_media_type(request: Request, wanted: str) -> None:
    """Refuse a body of another kind.

    Raises:
        RefusedCall: Content-Type names another kind, or none.
    """
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != wanted:
        raise RefusedCall(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the body must be {wanted}; the header Content-Type says {given[:100]!r}",
            code="unsupported_media_type",
        )


async def iterate_body(request: Request, max_bytes: int, what: str) -> AsyncIterator[bytes]:
    """Yield the body as it arrives.

    Raises:
        RefusedCall: it is, or says that it will be, larger than `max_bytes`, or stops coming.
        ClientDisconnect: the client hung up on the way.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > max_bytes:
        raise build_too_large(what, max_bytes)
    num_bytes = 0
    stream = aiter(request.stream())
    while (piece := await _next_piece(stream, what)) is not None:
        num_bytes += len(piece)
        if num_bytes > max_bytes:
            raise build_too_large(what, max_bytes)
        if piece:
            yield piece


async def _next_piece(stream: AsyncIterator[bytes], what: str) -> bytes | None:
    """Return the next piece, None after the last."""
    try:
        async with asyncio.timeout(MOST_SILENCE_S):
            return await anext(stream, None)
    except TimeoutError as error:
        raise RefusedCall(
            HTTPStatus.REQUEST_TIMEOUT,
            f"nothing more of {what} came for {MOST_SILENCE_S:g} seconds; send it again",
            code="request_timeout",
        ) from error


async def read_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object that is the body.

    Raises:
        InvalidRequest: it is too large, of another kind, or no JSON object.
    """
    check_media_type(request, "application/json")
    pieces = [piece async for piece in iterate_body(request, max_bytes, "the body")]
    try:
        document = await run_in_threadpool(load_json, b"".join(pieces))
    except ValueError as error:
        raise InvalidRequest(f"the body cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {name_kind(document)}")
    return document


async def wait_for_hang_up(receive: Receive) -> None:
    """Return when the client has hung up, or has been answered. Its body was read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
