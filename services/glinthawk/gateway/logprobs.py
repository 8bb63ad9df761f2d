"""The two forms in which OpenAI shows logprobs, one for each endpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glinthawk.core.step import TokenLogprobs
from glinthawk.gateway.detokenize import ChoiceResult, TextDelta
from glinthawk.gateway.prompts import Prompt
from glinthawk.models.tokenizer import IncrementalDetokenizer, Tokenizer

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say (OpenAI's and vLLM's choice)."""


@dataclass(frozen=True)
class Echo:
    """The prompt's part of an echoed text. offsets: where each prompt token begins in it."""

    text: str
    tokens: tuple[int, ...]
    offsets: tuple[int, ...]


def build_echo(prompt: Prompt, tokenizer: Tokenizer) -> Echo:
    """Return the text of `prompt` as its writer wrote it, or else as its tokens read."""
    decoder = IncrementalDetokenizer(tokenizer, after_prompt=False)
    pieces: list[str] = []
    offsets: list[int] = []
    length = 0
    for token in prompt.tokens:
        offsets.append(length)
        pieces.append(decoder.push((token,)))
        length += len(pieces[-1])
    pieces.append(decoder.finish())
    text = "".join(pieces) if prompt.text is None else prompt.text
    return Echo(text, prompt.tokens, tuple(min(offset, len(text)) for offset in offsets))


def build_chat_logprobs(result: ChoiceResult | TextDelta, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return `{"content": [{token, logprob, bytes, top_logprobs: [...]}, ...]}`."""
    return {
        "content": [
            {
                **_build_entry(one.token, one.logprob, tokenizer),
                "top_logprobs": [
                    _build_entry(token, logprob, tokenizer) for token, logprob in one.top
                ],
            }
            for one in result.logprobs or ()
        ]
    }


def build_completion_logprobs(
    result: ChoiceResult | TextDelta,
    echo: Echo | None,
    num_logprobs: int,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """Return `{tokens, token_logprobs, top_logprobs, text_offset}`, lists of equal length.

    With `echo`, which goes with a whole result, they begin with the prompt, whose first token
    has no logprob (null).
    """
    positions: list[TokenLogprobs | None] = []
    tokens: tuple[int, ...] = ()
    offsets: tuple[int, ...] = ()
    shift = 0
    if echo is not None:
        # A prompt of one token has no logprob to show, so it may come without any.
        scored = result.prompt_logprobs if isinstance(result, ChoiceResult) else None
        positions += scored or [None] * len(echo.tokens)
        tokens, offsets, shift = echo.tokens, echo.offsets, len(echo.text)
    positions += result.logprobs or ()
    return {
        "tokens": [tokenizer.token_text(token) for token in tokens + result.tokens],
        "token_logprobs": [None if one is None else _finite(one.logprob) for one in positions],
        "top_logprobs": (
            [None if one is None else _build_top(one, tokenizer) for one in positions]
            if num_logprobs
            else None
        ),
        "text_offset": [*offsets, *(shift + offset for offset in result.offsets)],
    }


def _build_entry(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token),
        "logprob": _finite(logprob),
        "bytes": list(tokenizer.token_bytes(token)),
    }


def _build_top(one: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, float]:
    """Return the alternatives by text, the chosen token among them, so one more it may be.

    Two tokens may show the same text (parts of a character do): the more probable one stays.
    """
    pairs: Sequence[tuple[int, float]] = (*one.top, (one.token, one.logprob))
    shown: dict[str, float] = {}
    for token, logprob in pairs:
        shown.setdefault(tokenizer.token_text(token), _finite(logprob))
    return shown


def _finite(logprob: float) -> float:
    """Return a number that JSON can carry; the comparison also catches not-a-number."""
    return logprob if logprob >= LOWEST_LOGPROB else LOWEST_LOGPROB
