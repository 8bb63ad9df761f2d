"""The control API: how the gateway stands, and drains, as JSON over HTTP.

    GET    /v1/inspection
    PUT    /v1/workers/NAME/drain   {"deadline_s": 300}
    DELETE /v1/workers/NAME/drain

The operator and `glinthawk status | drain` speak to it. It is guarded by the cluster's shared
secret, as a bearer token, and has a port of its own: users' keys are worth nothing here.
"""

import hmac
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header
from pydantic import BaseModel, Field
from starlette.responses import Response

from glinthawk import __version__
from glinthawk.errors import PeerUnavailable, Unauthenticated
from glinthawk.gateway.drain_book import DrainBook
from glinthawk.gateway.engine import Engine
from glinthawk.gateway.http.errors import Boundary, JsonAnswer, add_error_handlers
from glinthawk.gateway.inspection import Inspector

DEFAULT_DEADLINE_S = 300.0
MAX_DEADLINE_S = 7 * 24 * 3600.0


class DrainRequest(BaseModel):
    """How long sequences may run on where they are, in seconds."""

    deadline_s: float = Field(default=DEFAULT_DEADLINE_S, ge=0, le=MAX_DEADLINE_S)


class Operations:
    """What can be asked of a gateway beside generating. Any thread may."""

    def __init__(self, inspector: Inspector, drains: DrainBook) -> None:
        self._inspector = inspector
        self._drains = drains
        self._engine: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """Act on an engine from now on."""
        self._engine = engine

    def inspect(self) -> dict[str, Any]:
        """Return how the gateway stands, as JSON can hold it."""
        return self._inspector.inspect().to_document()

    def drain(self, worker: str, deadline_s: float) -> None:
        """Begin to drain a worker; a gateway that is started again goes on with it.

        Raises:
            NotFound: there is no such worker.
            PeerUnavailable: the stages were not there yet.
            StoreUnavailable: it cannot be kept; the worker does not drain.
        """
        engine = self._require_engine()
        self._drains.note(worker, engine.find_worker(worker).instance, deadline_s)
        engine.drain(worker, deadline_s)

    def cancel_drain(self, worker: str) -> None:
        """Take a drain back; raises as `drain`."""
        engine = self._require_engine()
        engine.find_worker(worker)
        self._drains.forget(worker)
        engine.cancel_drain(worker)

    def _require_engine(self) -> Engine:
        if self._engine is None:
            raise PeerUnavailable("the stages of the model are not there yet; try again later")
        return self._engine


def build_control_app(operations: Operations, secret: str | None) -> FastAPI:
    """Return the application. secret: None asks for none."""
    app = FastAPI(
        title="Glinthawk control",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )

    def guard(authorization: Annotated[str, Header()] = "") -> None:
        shown = authorization.removeprefix("Bearer ").encode()
        if secret is not None and not hmac.compare_digest(shown, secret.encode()):
            raise Unauthenticated(
                "the cluster's shared secret is missing or wrong: send it as a bearer token"
            )

    guarded = [Depends(guard)]

    @app.get("/v1/inspection", summary="How the gateway stands", dependencies=guarded)
    def inspect() -> JsonAnswer:
        return JsonAnswer(operations.inspect())

    @app.put("/v1/workers/{name:path}/drain", summary="Drain a worker", dependencies=guarded)
    def drain(name: str, request: DrainRequest) -> JsonAnswer:
        operations.drain(name, request.deadline_s)
        return JsonAnswer({"worker": name, "deadline_s": request.deadline_s}, status_code=202)

    @app.delete("/v1/workers/{name:path}/drain", summary="Take a drain back", dependencies=guarded)
    def cancel_drain(name: str) -> Response:
        operations.cancel_drain(name)
        return Response(status_code=204)

    add_error_handlers(app)
    app.add_middleware(Boundary)
    return app
