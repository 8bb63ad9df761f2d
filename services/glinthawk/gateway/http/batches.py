"""/v1/batches: create, look at, list, cancel."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request

from glinthawk.gateway.api.batches import (
    NotCancellable,
    build_batch,
    cancel_batch,
    keep_batch,
    parse_batch,
)
from glinthawk.gateway.api.services import ApiServices
from glinthawk.gateway.http import schemas, schemas_jobs
from glinthawk.gateway.http.errors import JsonAnswer, RefusedCall
from glinthawk.gateway.http.guard import Caller, Guard
from glinthawk.gateway.http.paging import After, build_page
from glinthawk.gateway.http.reading import read_object
from glinthawk.gateway.http.store_calls import StoreCalls

_PAGE = 100
_MAX_IDEMPOTENCY_KEY = 255

_BatchId = Annotated[str, Path(description="Of the batch.")]
_IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=_MAX_IDEMPOTENCY_KEY,
        description="Made again with the same key, the call returns the batch that it made first.",
    ),
]
_Limit = Annotated[int, Query(ge=1, le=_PAGE, description="Most batches of the page.")]


def build_batch_routes(services: ApiServices, guard: Guard, calls: StoreCalls) -> APIRouter:
    """Return the routes of batches."""
    router = APIRouter(tags=["Batches"], responses=schemas.describe_errors(401, 500, 503))
    known_caller = Annotated[Caller, Depends(guard)]
    store = services.store

    @router.post(
        "/v1/batches",
        summary="Create a batch",
        response_model=schemas_jobs.Batch,
        responses=schemas.describe_errors(400, 413, 415, 429),
        openapi_extra=schemas.describe_body(schemas_jobs.BatchRequest),
    )
    async def create_batch(
        request: Request, caller: known_caller, idempotency_key: _IdempotencyKey = None
    ) -> JsonAnswer:
        """Have the requests of a file answered. They are validated and run after the answer."""
        body = await read_object(request, services.limits.max_body_bytes)
        batch = parse_batch(
            body, batch_id=f"batch_{services.new_id()}", owner=caller.name, now=services.now()
        )
        created = await calls.write(keep_batch, services, batch, idempotency_key)
        return JsonAnswer(build_batch(created))

    @router.get(
        "/v1/batches",
        summary="List batches",
        response_model=schemas_jobs.BatchList,
        responses=schemas.describe_errors(400, 404),
    )
    async def list_batches(_: known_caller, after: After = None, limit: _Limit = 20) -> JsonAnswer:
        """Return a page of all batches, newest first, whoever created them."""
        records = await calls.read(store.list_batches, limit=limit + 1, after=after)
        return JsonAnswer(build_page(records, limit, build_batch))

    @router.get(
        "/v1/batches/{batch_id}",
        summary="Get a batch",
        response_model=schemas_jobs.Batch,
        responses=schemas.describe_errors(404),
    )
    async def retrieve_batch(_: known_caller, batch_id: _BatchId) -> JsonAnswer:
        """Return how a batch stands."""
        return JsonAnswer(build_batch(await calls.read(store.get_batch, batch_id)))

    @router.post(
        "/v1/batches/{batch_id}/cancel",
        summary="Cancel a batch",
        response_model=schemas_jobs.Batch,
        responses=schemas.describe_errors(404, 409),
    )
    async def cancel(_: known_caller, batch_id: _BatchId) -> JsonAnswer:
        """Begin to end a batch that is validating or in progress; what is answered is kept. One
        that is being cancelled stays as it is."""
        try:
            return JsonAnswer(build_batch(await calls.write(cancel_batch, services, batch_id)))
        except NotCancellable as error:
            code = "batch_not_cancellable"
            raise RefusedCall(HTTPStatus.CONFLICT, str(error), code=code) from error

    return router
