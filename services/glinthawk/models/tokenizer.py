"""Text to token ids and back, without torch.

A token is a byte string. Text is what the bytes of successive tokens spell in UTF-8, so text
that grows token by token (`IncrementalDetokenizer`) and text decoded at once are the same.
"""

import codecs
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from glinthawk.errors import InvalidRequest


class Tokenizer(Protocol):
    """What the gateway needs of a tokenizer. Implementations are safe to share by threads."""

    @property
    def vocab_size(self) -> int:
        """Token ids that have a text: 0 to vocab_size - 1."""
        ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokenizer's own end-of-sequence id, if it has one."""
        ...

    @property
    def has_text(self) -> bool:
        """Whether text can be encoded and decoded."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of `text`.

        Raises:
            InvalidRequest: there is no vocabulary, or the text is not valid Unicode.
        """
        ...

    def apply_chat_template(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the ids of `messages` as the model's own template writes them.

        Raises:
            InvalidRequest: the model has no template, or the template refuses the messages.
        """
        ...

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that `token` stands for; empty for an id beyond the vocabulary."""
        ...

    def token_text(self, token: int) -> str:
        """Return how `token` is shown in logprobs; a part of a character as ``bytes:\\xe2``."""
        ...

    def is_special(self, token: int) -> bool:
        """Whether `token` steers the model and is left out of the text."""
        ...

    @property
    def strips_first_space(self) -> bool:
        """Whether the space before the first word of a text is the tokenizer's, not the text's."""
        ...


class TokenIdsOnly:
    """Stands in for a tokenizer where the model has none: prompts are token ids."""

    vocab_size = 0
    eos_token_ids: tuple[int, ...] = ()
    has_text = False
    strips_first_space = False

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Refuse: see `Tokenizer.encode`."""
        raise InvalidRequest(
            "the model has no tokenizer files, so text cannot be read: give the prompt as token "
            "ids (to /v1/completions)",
            param="prompt",
        )

    def apply_chat_template(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Refuse: see `Tokenizer.apply_chat_template`."""
        raise InvalidRequest(
            "the model has no tokenizer files, so it has no chat template: give token ids to "
            "/v1/completions",
            param="messages",
        )

    def token_bytes(self, token: int) -> bytes:
        """Return nothing: the text of a token is not known."""
        return b""

    def token_text(self, token: int) -> str:
        """Return the id, marked as such."""
        return f"token_id:{token}"

    def is_special(self, token: int) -> bool:
        """Return False: no token is known to be special."""
        return False


class IncrementalDetokenizer:
    """Turns a growing list of token ids into text, a piece at a time.

    A piece never ends within a character: bytes of an unfinished one wait for the next token.
    The concatenation of all pieces, `finish` included, is the text of all tokens.

    after_prompt: the tokens continue a prompt, so a leading space belongs to the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        after_prompt: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._strip_space = tokenizer.strips_first_space and not after_prompt
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, tokens: Iterable[int]) -> str:
        """Return the text that `tokens` complete."""
        return self._without_first_space(self._decoder.decode(self._bytes_of(tokens)))

    def finish(self) -> str:
        """Return what is left: a replacement character if a character was never finished."""
        return self._without_first_space(self._decoder.decode(b"", final=True))

    def _bytes_of(self, tokens: Iterable[int]) -> bytes:
        tokenizer = self._tokenizer
        return b"".join(
            tokenizer.token_bytes(token)
            for token in tokens
            if not (self._skip_special_tokens and tokenizer.is_special(token))
        )

    def _without_first_space(self, text: str) -> str:
        if self._strip_space and text:
            self._strip_space = False
            return text.removeprefix(" ")
        return text


def decode(tokenizer: Tokenizer, tokens: Iterable[int], *, skip_special_tokens: bool = True) -> str:
    """Return the text of `tokens`, the start of a text."""
    detokenizer = IncrementalDetokenizer(
        tokenizer, skip_special_tokens=skip_special_tokens, after_prompt=False
    )
    return detokenizer.push(tokens) + detokenizer.finish()
