"""A tokenizer of bytes, and small constructors, for tests of the gateway."""

from collections.abc import Sequence
from typing import Any

from glinthawk.core.sampling import SamplingParams
from glinthawk.core.step import TokenLogprobs
from glinthawk.errors import InvalidRequest
from glinthawk.gateway.prompts import Prompt
from glinthawk.gateway.requests import ChoiceRequest, Endpoint, ModelContext, ParsedRequest

END = 256
"""The end token of the byte tokenizer."""

START = 257
"""Begins a turn of a conversation."""

PAIRS = {258: b"he", 259: b"llo", 260: "\u20ac".encode()}
"""Tokens of several bytes."""


class ByteTokenizer:
    """Tokens 0 to 255 are bytes; then two marks, and tokens of several bytes."""

    vocab_size = 300
    eos_token_ids = (END,)
    has_text = True
    strips_first_space = False

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def apply_chat_template(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        tokens: list[int] = []
        for message in messages:
            if message["content"] == "refuse me":
                raise InvalidRequest("the chat template refuses", param="messages")
            tokens += [START, *f"{message['role']}:{message['content']}".encode()]
        return tokens

    def token_text(self, token: int) -> str:
        if token in (END, START):
            return "<end>" if token == END else "<start>"
        return self.token_bytes(token).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        if token in (END, START):
            return self.token_text(token).encode()
        return PAIRS[token] if token in PAIRS else bytes([token])

    def is_special(self, token: int) -> bool:
        return token in (END, START)


def make_model(max_sequence_length: int = 100) -> ModelContext:
    return ModelContext(ByteTokenizer(), max_sequence_length, frozenset({END}))


def make_choice(
    *, index: int = 0, prompt_index: int = 0, max_new_tokens: int = 1000, **sampling: Any
) -> ChoiceRequest:
    parameters = SamplingParams(**({"stop_token_ids": frozenset({END})} | sampling))
    return ChoiceRequest(index, prompt_index, max_new_tokens, parameters)


def make_request(endpoint: Endpoint, prompts: Sequence[Prompt], **fields: Any) -> ParsedRequest:
    choices = tuple(make_choice(index=i, prompt_index=i) for i in range(len(prompts)))
    defaults: dict[str, Any] = {"model": "m", "n": 1, "choices": choices}
    return ParsedRequest(endpoint=endpoint, prompts=tuple(prompts), **(defaults | fields))


def make_logprobs(token: int, *top: int) -> TokenLogprobs:
    """Logprobs that are minus a tenth of the token id."""
    return TokenLogprobs(token, -token / 10, 1, tuple((other, -other / 10) for other in top))
