"""What goes into the scheduler and what comes out of it, besides steps."""

from dataclasses import dataclass
from enum import StrEnum

from glinthawk.core.ids import LaneId, SequenceId
from glinthawk.core.step import SequenceStart, StepKind
from glinthawk.errors import InvalidRequest


class FinishReason(StrEnum):
    """Why a sequence ended; the values are OpenAI's where it has one."""

    STOP = "stop"
    LENGTH = "length"
    ERROR = "error"


class RequestClass(StrEnum):
    """Who waits for a request: a caller, or a batch."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True)
class Flow:
    """Whom requests belong to, for fairness: flows share tokens by their weights."""

    name: str = "default"
    weight: float = 1.0
    request_class: RequestClass = RequestClass.BATCH

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise InvalidRequest(f"flow {self.name!r} has weight {self.weight}; use more than 0")


@dataclass(frozen=True)
class SequenceGroup:
    """The `n` choices of one prompt.

    starts: one for each choice, all with the same prompt. They may already have generated
        tokens (a job resumed), each its own.
    max_new_tokens: generated tokens of each choice, those in `starts` included. 0 prefills the
        prompt for its logprobs; the token sampled then is reported and is to be ignored.
    expected_new_tokens: how many tokens are expected, when the caller knows better than the
        mean of the sequences that ended so far (say, because end tokens are ignored).
    flow: whom the request belongs to.
    """

    starts: tuple[SequenceStart, ...]
    max_new_tokens: int
    expected_new_tokens: int | None = None
    flow: Flow = Flow()

    def __post_init__(self) -> None:
        if not self.starts:
            raise InvalidRequest("a request has no choices; ask for at least one", param="n")
        first = self.starts[0]
        if first.prompt_tokens < 1:
            raise InvalidRequest("the prompt has no tokens; give at least one", param="prompt")
        if self.max_new_tokens < 0:
            raise InvalidRequest(
                f"max_tokens is {self.max_new_tokens}; use 0 or more", param="max_tokens"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output of one choice, at most."""
        return self.starts[0].prompt_tokens + max(1, self.max_new_tokens)


@dataclass(frozen=True)
class Finished:
    """A sequence that ended in this commit. num_generated counts its tokens since the prompt."""

    sequence: SequenceId
    reason: FinishReason
    num_generated: int


@dataclass(frozen=True)
class Committed:
    """What a commit did.

    accepted: sequences whose sampled token now counts. A token of `StepResult.sampled` whose
        sequence is not here (aborted, failed, or set back meanwhile) must be thrown away.
    finished: sequences that ended, by the caller's word, by length, or by a failed row.
    recomputed_tokens: of a prefill, those whose KV was there before and had been lost.
    """

    lane: LaneId
    step: int
    kind: StepKind
    accepted: frozenset[SequenceId]
    finished: tuple[Finished, ...]
    recomputed_tokens: int = 0


@dataclass(frozen=True)
class Movable:
    """A sequence whose KV could be copied elsewhere now. expected_rest: tokens that it is still
    expected to generate."""

    sequence: SequenceId
    num_generated: int
    expected_rest: int


@dataclass(frozen=True)
class MoveOrder:
    """The KV of the first `num_tokens` tokens of a sequence, to be copied from worker to worker.

    number: tells this move from all others; it is never used again.
    """

    number: int
    sequence: SequenceId
    source: str
    target: str
    num_tokens: int


@dataclass(frozen=True)
class WorkerLoad:
    """What one worker holds. is_idle: nothing runs there, and it has been told of all releases."""

    kv_used_bytes: int
    kv_capacity_bytes: int
    num_sequences: int
    is_idle: bool


@dataclass(frozen=True)
class SchedulerStats:
    """Counts for metrics. KV bytes: held now, wanted by running and admissible waiting sequences,
    there in all workers. recomputed_tokens: prefilled again, in steps that came back."""

    num_waiting_interactive: int
    num_waiting_batch: int
    num_prefilling: int
    num_decoding: int
    lane_rows: tuple[int, ...]
    steps_in_flight: int
    num_set_back: int
    recomputed_tokens: int
    num_moving: int
    moved_tokens: int
    kv_used_bytes: int
    kv_demanded_bytes: int
    kv_capacity_bytes: int

    @property
    def num_waiting(self) -> int:
        """Sequences that wait, choices that are to fork included."""
        return self.num_waiting_interactive + self.num_waiting_batch
