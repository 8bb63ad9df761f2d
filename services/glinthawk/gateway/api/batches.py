"""Batches as callers see them: create, show, cancel. Who runs them is told, and not waited for."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields as fields_of
from typing import Any

from glinthawk.errors import InvalidRequest, NotFound
from glinthawk.gateway.api.services import ApiServices
from glinthawk.gateway.fields import Fields, check_text, shown
from glinthawk.gateway.requests import Endpoint
from glinthawk.gateway.store.records import BatchRecord, BatchStatus, FilePurpose, FileRecord
from glinthawk.telemetry.logging import get_logger

log = get_logger("gateway.api")

MAX_PRIORITY = 100
"""Priorities go from minus this to this."""

_MAX_METADATA_PAIRS = 16
_MAX_KEY_CHARACTERS = 64
_MAX_VALUE_CHARACTERS = 512
_MAX_WINDOW_HOURS = 366 * 24
_WINDOW = re.compile(r"([1-9][0-9]{0,3})([hd])")
_HOURS = {"h": 1, "d": 24}
FIELDS = frozenset({"completion_window", "endpoint", "input_file_id", "metadata", "priority"})
"""Of the body that creates a batch."""

_CAN_BE_CANCELLED = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)


class NotCancellable(InvalidRequest):
    """A batch is over, or nearly, and cannot be cancelled any more."""


def parse_batch(
    body: Mapping[str, Any], *, batch_id: str, owner: str | None, now: int
) -> BatchRecord:
    """Check the body that creates a batch.

    Raises:
        InvalidRequest: a field is missing, wrong or unknown; param names it.
    """
    for name in body:
        if name not in FIELDS:
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


def keep_batch(
    services: ApiServices, batch: BatchRecord, idempotency_key: str | None = None
) -> BatchRecord:
    """Keep a new batch, and have it begun; with a key that was used, find the one it made.

    Raises:
        InvalidRequest: there is no such input file, or it is for something else.
        CapacityExceeded: the caller has too many that are not over.
    """
    store = services.store
    # Whether it is there is for the store to say: the batch of a key may have outlived its input.
    with suppress(NotFound):
        _check_purpose(store.get_file(batch.input_file_id))
    try:
        created = store.create_batch(
            batch, idempotency_key=idempotency_key, max_open=services.limits.max_key_batches
        )
    except NotFound as error:
        raise InvalidRequest(
            f"there is no file {shown(batch.input_file_id)}; upload it to /v1/files first",
            param="input_file_id",
        ) from error
    if not created.status.is_final:
        log.info("batch_created", batch=created.id, file=created.input_file_id, owner=created.owner)
        services.jobs.batch_created(created.id)
    return created


def _check_purpose(file: FileRecord) -> None:
    if file.purpose is not FilePurpose.BATCH:
        raise InvalidRequest(
            f"file {file.id} has the purpose {str(file.purpose)!r}; the input of a batch must be "
            "uploaded with the purpose 'batch'",
            param="input_file_id",
        )


def cancel_batch(services: ApiServices, batch_id: str) -> BatchRecord:
    """Begin to cancel a batch; one that is being cancelled stays as it is.

    Raises:
        NotCancellable: it is too late.
    """
    batch = services.store.update_batch(
        batch_id,
        only_from=_CAN_BE_CANCELLED,
        status=BatchStatus.CANCELLING,
        cancelling_at=services.now(),
    )
    if batch.status is not BatchStatus.CANCELLING:
        raise NotCancellable(
            f"batch {batch_id} is {batch.status}; only one that is validating or in_progress can "
            "be cancelled"
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
    if not isinstance(value, dict):
        raise InvalidRequest(f"metadata must be an object, not {shown(value)}", param="metadata")
    if len(value) > _MAX_METADATA_PAIRS:
        raise InvalidRequest(
            f"metadata has {len(value)} pairs; at most {_MAX_METADATA_PAIRS} are allowed",
            param="metadata",
        )
    for key, text in value.items():
        check_text(key, "metadata")
        if len(key) > _MAX_KEY_CHARACTERS:
            raise InvalidRequest(
                f"the key {shown(key)} of metadata has {len(key)} characters; at most "
                f"{_MAX_KEY_CHARACTERS} are allowed",
                param="metadata",
            )
        length = len(check_text(text, f"metadata.{key}"))
        if length > _MAX_VALUE_CHARACTERS:
            raise InvalidRequest(
                f"metadata.{key} has {length} characters; at most {_MAX_VALUE_CHARACTERS} are "
                "allowed",
                param=f"metadata.{key}",
            )
    return dict(value)
