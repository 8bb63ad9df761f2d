"""What other threads post to the engine."""

from collections.abc import Hashable
from dataclasses import dataclass

from glinthawk.core.step import StepResult
from glinthawk.errors import GlinthawkError
from glinthawk.gateway.conversation import Listener
from glinthawk.gateway.requests import ParsedRequest
from glinthawk.gateway.roster import WorkerEntry
from glinthawk.scheduler import Flow, MoveOrder


@dataclass(frozen=True)
class Submit:
    """A request to answer."""

    key: Hashable
    request: ParsedRequest
    listener: Listener | None
    flow: Flow


@dataclass(frozen=True)
class Cancel:
    """A request that nobody waits for any more."""

    key: Hashable


@dataclass(frozen=True)
class StepFailed:
    """A step that did not get through."""

    lane: int
    step: int
    error: GlinthawkError


@dataclass(frozen=True)
class WorkerJoined:
    """A worker with an empty cache. drain_until: it drains already, until then."""

    entry: WorkerEntry
    drain_until: float | None = None


@dataclass(frozen=True)
class WorkerLost:
    """A worker that is gone, with what it held."""

    name: str


@dataclass(frozen=True)
class Drain:
    """A worker that is to be emptied by `deadline`; None takes it back. then_ends: it asked for
    it, and ends when it is empty."""

    name: str
    deadline: float | None
    then_ends: bool = False


@dataclass(frozen=True)
class CopyEnded:
    """All of a sequence's KV has arrived on another worker, or (with an error) nobody knows how
    much of it."""

    order: MoveOrder
    num_bytes: int = 0
    error: GlinthawkError | None = None


@dataclass(frozen=True)
class Broken:
    """Something is gone that the engine cannot do without."""

    error: GlinthawkError


@dataclass(frozen=True)
class Stop:
    """The end."""


MemberEvent = WorkerJoined | WorkerLost | Drain
Event = Submit | Cancel | StepResult | StepFailed | MemberEvent | CopyEnded | Broken | Stop
