"""What happens to processes in the chaos benchmark, drawn from a seed. Pure.

Cards, not dice: a deck holds every kind of event and is dealt to its end before it is shuffled
again, so that a short run has its share of each. A card that cannot be played, such as a drain
of the last worker, gives way to its opposite.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from random import Random


class Part(StrEnum):
    """Whom an event strikes."""

    GATEWAY = "gateway"
    STAGE = "stage"
    WORKER = "worker"


class Action(StrEnum):
    """What is done. FREEZE: stopped for a while, then goes on. FREEZE_AND_KILL: stopped, then
    killed. TERMINATE: asked to end by SIGTERM."""

    KILL = "kill"
    FREEZE = "freeze"
    FREEZE_AND_KILL = "freeze and kill"
    TERMINATE = "terminate"
    JOIN = "join"
    DRAIN = "drain"
    CANCEL_DRAIN = "cancel drain"


STRIKES = (Action.KILL, Action.FREEZE, Action.FREEZE_AND_KILL, Action.TERMINATE)
"""What takes a process away, from which the others recover."""

LONGEST_FREEZE_S = 9.0
"""Longer than a lease, so that some are given up while they are stopped."""

LONGEST_DRAIN_S = 4.0
LONGEST_PAUSE_S = 1.0

OVERLAPPING = 0.25
"""Share of events after which the next does not wait until all has recovered."""

_DECK: tuple[tuple[Part, Action], ...] = (
    *((part, action) for part in Part for action in STRIKES),
    (Part.WORKER, Action.KILL),
    *[(Part.WORKER, Action.JOIN)] * 4,
    *[(Part.WORKER, Action.DRAIN)] * 2,
    (Part.WORKER, Action.CANCEL_DRAIN),
)


@dataclass(frozen=True)
class Crew:
    """Who is there. workers: those that take work; draining: those that do not."""

    stages: tuple[str, ...]
    workers: tuple[str, ...]
    draining: tuple[str, ...]
    most_workers: int


@dataclass(frozen=True)
class Disturbance:
    """An event. target: the process it strikes, None for one that joins. for_s: how long it is
    frozen, or may drain. pause_s: before the next event. waits: until all has recovered."""

    part: Part
    action: Action
    target: str | None
    for_s: float
    pause_s: float
    waits: bool

    @property
    def is_strike(self) -> bool:
        """Whether others must recover from it."""
        return self.action in STRIKES


class Fate:
    """Draws events. The same seed and the same crews give the same events."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._cards = self._deal()

    def draw(self, crew: Crew) -> Disturbance:
        """Return what happens next to a crew."""
        part, card = next(self._cards)
        action = card if part is not Part.WORKER else _make_playable(card, crew)
        random = self._random
        if part is Part.GATEWAY:
            target: str | None = "gateway"
        elif part is Part.STAGE:
            target = random.choice(crew.stages)
        elif action is Action.CANCEL_DRAIN:
            target = random.choice(crew.draining)
        else:
            candidates = crew.workers + (crew.draining if action in STRIKES else ())
            target = None if action is Action.JOIN else random.choice(candidates)
        longest_s = LONGEST_DRAIN_S if action is Action.DRAIN else LONGEST_FREEZE_S
        return Disturbance(
            part,
            action,
            target,
            for_s=random.uniform(0.2, longest_s),
            pause_s=random.uniform(0.0, LONGEST_PAUSE_S),
            waits=random.random() >= OVERLAPPING,
        )

    def _deal(self) -> Iterator[tuple[Part, Action]]:
        while True:
            deck = list(_DECK)
            self._random.shuffle(deck)
            yield from deck


def _make_playable(action: Action, crew: Crew) -> Action:
    """Return a worker's event that leaves one at work, and no more than there may be."""
    num_workers = len(crew.workers) + len(crew.draining)
    takes_one = action in STRIKES or action is Action.DRAIN
    if takes_one and len(crew.workers) <= 1:
        return Action.JOIN if num_workers < crew.most_workers else Action.CANCEL_DRAIN
    if action is Action.CANCEL_DRAIN and not crew.draining:
        return _make_playable(Action.DRAIN, crew)
    if action is Action.JOIN and num_workers >= crew.most_workers:
        return _make_playable(Action.KILL, crew)
    return action
