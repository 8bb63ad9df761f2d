"""The control API: how the gateway stands, and drains, as JSON over HTTP.

    GET    /v1/inspection
    PUT    /v1/workers/NAME/drain   {"deadline_s": 300}
    DELETE /v1/workers/NAME/drain

The operator and `glinthawk status | drain` speak to it. It is guarded by the cluster's shared
secret, as a bearer token, and has a port of its own: users' keys are worth nothing here.
"""

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, FastAPI, Path
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from glinthawk import __version__
from glinthawk.errors import Unauthenticated
from glinthawk.gateway.api.operations import DEFAULT_DEADLINE_S, MAX_DEADLINE_S, Operations
from glinthawk.gateway.http import schemas
from glinthawk.gateway.http.document import describe_app
from glinthawk.gateway.http.errors import (
    Boundary,
    JsonAnswer,
    add_error_handlers,
    build_error_answer,
)
from glinthawk.gateway.inspection import Inspection


class DrainBody(BaseModel):
    """How a worker is drained."""

    deadline_s: float = Field(
        default=DEFAULT_DEADLINE_S,
        ge=0,
        le=MAX_DEADLINE_S,
        description="Seconds for which sequences may run on where they are.",
    )


class DrainBegun(BaseModel):
    """A drain that has begun."""

    worker: str = Field(description="The worker's name.")
    deadline_s: float = Field(description="Seconds until it is empty.")


_Worker = Annotated[str, Path(description="The worker's name.")]
_bearer = HTTPBearer(auto_error=False, description="The cluster's shared secret.")


def build_control_app(operations: Operations, secret: str | None) -> FastAPI:
    """Return the application. secret: None asks for none."""
    app = FastAPI(
        title="Glinthawk control",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # It only describes: the middleware below asks for the secret.
        dependencies=[Depends(_bearer)],
        responses=schemas.describe_errors(401, 500),
    )

    @app.middleware("http")
    async def guard(
        request: Request, proceed: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        # Before routes: they read the body, which nobody without the secret may have us do.
        shown = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        is_guarded = secret is not None and request.url.path.startswith("/v1/")
        if is_guarded and not hmac.compare_digest(shown, (secret or "").encode()):
            return build_error_answer(
                Unauthenticated(
                    "the cluster's shared secret is missing or wrong: send it as a bearer token"
                )
            )
        return await proceed(request)

    @app.get("/v1/inspection", summary="Tell how the gateway stands", response_model=Inspection)
    def inspect() -> JsonAnswer:
        """Return tiers, workers, KV and batches; figures are half a second old at most."""
        return JsonAnswer(operations.inspect())

    @app.put(
        "/v1/workers/{name:path}/drain",
        summary="Drain a worker",
        status_code=202,
        response_model=DrainBegun,
        responses=schemas.describe_errors(400, 404, 503),
    )
    def drain(name: _Worker, request: DrainBody) -> JsonAnswer:
        """Place nothing more on a worker. What does not end there in time is copied to others, or
        computed again; then its state is `drained`."""
        operations.drain(name, request.deadline_s)
        return JsonAnswer({"worker": name, "deadline_s": request.deadline_s}, status_code=202)

    @app.delete(
        "/v1/workers/{name:path}/drain",
        summary="Take a drain back",
        status_code=204,
        responses=schemas.describe_errors(404, 503),
    )
    def cancel_drain(name: _Worker) -> Response:
        """Place sequences on the worker again."""
        operations.cancel_drain(name)
        return Response(status_code=204)

    describe_app(app, ())
    add_error_handlers(app)
    app.add_middleware(Boundary)
    return app
