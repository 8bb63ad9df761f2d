"""What the scheduler remembers of a sequence and of the choices it belongs to."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from glinthawk.core.ids import SequenceId
from glinthawk.core.step import SequenceStart
from glinthawk.scheduler.data import FinishReason, Flow

if TYPE_CHECKING:
    from glinthawk.scheduler.lane import Lane
    from glinthawk.scheduler.worker import WorkerState


class Phase(Enum):
    """Where a sequence stands.

    QUEUED -> PREFILL -> JOINING -> LANE -> DONE        a sequence with its own prefill
    PENDING -> JOINING -> LANE -> DONE                  a choice forked from its holder
    JOINING, LANE -> MOVING -> JOINING                  its KV goes to another worker
    HELD: ended, but its pages are still to be forked. Setting back leads to QUEUED.
    """

    QUEUED = 1
    PENDING = 2
    PREFILL = 3
    JOINING = 4
    LANE = 5
    HELD = 6
    DONE = 7
    MOVING = 8


LEADS = (Phase.QUEUED, Phase.PREFILL, Phase.MOVING)
"""Phases after which a sequence's pages can be forked, so that choices may wait for it."""


@dataclass(eq=False)
class SharedPages:
    """Whole pages of a prompt that several choices hold on one worker."""

    pages: int
    holders: int = 1


@dataclass(eq=False)
class Group:
    """The choices of one prompt. `pending` have no KV and wait to fork from `holder`.

    computed: tokens to fork whose KV was there once.
    """

    prompt_tokens: int
    max_new_tokens: int
    expected_new_tokens: int | None
    flow: Flow
    members: list[Sequence] = field(default_factory=list)
    pending: deque[Sequence] = field(default_factory=deque)
    holder: Sequence | None = None
    unsent_forks: set[SequenceId] = field(default_factory=set)
    computed: int = 0

    @property
    def fork_tokens(self) -> int:
        """Tokens of the prompt that a fork takes over; the last one is run by the choice."""
        return self.prompt_tokens - 1


@dataclass(eq=False, slots=True)
class Sequence:
    """One token list being extended. Ages compare by `order` (lower is older).

    pages: own pages counted on its worker; `shared` are counted once for all holders.
    prefilled: tokens whose prefill was sent. known: the worker was told of it.
    settled: a step of it came back, so its KV is there and may be forked.
    flying: in a step in flight. doomed: ends as soon as it is not in flight.
    charged: tokens that its flow was charged with when it was first served.
    unregistered: it came from another worker; the last stage is told with its next step.
    barred: workers that its KV is not copied to again, because a copy there failed.
    computed: tokens whose KV was there once, here or elsewhere, by steps that came back.
    """

    start: SequenceStart
    group: Group
    order: int
    tokens: list[int]
    limit: int
    expected_end: int = 0
    phase: Phase = Phase.QUEUED
    worker: WorkerState | None = None
    lane: Lane | None = None
    row: int = 0
    pages: int = 0
    shared: SharedPages | None = None
    fork_from: Sequence | None = None
    prefilled: int = 0
    known: bool = False
    settled: bool = False
    flying: bool = False
    doomed: FinishReason | None = None
    charged: int = 0
    unregistered: bool = False
    barred: frozenset[str] = frozenset()
    computed: int = 0

    @property
    def id(self) -> SequenceId:
        """The identity the caller gave."""
        return self.start.sequence

    @property
    def num_generated(self) -> int:
        """Tokens generated since the prompt."""
        return len(self.tokens) - self.start.prompt_tokens

    @property
    def busy(self) -> bool:
        """In flight, or a row of a lane in flight: its pages must not be released now."""
        return self.flying or (
            self.phase is Phase.LANE and self.lane is not None and self.lane.flying
        )

    @property
    def all_pages(self) -> int:
        """Entries of its page table."""
        return self.pages + (self.shared.pages if self.shared else 0)

    def registration(self) -> SequenceStart:
        """Return what the last stage must know before it samples for this sequence."""
        return replace(self.start, tokens=tuple(self.tokens))
