"""How long outputs get: learned from those that ended, flow by flow.

Admission over-commits on it, and jobs are charged by it before the truth is known. Guessing wrong
costs recomputing or a turn, never a token.

What is expected of a new flow is what all flows had; a flow's own outputs count more and more as
they come. Outputs that begin together end in the order of their length: whoever averages what has
ended learns from the short ones first, expects too little, and lets too many in, which then end
together too. So outputs are counted in the order in which they began:

    begun     a  b  c  d  e        a and b have ended and count; d and e have ended too, but
    ended     x  x     x  x        wait for c, unless too many wait for too few
"""

from collections import OrderedDict
from dataclasses import dataclass, field

DEFAULT_TOKENS = 256
"""Expected while nothing is known."""

_MEMORY = 100
"""A mean forgets after about this many outputs."""

_PRIOR = 8
"""Outputs of its own after which a flow's mean counts as much as that of all; and as many as the
first guess counts."""

_WAITING = 512
_WAITING_SHARE = 4
"""Ended outputs that may wait for older ones: so many, or so many times those that are open. Then
they count, so that one that takes for ever neither stops the learning nor fills the memory."""

_MAX_IDLE_FLOWS = 1024


class LearnedLengths:
    """Means of generated tokens, over all flows and for each.

    An output is known by a key of the caller's, unique among the open ones of its flow; it may
    stand for several sequences that end together.
    """

    def __init__(self, default_tokens: int = DEFAULT_TOKENS) -> None:
        self._overall = _Mean(float(default_tokens), count=_PRIOR)
        self._flows: OrderedDict[str, _FlowLengths] = OrderedDict()

    def begin(self, flow: str, key: int) -> None:
        """Note that an output of `flow` begins after those that began before."""
        self._find(flow).outputs[key] = None

    def end(self, flow: str, key: int, num_tokens: int, num_sequences: int = 1) -> None:
        """Learn that an output ended, with so many tokens over all its sequences."""
        lengths = self._find(flow)
        lengths.outputs[key] = (num_tokens, num_sequences)
        lengths.num_waiting += 1
        self._count_settled(lengths)

    def forget(self, flow: str, key: int) -> None:
        """Note that an output that began says nothing: it failed, or will begin again."""
        lengths = self._find(flow)
        del lengths.outputs[key]
        self._count_settled(lengths)

    def leave(self, flow: str) -> None:
        """Forget a flow that is over; harmless if it is not known."""
        self._flows.pop(flow, None)

    def expect(self, flow: str) -> int:
        """Return the tokens expected of a sequence of the next output of `flow`, at least 1."""
        lengths = self._flows.get(flow)
        if lengths is None:
            return max(1, round(self._overall.value))
        mean = lengths.mean
        share = mean.count / (mean.count + _PRIOR)
        return max(1, round(share * mean.value + (1 - share) * self._overall.value))

    @property
    def num_open(self) -> int:
        """Outputs that began and have not ended. O(flows)."""
        return sum(lengths.num_open for lengths in self._flows.values())

    @property
    def num_flows(self) -> int:
        """Flows that are remembered."""
        return len(self._flows)

    def _find(self, flow: str) -> "_FlowLengths":
        """Return what is known of a flow, which is the one used last from now on."""
        lengths = self._flows.get(flow)
        if lengths is None:
            if len(self._flows) >= _MAX_IDLE_FLOWS:
                self._drop_idle()
            lengths = self._flows[flow] = _FlowLengths()
        self._flows.move_to_end(flow)
        return lengths

    def _drop_idle(self) -> None:
        idle = next((name for name, it in self._flows.items() if not it.outputs), None)
        if idle is not None:
            del self._flows[idle]

    def _count_settled(self, lengths: "_FlowLengths") -> None:
        """Count ended outputs up to the oldest that is open; all if too many wait for it."""
        outputs = lengths.outputs
        while outputs and (ended := outputs[key := next(iter(outputs))]) is not None:
            del outputs[key]
            self._count(lengths, ended)
        if lengths.num_waiting > max(_WAITING, _WAITING_SHARE * lengths.num_open):
            for ended in outputs.values():
                if ended is not None:
                    self._count(lengths, ended)
            lengths.outputs = OrderedDict.fromkeys(
                key for key, ended in outputs.items() if ended is None
            )

    def _count(self, lengths: "_FlowLengths", ended: tuple[int, int]) -> None:
        lengths.num_waiting -= 1
        num_tokens, num_sequences = ended
        for mean in (lengths.mean, self._overall):
            mean.add(num_tokens / num_sequences, num_sequences)


class _Mean:
    """A running mean that starts from a guess and forgets."""

    def __init__(self, guess: float, count: int = 0) -> None:
        self.value = guess
        self.count = count

    def add(self, value: float, count: int) -> None:
        """Add a value that was seen `count` times."""
        self.count += count
        self.value += (value - self.value) * min(1.0, count / min(self.count, _MEMORY))


@dataclass
class _FlowLengths:
    """One flow. outputs: by key, in the order of their begin; (tokens, sequences) once ended.
    num_waiting: of them, those that ended."""

    mean: _Mean = field(default_factory=lambda: _Mean(0.0))
    outputs: OrderedDict[int, tuple[int, int] | None] = field(default_factory=OrderedDict)
    num_waiting: int = 0

    @property
    def num_open(self) -> int:
        """Outputs that have not ended."""
        return len(self.outputs) - self.num_waiting
