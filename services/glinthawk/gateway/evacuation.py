"""Empties workers that drain: what would not end there in time is copied to other workers.

    every turn, for each draining worker, between the steps of its lanes:

    would it end in half of the time left?  -- yes -->  it stays
                 | no
    room elsewhere?  -- no -->  it stays; looked for again, until the deadline
                 | yes
    its KV is copied, a few sequences at a time  -- failed -->  it goes on where it is
                 | all of it has arrived
    it goes on there

What still runs at the deadline is computed again elsewhere. The engine's thread owns it; it knows
no sockets and no clock of its own.
"""

from dataclasses import dataclass, field
from typing import Protocol

from glinthawk.core.ids import SequenceId
from glinthawk.gateway.events import CopyEnded
from glinthawk.gateway.workers import Workforce
from glinthawk.scheduler import Movable, MoveOrder, Scheduler
from glinthawk.telemetry.logging import get_logger

log = get_logger("gateway.evacuation")

COPIES_AT_ONCE = 2
"""Of one worker: while one sequence is sent, the next one is read. More would stand still longer
and arrive no sooner."""

SHARE_OF_TIME = 0.5
"""A sequence that is not expected to end within this share of the time left is moved."""

LONGEST_COPY_S = 60.0
MOST_FAILURES = 3
"""Copies in a row that failed between two workers, after which no other is tried."""

PATIENCE_S = 1.0
"""How long a sequence is watched, at most, before it counts as slow."""

LOOKS = 4
"""Sequences for which room is looked for in vain, before the next look."""

LOOK_AGAIN_S = 0.1


class Copier(Protocol):
    """Takes copies to the workers; its methods must not block."""

    def copy_pages(
        self, order: MoveOrder, *, source_epoch: int, target_epoch: int, timeout_s: float
    ) -> None:
        """Have a sequence's KV copied; a `CopyEnded` event follows, at last after the time."""


@dataclass
class _Watch:
    """A draining worker. seen: when a sequence was first looked at, and what it had generated;
    it is not always there to be looked at, for its lane may be in flight. failures: copies in a
    row that failed, by target. look_at: when room is looked for again, after it was in vain."""

    seen: dict[SequenceId, tuple[float, int]] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    look_at: float | None = None


class Evacuation:
    """The copies of one engine."""

    def __init__(self, scheduler: Scheduler, workers: Workforce, copier: Copier) -> None:
        self._scheduler = scheduler
        self._workers = workers
        self._copier = copier
        self._watches: dict[str, _Watch] = {}
        self._under_way: dict[int, str] = {}
        self.moved_bytes = 0

    def begin_copies(self, now: float) -> None:
        """Start the copies that are due; called when the steps that came back are committed."""
        draining = dict(self._workers.draining())
        for name in [name for name in self._watches if name not in draining]:
            del self._watches[name]
        for name, until in draining.items():
            watch = self._watches.setdefault(name, _Watch())
            is_time = watch.look_at is None or now >= watch.look_at
            if now < until and is_time and self._has_slot(name):
                self._empty(name, watch, now, until)

    def end_copy(self, event: CopyEnded) -> None:
        """Let a sequence go on: where its KV is now, or where it was."""
        order = event.order
        self._under_way.pop(order.number, None)
        arrived = event.error is None
        is_current = self._scheduler.end_move(order, arrived=arrived)
        watch = self._watches.get(order.source)
        if arrived:
            self.moved_bytes += event.num_bytes if is_current else 0
            if watch is not None:
                watch.failures.pop(order.target, None)
            return
        if watch is not None:
            watch.failures[order.target] = watch.failures.get(order.target, 0) + 1
        log.warning(
            "copy_failed",
            sequence=order.sequence,
            worker=order.source,
            target=order.target,
            reason=str(event.error),
        )

    def _has_slot(self, name: str) -> bool:
        return sum(source == name for source in self._under_way.values()) < COPIES_AT_ONCE

    def _empty(self, name: str, watch: _Watch, now: float, until: float) -> None:
        """Begin as many copies as may be under way at once, longest rest first."""
        movable = self._scheduler.movable(name)
        for item in movable:
            watch.seen.setdefault(item.sequence, (now, item.num_generated))
        leaving = [item for item in movable if not _would_end(watch, item, now, until)]
        leaving.sort(key=lambda item: -item.expected_rest)
        excluded = {target for target, num in watch.failures.items() if num >= MOST_FAILURES}
        looks = 0
        for item in leaving:
            if not self._has_slot(name):
                return
            order = self._scheduler.start_move(item.sequence, excluded)
            if order is not None:
                self._begin(order, min(LONGEST_COPY_S, until - now))
                continue
            looks += 1
            if looks == LOOKS:
                break
        if looks:
            watch.look_at = now + LOOK_AGAIN_S

    def _begin(self, order: MoveOrder, timeout_s: float) -> None:
        self._under_way[order.number] = order.source
        self._copier.copy_pages(
            order,
            source_epoch=self._workers.epoch_of(order.source),
            target_epoch=self._workers.epoch_of(order.target),
            timeout_s=timeout_s,
        )


def _would_end(watch: _Watch, item: Movable, now: float, until: float) -> bool:
    """Tell whether a sequence, at its own pace since it was first looked at, ends in time."""
    since, had = watch.seen[item.sequence]
    elapsed, gained = now - since, item.num_generated - had
    if not gained and elapsed < min(PATIENCE_S, (until - since) / 10):
        return True
    pace_s = elapsed / max(1, gained)
    return item.expected_rest * pace_s <= SHARE_OF_TIME * (until - now)
