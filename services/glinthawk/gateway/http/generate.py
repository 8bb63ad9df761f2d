"""/v1/chat/completions and /v1/completions: a request answered whole, or as a stream."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from glinthawk.errors import PeerUnavailable
from glinthawk.gateway.api.accounts import Accounts, count_tokens
from glinthawk.gateway.api.services import ApiServices
from glinthawk.gateway.api.stream_options import StreamOptions, take_stream_options
from glinthawk.gateway.bodies import build_body
from glinthawk.gateway.engine import Completion
from glinthawk.gateway.http import schemas, schemas_answers, schemas_requests
from glinthawk.gateway.http.calls import Call, News, open_call
from glinthawk.gateway.http.errors import JsonAnswer
from glinthawk.gateway.http.guard import Caller, Guard
from glinthawk.gateway.http.reading import read_object
from glinthawk.gateway.http.streaming import ChunkWriter
from glinthawk.gateway.requests import (
    Endpoint,
    ParsedRequest,
    check_model,
    derive_seed,
    parse_body,
)


def build_generate_routes(services: ApiServices, guard: Guard, accounts: Accounts) -> APIRouter:
    """Return the routes that generate text."""
    refusals = schemas.describe_errors(400, 401, 404, 413, 415, 429, 500, 503)
    router = APIRouter(tags=["Generate"], responses=refusals)
    known_caller = Annotated[Caller, Depends(guard)]

    @router.post(
        Endpoint.CHAT,
        summary="Continue a conversation",
        responses=schemas.describe_streamed(
            schemas_answers.ChatCompletion, schemas_answers.ChatCompletionChunk
        ),
        openapi_extra=schemas.describe_body(schemas_requests.ChatCompletionRequest),
    )
    async def create_chat_completion(request: Request, caller: known_caller) -> Response:
        """Answer with the next turn, whole or, with `stream`, as events. A client that hangs up
        gives its request up."""
        return await _accept(Endpoint.CHAT, request, caller, services, accounts)

    @router.post(
        Endpoint.COMPLETIONS,
        summary="Continue a text",
        responses=schemas.describe_streamed(schemas_answers.Completion, schemas_answers.Completion),
        openapi_extra=schemas.describe_body(schemas_requests.CompletionRequest),
    )
    async def create_completion(request: Request, caller: known_caller) -> Response:
        """Answer with what follows each prompt, whole or, with `stream`, as events. A client that
        hangs up gives its request up."""
        return await _accept(Endpoint.COMPLETIONS, request, caller, services, accounts)

    return router


async def _accept(
    endpoint: Endpoint,
    request: Request,
    caller: Caller,
    services: ApiServices,
    accounts: Accounts,
) -> Response:
    """Check a request wholly; what is returned runs it. It is open from its first byte on, so the
    bodies that are held at a time are bounded too."""
    with accounts.open(caller.name, 0):
        body = await read_object(request, services.limits.max_body_bytes)
        check_model(body.get("model"), services.model_names)
        options = take_stream_options(body)
        generation = services.generation
        body_id = services.new_id()
        parsed = await run_in_threadpool(
            parse_body,
            endpoint,
            body,
            generation.context,
            default_seed=derive_seed(generation.run_seed, body_id),
        )
        if not generation.is_ready:
            raise PeerUnavailable("no token can be generated now; /ready tells when it can be")
        return GeneratedAnswer(parsed, options, services, accounts, caller=caller, body_id=body_id)


class GeneratedAnswer(Response):
    """Runs a request when the server asks for the answer, and gives it up if the client goes."""

    def __init__(
        self,
        request: ParsedRequest,
        options: StreamOptions | None,
        services: ApiServices,
        accounts: Accounts,
        *,
        caller: Caller,
        body_id: str,
    ) -> None:
        super().__init__()
        self._request = request
        self._options = options
        self._services = services
        self._accounts = accounts
        self._caller = caller
        self._body_id = body_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Generate and answer."""
        generation = self._services.generation
        with self._accounts.open(self._caller.name, count_tokens(self._request)):
            async with open_call(
                generation,
                f"http-{self._body_id}",
                self._request,
                receive,
                is_heard=self._options is not None,
            ) as call:
                if self._options is None:
                    await self._answer_whole(call, scope, receive, send)
                else:
                    await self._answer_in_pieces(call, self._options, send)

    async def _answer_whole(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        completion = await call.finish()
        if completion.error is not None:
            raise completion.error
        body = await run_in_threadpool(
            build_body,
            self._request,
            completion.choices,
            self._services.generation.context.tokenizer,
            body_id=self._body_id,
            created=self._services.now(),
        )
        await JsonAnswer(body)(scope, receive, send)

    async def _answer_in_pieces(self, call: Call, options: StreamOptions, send: Send) -> None:
        """Send events as they come. An error before the first is an answer like any other."""
        writer = ChunkWriter(
            self._request,
            self._services.generation.context.tokenizer,
            options,
            body_id=self._body_id,
            created=self._services.now(),
        )
        is_started = False
        while not writer.is_done:
            news = await call.wait(self._services.comment_every_s)
            if not is_started:
                _raise_error(news)
                start = {"type": "http.response.start", "status": HTTPStatus.OK}
                await send(start | {"headers": _HEADERS})
                is_started = True
            events = writer.write(news) if news else _COMMENT
            if events or writer.is_done:
                more = {"more_body": not writer.is_done}
                await send({"type": "http.response.body", "body": events} | more)


_COMMENT = b": waiting\n\n"
"""What clients of server-sent events pass over; it keeps a connection that is quiet alive."""

_HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy must not collect the events
]


def _raise_error(news: Sequence[News]) -> None:
    if news and isinstance(news[0], Completion) and news[0].error is not None:
        raise news[0].error
