"""How long the answers of a job are likely to be, learned from those it has.

Lines of one job are alike, so their mean is worth more than one over all requests. Pure.

Lines that were begun together end in the order of their length: whoever averages what has ended
learns from the short ones first and expects too little. So answers are counted in the order in
which their lines were begun: a short one waits until all begun before it have ended.
"""

import math
from collections import deque

PRIOR_TOKENS = 256
PRIOR_WEIGHT = 8.0
"""What is expected of a job that has no answer yet, and how many answers weigh as much."""

MEMORY_WEIGHT = 512.0
"""Answers that weigh; older ones fade, so that a job may change on its way."""


class LengthEstimator:
    """The expected number of new tokens of a job's next sequence."""

    def __init__(self, prior_tokens: int = PRIOR_TOKENS) -> None:
        self._mean = float(prior_tokens)
        self._weight = PRIOR_WEIGHT
        self._order: deque[int] = deque()
        self._ended: dict[int, tuple[int, int] | None] = {}

    def begin(self, key: int) -> None:
        """Note that a line begins."""
        self._order.append(key)

    def end(self, key: int, num_tokens: int, num_sequences: int) -> None:
        """Note that a line that began has ended with so many tokens over all its sequences."""
        self._settle(key, (num_tokens, num_sequences))

    def forget(self, key: int) -> None:
        """Note that a line that began says nothing about lengths: it failed."""
        self._settle(key, None)

    def expected_new_tokens(self, limit: int) -> int:
        """Return the tokens to expect of a sequence that may have `limit` at most."""
        return min(limit, max(1, math.ceil(self._mean)))

    def _settle(self, key: int, outcome: tuple[int, int] | None) -> None:
        self._ended[key] = outcome
        while self._order and self._order[0] in self._ended:
            counted = self._ended.pop(self._order.popleft())
            if counted is not None:
                self._count(*counted)

    def _count(self, num_tokens: int, num_sequences: int) -> None:
        self._weight = min(self._weight + num_sequences, MEMORY_WEIGHT + num_sequences)
        self._mean += (num_tokens - num_sequences * self._mean) / self._weight
