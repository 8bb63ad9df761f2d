"""Sampling parameters as columns, so that a step over many sequences gathers them at once."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from glinthawk.core.sampling import SamplingParams
from glinthawk.errors import InvariantBroken

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy, as in vLLM."""

_SEED_MASK = (1 << 64) - 1
_FIRST_CAPACITY = 64

_FIELDS = np.dtype(
    [
        ("temperature", np.float64),
        ("min_p", np.float64),
        ("top_p", np.float64),
        ("top_k", np.int64),
        ("seed", np.uint64),
        ("choice", np.uint64),
        ("prompt_tokens", np.int64),
        ("min_tokens", np.int64),
        ("wants_logprobs", np.bool_),
        ("num_logprobs", np.int32),
        ("method", np.int8),
        ("has_penalties", np.bool_),
    ],
    align=True,
)


class Method(IntEnum):
    """How a row's token is drawn; rows of one method are drawn together."""

    GREEDY = 0
    PLAIN = 1
    PROBABILITY = 2
    TOP_K = 3


class ParameterTable:
    """A row of numbers per registered sequence. In it, top_k is the vocabulary's size where it
    is off."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._rows = np.zeros(_FIRST_CAPACITY, dtype=_FIELDS)
        self._places: dict[int, int] = {}
        self._free = list(range(_FIRST_CAPACITY))

    def put(self, sequence: int, sampling: SamplingParams, prompt_tokens: int) -> None:
        """Add a sequence, or replace what is known of it."""
        place = self._places.get(sequence)
        if place is None:
            if not self._free:
                self._free = list(range(len(self._rows), 2 * len(self._rows)))
                self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
            place = self._free.pop()
            self._places[sequence] = place
        top_k = self._top_k(sampling)
        self._rows[place] = (
            sampling.temperature,
            sampling.min_p,
            sampling.top_p,
            top_k,
            sampling.seed & _SEED_MASK,
            sampling.choice,
            prompt_tokens,
            # Without stop tokens there is nothing to mask.
            sampling.min_tokens if sampling.stop_token_ids else 0,
            sampling.num_logprobs is not None,
            sampling.num_logprobs or 0,
            self._method(sampling, top_k),
            sampling.repetition_penalty != 1.0
            or sampling.frequency_penalty != 0.0
            or sampling.presence_penalty != 0.0,
        )

    def remove(self, sequence: int) -> None:
        """Take a sequence out."""
        self._free.append(self._places.pop(sequence))

    def rows(self, sequences: Sequence[int]) -> npt.NDArray[Any]:
        """Return the rows of `sequences`, a structured array [n].

        Raises:
            InvariantBroken: one of them is not registered.
        """
        try:
            places = [self._places[sequence] for sequence in sequences]
        except KeyError as error:
            raise InvariantBroken(
                f"sequence {error.args[0]} is not registered with the sampler"
            ) from error
        return self._rows[places] if places else self._rows[:0]

    def _top_k(self, sampling: SamplingParams) -> int:
        if sampling.top_k is None or not 0 < sampling.top_k < self._vocab_size:
            return self._vocab_size
        return sampling.top_k

    def _method(self, sampling: SamplingParams, top_k: int) -> Method:
        if sampling.temperature < GREEDY_BELOW:
            return Method.GREEDY
        if top_k < self._vocab_size:
            return Method.TOP_K
        if sampling.top_p < 1.0 or sampling.min_p > 0.0:
            return Method.PROBABILITY
        return Method.PLAIN
