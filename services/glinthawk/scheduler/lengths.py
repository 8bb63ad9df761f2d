"""How long outputs get: learned from those that ended, flow by flow.

Admission over-commits on it. What is expected of a new flow is what all flows had; a flow's own
outputs count more and more as they come. Guessing wrong costs recomputing, never a wrong token.
"""

from glinthawk.scheduler.data import Flow

_MEMORY = 100
"""A mean forgets after about this many outputs."""

_PRIOR = 8
"""Outputs of its own after which a flow's mean counts as much as that of all; and as many as the
first guess counts. The first to end are the short ones: a mean that believed them at once would
let too many in together, which then end together."""

_MAX_FLOWS = 1024


class LearnedLengths:
    """Means of generated tokens, over all flows and for each."""

    def __init__(self, default_tokens: int) -> None:
        self._overall = _Mean(float(default_tokens), count=_PRIOR)
        self._flows: dict[str, _Mean] = {}

    def observe(self, flow: Flow, num_tokens: int) -> None:
        """Learn that an output of `flow` ended after `num_tokens`."""
        self._overall.add(num_tokens)
        mean = self._flows.pop(flow.name, None)
        if mean is None:
            mean = _Mean(0.0)
            if len(self._flows) >= _MAX_FLOWS:
                del self._flows[next(iter(self._flows))]
        mean.add(num_tokens)
        self._flows[flow.name] = mean  # the flow that ended last stands last

    def expect(self, flow: Flow) -> int:
        """Return the tokens expected of the next output of `flow`, at least 1."""
        mean = self._flows.get(flow.name)
        if mean is None:
            return max(1, round(self._overall.value))
        share = mean.count / (mean.count + _PRIOR)
        return max(1, round(share * mean.value + (1 - share) * self._overall.value))


class _Mean:
    """A running mean that starts from a guess and forgets."""

    def __init__(self, guess: float, count: int = 0) -> None:
        self.value = guess
        self.count = count

    def add(self, number: int) -> None:
        self.count += 1
        self.value += (number - self.value) / min(self.count, _MEMORY)
