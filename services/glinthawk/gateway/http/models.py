"""/v1/models: the names under which the one model is served."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path

from glinthawk.gateway.api.services import ApiServices
from glinthawk.gateway.http import schemas
from glinthawk.gateway.http.errors import JsonAnswer
from glinthawk.gateway.http.guard import Caller, Guard
from glinthawk.gateway.requests import check_model


def build_model_routes(services: ApiServices, guard: Guard) -> APIRouter:
    """Return the routes that tell of models."""
    router = APIRouter(tags=["Models"], responses=schemas.describe_errors(401, 500, 503))
    known_caller = Annotated[Caller, Depends(guard)]
    started_at = services.now()

    def build(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": started_at,
            "owned_by": "glinthawk",
            "max_model_len": services.generation.context.max_sequence_length,
        }

    @router.get("/v1/models", summary="List models", response_model=schemas.ModelList)
    async def list_models(_: known_caller) -> JsonAnswer:
        """Return the names under which the one model is served."""
        data = [build(name) for name in services.model_names]
        return JsonAnswer({"object": "list", "data": data})

    @router.get(
        "/v1/models/{model:path}",
        summary="Get a model",
        response_model=schemas.Model,
        responses=schemas.describe_errors(404),
    )
    async def retrieve_model(
        _: known_caller, model: Annotated[str, Path(description="The name.")]
    ) -> JsonAnswer:
        """Return one of the names, and how long a sequence may be."""
        return JsonAnswer(build(check_model(model, services.model_names)))

    return router
