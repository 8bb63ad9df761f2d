"""/v1/batches: create, look at, list, cancel. Who runs them is told, and not waited for."""

import re
from collections.abc import Mapping
from dataclasses import fields as fields_of
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request

from glinthawk.errors import InvalidRequest, NotFound
from glinthawk.gateway.fields import Fields, check_text, shown
from glinthawk.gateway.http import schemas, schemas_jobs
from glinthawk.gateway.http.errors import JsonAnswer, RefusedCall
from glinthawk.gateway.http.guard import Caller, Guard
from glinthawk.gateway.http.paging import build_page
from glinthawk.gateway.http.reading import read_object
from glinthawk.gateway.http.services import HttpServices
from glinthawk.gateway.http.store_calls import StoreCalls
from glinthawk.gateway.requests import Endpoint
from glinthawk.gateway.store.records import BatchRecord, BatchStatus, FilePurpose
from glinthawk.telemetry.logging import get_logger

log = get_logger("gateway.http")

MAX_PRIORITY = 100
"""Priorities go from minus this to this."""

_MAX_METADATA_PAIRS = 16
_MAX_KEY_CHARACTERS = 64
_MAX_VALUE_CHARACTERS = 512
_MAX_WINDOW_HOURS = 366 * 24
_WINDOW = re.compile(r"([1-9][0-9]{0,3})([hd])")
_HOURS = {"h": 1, "d": 24}
_FIELDS = frozenset(schemas_jobs.BatchRequest.model_fields)
_CAN_BE_CANCELLED = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)
_PAGE = 100

_BatchId = Annotated[str, Path(description="Of the batch.")]
_After = Annotated[str | None, Query(description="The id that the last page ended with.")]
_Limit = Annotated[int, Query(ge=1, le=_PAGE, description="Most batches of the page.")]


def build_batch_routes(services: HttpServices, guard: Guard, calls: StoreCalls) -> APIRouter:
    """Return the routes of batches."""
    router = APIRouter(tags=["Batches"], responses=schemas.describe_errors(401, 500, 503))
    known_caller = Annotated[Caller, Depends(guard)]
    store = services.store

    @router.post(
        "/v1/batches",
        summary="Create a batch",
        response_model=schemas_jobs.Batch,
        responses=schemas.describe_errors(400, 413, 415),
        openapi_extra=schemas.describe_body(schemas_jobs.BatchRequest),
    )
    async def create_batch(request: Request, caller: known_caller) -> JsonAnswer:
        """Have the requests of a file answered. They are validated and run after the answer."""
        body = await read_object(request, services.limits.max_body_bytes)
        batch = parse_batch(
            body, batch_id=f"batch_{services.new_id()}", owner=caller.name, now=services.now()
        )
        return JsonAnswer(build_batch(await calls.write(keep_batch, services, batch)))

    @router.get(
        "/v1/batches",
        summary="List batches",
        response_model=schemas_jobs.BatchList,
        responses=schemas.describe_errors(400, 404),
    )
    async def list_batches(_: known_caller, after: _After = None, limit: _Limit = 20) -> JsonAnswer:
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
        return JsonAnswer(build_batch(await calls.write(cancel_batch, services, batch_id)))

    return router


def parse_batch(
    body: Mapping[str, Any], *, batch_id: str, owner: str | None, now: int
) -> BatchRecord:
    """Check the body that creates a batch.

    Raises:
        InvalidRequest: a field is missing, wrong or unknown; param names it.
    """
    for name in body:
        if name not in _FIELDS:
            raise InvalidRequest(
                f"{shown(name)} is not a field that this endpoint knows; remove it", param=name
            )
    fields = Fields(body)
    endpoint = fields.get("endpoint")
    if endpoint not in tuple(Endpoint):
        urls = " or ".join(repr(str(one)) for one in Endpoint)
        raise InvalidRequest(f"endpoint must be {urls}, not {shown(endpoint)}", param="endpoint")
    window, window_s = _parse_window(fields.get("completion_window"))
    return BatchRecord(
        id=batch_id,
        endpoint=str(endpoint),
        input_file_id=check_text(fields.get("input_file_id"), "input_file_id"),
        completion_window=window,
        status=BatchStatus.VALIDATING,
        created_at=now,
        expires_at=now + window_s,
        priority=fields.integer("priority", low=-MAX_PRIORITY, high=MAX_PRIORITY) or 0,
        owner=owner,
        metadata=_parse_metadata(fields.get("metadata")),
    )


def build_batch(batch: BatchRecord) -> dict[str, Any]:
    """Return OpenAI's batch object."""
    times = {
        field.name: getattr(batch, field.name)
        for field in fields_of(batch)
        if field.name.endswith("_at")
    }
    errors = [
        {"code": one.code, "message": one.message, "line": one.line, "param": one.param}
        for one in batch.errors
    ]
    counts = batch.counts
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": str(batch.status),
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        **times,
        "request_counts": {
            "total": counts.total,
            "completed": counts.completed,
            "failed": counts.failed,
        },
        "metadata": dict(batch.metadata) or None,
        "priority": batch.priority,
    }


def keep_batch(services: HttpServices, batch: BatchRecord) -> BatchRecord:
    """Keep a new batch, and have it begun.

    Raises:
        InvalidRequest: there is no such input file, or it is for something else.
    """
    store = services.store
    try:
        file = store.get_file(batch.input_file_id)
        if file.purpose is not FilePurpose.BATCH:
            raise InvalidRequest(
                f"file {file.id} has the purpose {str(file.purpose)!r}; the input of a batch "
                "must be uploaded with the purpose 'batch'",
                param="input_file_id",
            )
        created = store.create_batch(batch)
    except NotFound as error:
        raise InvalidRequest(
            f"there is no file {shown(batch.input_file_id)}; upload it to /v1/files first",
            param="input_file_id",
        ) from error
    log.info("batch_created", batch=created.id, file=created.input_file_id, owner=created.owner)
    services.jobs.batch_created(created.id)
    return created


def cancel_batch(services: HttpServices, batch_id: str) -> BatchRecord:
    """Begin to cancel a batch; one that is being cancelled stays as it is.

    Raises:
        RefusedCall: it is too late.
    """
    batch = services.store.update_batch(
        batch_id,
        only_from=_CAN_BE_CANCELLED,
        status=BatchStatus.CANCELLING,
        cancelling_at=services.now(),
    )
    if batch.status is not BatchStatus.CANCELLING:
        raise RefusedCall(
            HTTPStatus.CONFLICT,
            f"batch {batch_id} is {batch.status}; only one that is validating or in_progress can "
            "be cancelled",
            code="batch_not_cancellable",
        )
    log.info("batch_cancelled", batch=batch_id)
    services.jobs.batch_cancelled(batch_id)
    return batch


def _parse_window(value: object) -> tuple[str, int]:
    """Return a completion window as written, and its seconds."""
    match = _WINDOW.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[1]) * _HOURS[match[2]] > _MAX_WINDOW_HOURS:
        raise InvalidRequest(
            "completion_window must be hours or days like '24h' or '7d', up to "
            f"{_MAX_WINDOW_HOURS // 24} days, not {shown(value)}",
            param="completion_window",
        )
    return match[0], int(match[1]) * _HOURS[match[2]] * 3600


def _parse_metadata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _MAX_METADATA_PAIRS:
        raise InvalidRequest(
            f"metadata must be an object of at most {_MAX_METADATA_PAIRS} pairs, "
            f"not {shown(value)}",
            param="metadata",
        )
    for key, text in value.items():
        check_text(key, "metadata")
        if len(key) > _MAX_KEY_CHARACTERS or len(check_text(text, "metadata")) > (
            _MAX_VALUE_CHARACTERS
        ):
            raise InvalidRequest(
                f"metadata {shown(key)} is too long: keys may have {_MAX_KEY_CHARACTERS} "
                f"characters, values {_MAX_VALUE_CHARACTERS}",
                param="metadata",
            )
    return dict(value)
