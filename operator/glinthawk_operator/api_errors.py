"""What the API server's client raises, as errors of our own tree."""

import json

from kubernetes.dynamic.exceptions import DynamicApiError

from glinthawk_operator.errors import (
    ApiConflict,
    ApiError,
    ApiForbidden,
    ApiInvalid,
    ApiNotFound,
    ApiUnavailable,
)


def translate(foreign: Exception, what: str) -> ApiError:
    """Return our error for one of the client's. what: was asked for, for the message."""
    if not isinstance(foreign, DynamicApiError):
        return ApiUnavailable(f"{what}: the API server does not answer: {foreign}")
    status = int(foreign.status or 0)
    message = f"{what}: {status} {_message(foreign)}"
    if status in (401, 403):
        return ApiForbidden(message, status=status)
    if status == 404:
        return ApiNotFound(message, status=status)
    if status == 409:
        return ApiConflict(message, status=status)
    if status == 429 or status >= 500 or status == 0:
        return ApiUnavailable(message, status=status, retry_after_s=_retry_after_s(foreign))
    if status in (400, 405, 406, 410, 413, 415, 422):
        return ApiInvalid(message, status=status)
    return ApiError(message, status=status)


def _message(error: DynamicApiError) -> str:
    body = error.body
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason or body or "")[:500]


def _retry_after_s(error: DynamicApiError) -> float | None:
    value = str((error.headers or {}).get("Retry-After", ""))
    return float(value) if value.isdecimal() and int(value) > 0 else None
