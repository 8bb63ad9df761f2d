"""The shapes of requests for text, for /openapi.json. See `schemas`.

A default is what an absent field, or null, means. Where it is no constant, the description says it.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from glinthawk.gateway.http.schemas import ClosedBody, OpenBody
from glinthawk.gateway.prompts import MAX_PROMPTS
from glinthawk.gateway.requests import DEFAULT_COMPLETION_TOKENS, MAX_CHOICES, MAX_SEQUENCES
from glinthawk.gateway.sampling_fields import MAX_LOGPROBS, MAX_STOP_STRINGS, MAX_STOP_TOKEN_IDS

_INT32 = 1 << 31
_INT64 = 1 << 63

Text = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0)]


class StreamOptionsBody(ClosedBody):
    """How a stream looks."""

    include_usage: bool | None = Field(
        default=False, description="End with a chunk without choices that counts the tokens."
    )
    include_obfuscation: Literal[False] | None = Field(
        default=False, description="Chunks are not padded."
    )


class GenerationRequest(OpenBody):
    """Fields that both endpoints act upon. Others stand if they change nothing."""

    model: str = Field(description="A name under which the model is served.")
    n: int | None = Field(
        default=1,
        ge=1,
        le=MAX_CHOICES,
        description=f"Choices for each prompt; {MAX_SEQUENCES:,} at most of all prompts together.",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=0,
        lt=_INT32,
        description="Most tokens of each choice; prompt and limit together must fit the context. "
        "0 only with `echo`. Default: chat, the rest of the context; completions, "
        f"{DEFAULT_COMPLETION_TOKENS}.",
    )
    max_completion_tokens: int | None = Field(
        default=None,
        ge=0,
        lt=_INT32,
        description="The later name of `max_tokens`; if both are set they must be equal.",
    )
    min_tokens: int | None = Field(
        default=0,
        ge=0,
        lt=_INT32,
        description="Until so many are generated, no end token and none of `stop_token_ids` can "
        "be chosen.",
    )
    temperature: float | None = Field(
        default=1, ge=0, le=2, description="Divides the logits; below 0.00001 is greedy."
    )
    top_p: float | None = Field(
        default=1,
        gt=0,
        le=1,
        description="Only the most probable tokens that together have this probability.",
    )
    top_k: int | None = Field(
        default=0,
        ge=-1,
        lt=_INT32,
        description="Only so many of the most probable tokens; 0 and -1: all.",
    )
    min_p: float | None = Field(
        default=0,
        ge=0,
        le=1,
        description="Only tokens that have this share of the most probable one's probability.",
    )
    frequency_penalty: float | None = Field(
        default=0,
        ge=-2,
        le=2,
        description="Taken off a token's logit for each time that it was generated.",
    )
    presence_penalty: float | None = Field(
        default=0, ge=-2, le=2, description="Taken off the logit of a token that was generated."
    )
    repetition_penalty: float | None = Field(
        default=1,
        gt=0,
        description="Divides the positive logits of tokens that stand in prompt or output, and "
        "multiplies the negative ones.",
    )
    seed: int | None = Field(
        default=None,
        ge=-_INT64,
        lt=_INT64,
        description="The same seed and request give the same text. Default: another one for each "
        "call.",
    )
    stop: Text | Annotated[list[Text], Field(max_length=MAX_STOP_STRINGS)] | None = Field(
        default=None,
        description=f"Strings that end a choice, {MAX_STOP_STRINGS} at most; no part of its text.",
    )
    stop_token_ids: list[TokenId] | None = Field(
        default=None, max_length=MAX_STOP_TOKEN_IDS, description="Tokens that end a choice."
    )
    ignore_eos: bool | None = Field(
        default=False, description="The model's own end tokens do not end the text."
    )
    return_token_ids: bool | None = Field(
        default=False, description="Choices carry `prompt_token_ids` and `token_ids`."
    )
    stream: bool | None = Field(default=False, description="Answer with events as text comes.")
    stream_options: StreamOptionsBody | None = Field(
        default=None, description="How the stream looks; only with `stream`."
    )


class TextPart(OpenBody):
    """A part of a message's content."""

    type: Literal["text"] = Field(description="Other parts are not supported.")
    text: str = Field(description="The text; parts are joined by line ends.")


class ChatMessage(OpenBody):
    """A turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="Who speaks; `developer` is taken as `system`."
    )
    content: str | Annotated[list[TextPart], Field(min_length=1)] = Field(
        description="What is said."
    )
    name: str | None = Field(default=None, description="Handed to the model's template.")


class ChatCompletionRequest(GenerationRequest):
    """A conversation to continue. Fields that are not listed stand if they change nothing."""

    messages: list[ChatMessage] = Field(
        min_length=1, description="The turns so far, as the model's own template writes them."
    )
    logprobs: bool | None = Field(
        default=False, description="Show the logprob of each token of the answer."
    )
    top_logprobs: int | None = Field(
        default=0,
        ge=0,
        le=MAX_LOGPROBS,
        description="So many of the most probable tokens at each place; needs `logprobs`.",
    )


class CompletionRequest(GenerationRequest):
    """A text, or several, to continue. Fields that are not listed stand if they change nothing."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(
        description="A text, a list of token ids, or a list of either with "
        f"{MAX_PROMPTS:,} prompts at most."
    )
    echo: bool | None = Field(
        default=False,
        description="Begin with the prompt; with `logprobs` also those of its tokens.",
    )
    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Show logprobs, and so many of the most probable tokens at each place.",
    )


DESCRIBED: list[type[BaseModel]] = [ChatCompletionRequest, CompletionRequest]
"""Models that a route names by reference."""
