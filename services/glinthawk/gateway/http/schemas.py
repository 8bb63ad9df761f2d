"""What all shapes of requests and answers have in common, for /openapi.json.

They describe; they do not check: requests are checked field by field where they are read, which
gives better messages, and answers are built from frozen data. The tests compare both with these,
and docs/api-reference.md is written from them: so each field says what it means.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class OpenBody(BaseModel):
    """Further fields may stand beside those named here."""

    model_config = ConfigDict(extra="allow")


class ClosedBody(BaseModel):
    """No other fields."""

    model_config = ConfigDict(extra="forbid")


# --- errors


class ErrorDetail(ClosedBody):
    """What went wrong."""

    message: str = Field(description="What is wrong, with the value, the limit and the way out.")
    type: str = Field(
        description="`invalid_request_error`, `rate_limit_error` or `server_error`: whose fault "
        "it is."
    )
    param: str | None = Field(description="The field at fault.")
    code: str | None = Field(description="A word that programs may branch on.")


class ErrorBody(ClosedBody):
    """Every answer that is not a success."""

    error: ErrorDetail = Field(description="What went wrong.")


# --- models


class Model(ClosedBody):
    """A name under which the model is served."""

    id: str = Field(description="The name, as requests give it in `model`.")
    object: Literal["model"] = Field(description="What this is.")
    created: int = Field(description="When the gateway was started, in seconds since 1970.")
    owned_by: str = Field(description="Always `glinthawk`.")
    max_model_len: int = Field(description="Most tokens of prompt and output together.")


class ModelList(ClosedBody):
    """All names."""

    object: Literal["list"] = Field(description="What this is.")
    data: list[Model] = Field(description="The names.")


# --- how routes refer to these

EVENT_STREAM = "text/event-stream"

EVENT = "x-event"
"""Names, in the description of a stream, the shape of an event: OpenAPI has no word for it."""

_REFUSALS = {
    400: "A field or parameter is wrong, unknown or not supported; `param` names it.",
    401: "No key or secret was sent, or one that is not valid.",
    404: "There is no such model, file, batch or worker, or no page behind that id.",
    409: "It is too late: the batch is over, or nearly.",
    413: "The body is larger than is taken.",
    415: "The body is of another kind.",
    429: "The caller has as much open as may be. Come again after `Retry-After` seconds.",
    500: "A defect; the gateway's log says where.",
    503: "No token can be generated, or nothing be stored, now. Come again after `Retry-After` "
    "seconds.",
}


def describe_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the descriptions of the refusals that a route may answer with."""
    return {status: {"description": _REFUSALS[status], "model": ErrorBody} for status in statuses}


def refer(model: type[BaseModel]) -> dict[str, str]:
    """Return a reference to a model within the document."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def describe_body(model: type[BaseModel], media_type: str = "application/json") -> dict[str, Any]:
    """Return the description of a body that the route reads itself."""
    content = {media_type: {"schema": refer(model)}}
    return {"requestBody": {"required": True, "content": content}}


def describe_streamed(
    whole: type[BaseModel], chunk: type[BaseModel]
) -> dict[int | str, dict[str, Any]]:
    """Return the description of an answer that comes whole or as events."""
    events = {
        "type": "string",
        "description": f"With `stream`: events, each a {chunk.__name__} after `data: `, then "
        "`data: [DONE]`.",
        EVENT: refer(chunk),
    }
    content = {"application/json": {"schema": refer(whole)}, EVENT_STREAM: {"schema": events}}
    return {200: {"description": "The answer, whole or as events.", "content": content}}
