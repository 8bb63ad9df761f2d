"""Errors as OpenAI's clients read them: one shape for every answer that is not a success.

    {"error": {"message": ..., "type": ..., "param": ... or null, "code": ... or null}}

`code` is a word or null, as OpenAI has it; clients branch on it. Every answer names its call in the
header x-request-id, and so does what the log says of a call that failed. Nothing that is raised by
accident shows its text to a caller or in a log, for it may hold a prompt.
"""

import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glinthawk.errors import GlinthawkError, InvalidRequest, InvariantBroken
from glinthawk.gateway.bodies import build_error_body, encode_json_line
from glinthawk.gateway.fields import shown
from glinthawk.gateway.http.metrics import METHODS, find_route
from glinthawk.telemetry.logging import describe_exception, get_logger

log = get_logger("gateway.http")

_REQUEST_ID = "glinthawk.request_id"
"""Where the id of a call stands in its scope."""

RETRY_AFTER_S = 1
"""Seconds after which a call that found no room, or nobody at work, may come again."""


class RefusedCall(InvalidRequest):
    """A refusal that has a status or a code of its own in HTTP."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.code = code


class JsonAnswer(Response):
    """A JSON body; text that UTF-8 cannot carry is escaped, not an error."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body's bytes."""
        return encode_json_line(content)


def build_error(error: GlinthawkError) -> tuple[int, dict[str, Any]]:
    """Return the status and the body that tell a caller of `error`."""
    status, body = build_error_body(error)
    if isinstance(error, RefusedCall):
        return int(error.status), {"error": body["error"] | {"code": error.code}}
    return status, body


def build_error_answer(error: GlinthawkError) -> JsonAnswer:
    """Return the whole answer to a caller whose call ended in `error`."""
    status, body = build_error(error)
    headers: dict[str, str] = {}
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers["retry-after"] = str(RETRY_AFTER_S)
    elif status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    elif status == HTTPStatus.CONFLICT:
        # OpenAI's client tries a conflict again unless it is told not to.
        headers["x-should-retry"] = "false"
    return JsonAnswer(body, status_code=status, headers=headers)


def add_error_handlers(app: FastAPI) -> None:
    """Translate what routes and the framework raise."""

    @app.exception_handler(GlinthawkError)
    async def answer_ours(request: Request, error: GlinthawkError) -> Response:
        answer = build_error_answer(error)
        if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.warning(
                "http_call_failed",
                route=find_route(request.scope),
                request_id=request.scope.get(_REQUEST_ID),
                error=type(error).__name__,
            )
        return answer

    @app.exception_handler(RequestValidationError)
    async def answer_parameter(_: Request, error: RequestValidationError) -> Response:
        problem = error.errors()[0]
        param = str(problem["loc"][-1])
        message = f"{param} {shown(problem.get('input'))}: {problem['msg']}"
        return build_error_answer(InvalidRequest(message, param=param))

    @app.exception_handler(HTTPException)
    async def answer_framework(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            # The framework names those of the first route alone that has the path.
            headers["Allow"] = ", ".join(_find_methods(app, request.scope))
        answer = build_error_answer(_translate(request, error, headers))
        answer.headers.update(headers)
        return answer


def _find_methods(app: FastAPI, scope: Scope) -> list[str]:
    """Return the methods that a path has."""
    return [
        method
        for method in METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in app.routes)
    ]


def _translate(
    request: Request, error: HTTPException, headers: Mapping[str, str]
) -> GlinthawkError:
    where = f"{request.method} {shown(request.url.path)}"
    status = HTTPStatus(error.status_code)
    if status is HTTPStatus.NOT_FOUND:
        message = f"there is no {where}; /openapi.json lists what there is"
        return RefusedCall(status, message, code="unknown_url")
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{where} is not allowed; use {headers['Allow']}"
        return RefusedCall(status, message, code="method_not_allowed")
    return RefusedCall(status, f"{where}: {error.detail}")


class Boundary:
    """The outermost layer: a defect of ours becomes a 500, and a line in the log that says where.

    The line has no text of the exception: that may hold what the caller wrote.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call."""
        is_started = False
        request_id = scope[_REQUEST_ID] = f"req_{uuid.uuid4().hex}"

        async def send_noted(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except ClientDisconnect:
            return  # nobody is left to answer
        except Exception as error:  # noqa: BLE001 - the server's boundary
            name, where = describe_exception(error)
            log.error(
                "http_call_failed",
                route=find_route(scope),
                request_id=request_id,
                error=name,
                where=where,
            )
            if not is_started:  # else the server cuts the connection, so that it is no whole answer
                defect = InvariantBroken(
                    f"a defect of the gateway ({type(error).__name__}); its log says where"
                )
                await build_error_answer(defect)(scope, receive, send_noted)
