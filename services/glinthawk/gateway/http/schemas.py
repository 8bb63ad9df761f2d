"""The shapes of requests and answers, for /openapi.json.

They describe; they do not check: requests are checked field by field where they are read, which
gives better messages, and answers are built from frozen data. The tests compare both with these.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Open(BaseModel):
    """Further fields may stand beside those named here."""

    model_config = ConfigDict(extra="allow")


class _Closed(BaseModel):
    """No other fields."""

    model_config = ConfigDict(extra="forbid")


# --- errors


class ErrorDetail(_Closed):
    """What went wrong. param: the field at fault. code: a word that programs may branch on."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(_Closed):
    """Every answer that is not a success."""

    error: ErrorDetail


# --- models


class Model(_Closed):
    """A name under which the model is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int = Field(description="Most tokens of prompt and output together.")


class ModelList(_Closed):
    """All names."""

    object: Literal["list"]
    data: list[Model]


# --- generation


class StreamOptionsBody(_Closed):
    """How a stream looks."""

    include_usage: bool | None = Field(
        default=None, description="End with a chunk without choices that counts the tokens."
    )
    include_obfuscation: Literal[False] | None = None


class _Sampling(_Open):
    """Fields that both endpoints act upon. Others stand if they change nothing."""

    model: str
    n: int | None = Field(default=None, ge=1, le=128)
    max_tokens: int | None = Field(default=None, ge=0, lt=1 << 31)
    max_completion_tokens: int | None = Field(default=None, ge=0, lt=1 << 31)
    min_tokens: int | None = Field(default=None, ge=0, lt=1 << 31)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, lt=1 << 31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = Field(default=None, max_length=256)
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptionsBody | None = None


class TextPart(_Open):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(_Open):
    """A turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None


class ChatCompletionRequest(_Sampling):
    """A conversation to continue."""

    messages: list[ChatMessage] = Field(min_length=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)


class CompletionRequest(_Sampling):
    """A text, or several, to continue."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)


class Usage(_Open):
    """Tokens of all prompts and choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


FinishReason = Literal["stop", "length"]


class AnswerMessage(_Open):
    """What the model says."""

    role: Literal["assistant"]
    content: str


class ChatChoice(_Open):
    """One continuation."""

    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: FinishReason


class ChatCompletion(_Open):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(_Open):
    """What a message has grown by."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(_Open):
    """A piece of one continuation."""

    index: int
    delta: ChatDelta
    logprobs: dict[str, Any] | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(_Open):
    """An event of a streamed answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChoice(_Open):
    """One continuation, or a piece of it."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: FinishReason | None


class Completion(_Open):
    """The answer of /v1/completions, and an event of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


# --- how routes refer to these

EVENT_STREAM = "text/event-stream"

DESCRIBED: list[type[BaseModel]] = [
    ErrorBody,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
]
"""Models that a route names by reference, so that the document must carry them."""

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request is refused.", "model": ErrorBody},
    "5XX": {"description": "The request cannot be served now.", "model": ErrorBody},
}


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
    events = {"type": "string", "description": f"Events, each a {chunk.__name__}, then [DONE]."}
    content = {"application/json": {"schema": refer(whole)}, EVENT_STREAM: {"schema": events}}
    return {200: {"description": "The answer.", "content": content}, **ERRORS}
