"""Which tokens a sequence has had, for penalties: a cache that its registration rebuilds."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from glinthawk.errors import InvariantBroken

_FIRST_CAPACITY = 64


class TokenHistory:
    """The distinct tokens of one sequence and how often each was generated.

    Grows by one token at a time; a replayed step takes it back to an earlier length.
    """

    def __init__(self, tokens: Sequence[int], prompt_tokens: int) -> None:
        self._tokens = list(tokens)
        self._prompt_tokens = prompt_tokens
        self._places: dict[int, int] = {}
        self._ids = np.empty(_FIRST_CAPACITY, dtype=np.int64)
        self._outputs = np.empty(_FIRST_CAPACITY, dtype=np.float32)
        self._count_all()

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """The distinct tokens of prompt and output, [m]."""
        return self._ids[: len(self._places)]

    @property
    def outputs(self) -> npt.NDArray[np.float32]:
        """How often each of `ids` was generated, [m]; 0 for tokens of the prompt only."""
        return self._outputs[: len(self._places)]

    def rewind(self, num_tokens: int) -> None:
        """Go back to the first `num_tokens` tokens; nothing happens if there are no more.

        Raises:
            InvariantBroken: tokens are missing, or part of the prompt would be lost.
        """
        if not self._prompt_tokens <= num_tokens <= len(self._tokens):
            raise InvariantBroken(
                f"a token is sampled at position {num_tokens} of a sequence that has "
                f"{len(self._tokens)} tokens, {self._prompt_tokens} of them its prompt; it must "
                "be registered again"
            )
        if num_tokens < len(self._tokens):
            del self._tokens[num_tokens:]
            self._places.clear()
            self._count_all()

    def append(self, token: int) -> None:
        """Count a generated token."""
        self._tokens.append(token)
        self._count(token)

    def _count_all(self) -> None:
        for token in self._tokens[: self._prompt_tokens]:
            self._place(token)
        for token in self._tokens[self._prompt_tokens :]:
            self._count(token)

    def _count(self, token: int) -> None:
        place = self._place(token)  # May move the arrays, so first.
        self._outputs[place] += 1

    def _place(self, token: int) -> int:
        place = self._places.get(token)
        if place is None:
            place = len(self._places)
            self._places[token] = place
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
                self._outputs = np.concatenate([self._outputs, np.empty_like(self._outputs)])
            self._ids[place] = token
            self._outputs[place] = 0
        return place
