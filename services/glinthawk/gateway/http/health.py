"""Whether the gateway lives, whether it can generate, and its figures. No key is asked for."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.responses import PlainTextResponse, Response

from glinthawk.errors import PeerUnavailable
from glinthawk.gateway.api.services import ApiServices
from glinthawk.gateway.http import schemas
from glinthawk.gateway.http.errors import JsonAnswer, build_error_answer


class State(BaseModel):
    """How the gateway is."""

    status: str = Field(description="`ok` or `ready`.")


def build_health_routes(services: ApiServices) -> APIRouter:
    """Return the routes for probes and for Prometheus."""
    router = APIRouter(tags=["Health"])

    @router.get("/health", summary="Is the process alive?", response_model=State)
    async def is_alive() -> JsonAnswer:
        """Answer while the process lives, whatever else is missing."""
        return JsonAnswer({"status": "ok"})

    @router.get(
        "/ready",
        summary="Can a token be generated now?",
        response_model=State,
        responses=schemas.describe_errors(503),
    )
    async def is_ready() -> Response:
        """Answer 200 while all stages and an attention worker are there, else 503."""
        if not services.generation.is_ready:
            # An answer to a probe, not a call that failed, which the log would have.
            return build_error_answer(
                PeerUnavailable(
                    "no token can be generated now: stages or attention workers are missing, or "
                    "the engine has ended; the gateway's log has the reason"
                )
            )
        return JsonAnswer({"status": "ready"})

    @router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    def show_metrics() -> Response:
        """Return the gateway's figures in Prometheus' text format."""
        return Response(generate_latest(services.registry), media_type=CONTENT_TYPE_LATEST)

    return router
