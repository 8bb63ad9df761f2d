"""A step: one trip of a lane, or of a prefill batch, through all layers, as plain data.

A step's composition travels once. Rows are the unit of the layers: in a decode step one row
per sequence, in a prefill step one row per prompt token, sequences packed one after another:

    sequence      A A A A B B C C C C C        counts = [4, 2, 5]
    position      0 1 2 3 0 1 7 8 9 . .        starts = [0, 0, 7]
    row           0 1 2 3 4 5 6 7 8 9 10
"""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from glinthawk.core.ids import LaneId, SequenceId
from glinthawk.core.sampling import SamplingParams


class StepKind(IntEnum):
    """What a step does; a release step has no rows."""

    DECODE = 1
    PREFILL = 2
    RELEASE = 3


@dataclass(frozen=True)
class Fork:
    """`child` starts with the first `num_tokens` tokens of `parent`: whole pages are shared,
    a partly filled last page is copied at once."""

    parent: SequenceId
    child: SequenceId
    num_tokens: int


@dataclass(frozen=True)
class SequenceStart:
    """What the last stage must know of a sequence before it samples for it.

    tokens: all tokens so far; the first `prompt_tokens` are the prompt (the rest were
    generated before the sequence was set back). Positions count from 0.
    """

    sequence: SequenceId
    tokens: tuple[int, ...]
    prompt_tokens: int
    sampling: SamplingParams


@dataclass(frozen=True)
class StepPlan:
    """The composition of one step.

    sequences [n] uint64, starts [n] uint32 (position of the first row), counts [n] uint32
    (rows of the sequence; 1 in decode), samples [n] bool (the sequence's last row is sampled;
    False for a chunk that is not the prompt's last), tokens [rows] uint32 (inputs).

    The worker applies `releases`, then `forks`, then makes room for the rows, all or nothing.
    The last stage registers `starts_of`, and forgets `releases`.
    A sequence in `forks` whose parent is sampled in an earlier step needs its own start.
    """

    kind: StepKind
    lane: LaneId
    step: int
    worker: str
    sequences: npt.NDArray[np.uint64]
    starts: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.uint32]
    samples: npt.NDArray[np.bool_]
    tokens: npt.NDArray[np.uint32]
    releases: tuple[SequenceId, ...] = ()
    forks: tuple[Fork, ...] = ()
    registrations: tuple[SequenceStart, ...] = field(default=())

    @property
    def num_rows(self) -> int:
        """Rows that go through the layers."""
        return int(self.counts.sum()) if len(self.counts) else 0


@dataclass(frozen=True)
class TokenLogprobs:
    """Logprobs of one position in the raw distribution.

    token, logprob, rank: the token that stands there (rank 1 = most probable). top: the most
    probable tokens with their logprobs, best first.
    """

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class SampledToken:
    """The outcome of one sampled row. error is set when a logit was not finite."""

    sequence: SequenceId
    token: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None


@dataclass(frozen=True)
class StepResult:
    """What the last stage tells the gateway of one step.

    prompt_logprobs: (sequence, position, logprobs of the token at that position), for the
    positions this step covered of sequences that asked for it.
    """

    lane: LaneId
    step: int
    sampled: tuple[SampledToken, ...]
    prompt_logprobs: tuple[tuple[SequenceId, int, TokenLogprobs], ...] = ()
