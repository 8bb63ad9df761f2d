"""The shapes of generated answers, for /openapi.json. See `schemas`."""

from typing import Literal

from pydantic import BaseModel, Field

from glinthawk.gateway.http.schemas import OpenBody

FinishReason = Literal["stop", "length"]


class Usage(OpenBody):
    """Tokens of all prompts and choices."""

    prompt_tokens: int = Field(description="Of the prompts, each once, whatever `n` is.")
    completion_tokens: int = Field(description="Of all choices, with the tokens that ended them.")
    total_tokens: int = Field(description="The sum.")


class TokenAlternative(OpenBody):
    """A token at a place of the answer."""

    token: str = Field(description="Its text; a part of a character as `bytes:\\xe2`.")
    logprob: float = Field(
        description="Of the raw distribution; -9999.0 stands for minus infinity."
    )
    bytes: list[int] = Field(description="Its bytes.")


class TokenLogprob(TokenAlternative):
    """A token of the answer."""

    top_logprobs: list[TokenAlternative] = Field(
        description="The most probable tokens at its place, best first."
    )


class ChatLogprobs(OpenBody):
    """Logprobs of a message."""

    content: list[TokenLogprob] = Field(description="One for each token.")


class CompletionLogprobs(OpenBody):
    """Logprobs of a text: lists with an entry for each token."""

    tokens: list[str] = Field(description="The tokens' texts.")
    token_logprobs: list[float | None] = Field(
        description="Their logprobs; null for a prompt's first token."
    )
    top_logprobs: list[dict[str, float] | None] | None = Field(
        description="The most probable tokens at each place, with their logprobs."
    )
    text_offset: list[int] = Field(description="Where each token begins in the text.")


class _WithTokens(OpenBody):
    prompt_token_ids: list[int] | None = Field(
        default=None, description="With `return_token_ids`: the prompt's tokens."
    )
    token_ids: list[int] | None = Field(
        default=None, description="With `return_token_ids`: the generated tokens."
    )


class AnswerMessage(OpenBody):
    """What the model says."""

    role: Literal["assistant"] = Field(description="Who speaks.")
    content: str = Field(description="The text.")


class ChatChoice(_WithTokens):
    """One continuation."""

    index: int = Field(description="Which choice, from 0.")
    message: AnswerMessage = Field(description="What the model says.")
    logprobs: ChatLogprobs | None = Field(description="If they were asked for.")
    finish_reason: FinishReason = Field(description="`length`: the limit was reached.")


class ChatCompletion(OpenBody):
    """The answer of /v1/chat/completions."""

    id: str = Field(description="Of this answer.")
    object: Literal["chat.completion"] = Field(description="What this is.")
    created: int = Field(description="When, in seconds since 1970.")
    model: str = Field(description="As the request names it.")
    choices: list[ChatChoice] = Field(description="`n` of them, by index.")
    usage: Usage = Field(description="Tokens.")


class ChatDelta(OpenBody):
    """What a message has grown by."""

    role: Literal["assistant"] | None = Field(
        default=None, description="In the first chunk of a choice."
    )
    content: str | None = Field(default=None, description="More text.")


class ChatChunkChoice(_WithTokens):
    """A piece of one continuation."""

    index: int = Field(description="Which choice, from 0.")
    delta: ChatDelta = Field(description="What it has grown by.")
    logprobs: ChatLogprobs | None = Field(description="Those of this piece.")
    finish_reason: FinishReason | None = Field(description="In the last chunk of a choice.")


class ChatCompletionChunk(OpenBody):
    """An event of a streamed answer of /v1/chat/completions."""

    id: str = Field(description="The same in all chunks of an answer.")
    object: Literal["chat.completion.chunk"] = Field(description="What this is.")
    created: int = Field(description="When the answer began, in seconds since 1970.")
    model: str = Field(description="As the request names it.")
    choices: list[ChatChunkChoice] = Field(
        description="One; none in the chunk that counts the tokens."
    )
    usage: Usage | None = Field(
        default=None, description="In the last chunk, if `stream_options` ask for it."
    )


class CompletionChoice(_WithTokens):
    """One continuation, or a piece of it."""

    index: int = Field(description="Which choice: those of the first prompt, then the next's.")
    text: str = Field(description="The text, or what it has grown by.")
    logprobs: CompletionLogprobs | None = Field(description="If they were asked for.")
    finish_reason: FinishReason | None = Field(
        description="`length`: the limit was reached. Null before the end of a stream."
    )


class Completion(OpenBody):
    """The answer of /v1/completions, and an event of its stream."""

    id: str = Field(description="The same in all chunks of an answer.")
    object: Literal["text_completion"] = Field(description="What this is.")
    created: int = Field(description="When, in seconds since 1970.")
    model: str = Field(description="As the request names it.")
    choices: list[CompletionChoice] = Field(description="All, or the piece of one in a stream.")
    usage: Usage | None = Field(
        default=None,
        description="Tokens; in a stream in the last chunk, if `stream_options` ask for it.",
    )


DESCRIBED: list[type[BaseModel]] = [ChatCompletion, ChatCompletionChunk, Completion]
"""Models that a route names by reference."""
