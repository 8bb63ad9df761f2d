"""The work queue: which resource is reconciled next, and when.

A key is handed to one worker at a time; asked for again meanwhile, it comes once more afterwards.
However often a key is added while it waits, it comes once. A key that fails comes back later and
later, scattered, so that many that fail together do not return together. Between two turns of a
key lies a least time, so that a storm of events costs a few turns.

It knows nothing of what a key stands for. Clock and randomness are given.
"""

import heapq
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class QueueSettings:
    """Times in seconds. A failed key waits first_delay_s x 2^failures, at most max_delay_s, of
    which a random half may be left out."""

    first_delay_s: float = 0.5
    max_delay_s: float = 300.0
    min_interval_s: float = 0.5


class WorkQueue(Generic[Key]):
    """See the module. Any thread may call it.

    Args:
        settings: delays.
        clock: seconds that only grow.
        random: returns a number from 0 up to 1.
        observe_wait: told of each key that is taken how many seconds it was due.
    """

    def __init__(
        self,
        settings: QueueSettings,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
        observe_wait: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._random = random
        self._observe_wait = observe_wait
        self._changed = threading.Condition()
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._running: set[Key] = set()
        self._again: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._last_taken: dict[Key, float] = {}
        self._counter = 0
        self._is_closed = False

    def add(self, key: Key, *, after_s: float = 0.0) -> None:
        """Let a key come after a time; where it waits already, the earlier one holds."""
        with self._changed:
            self._add(key, self._clock() + after_s)

    def take(self, *, timeout_s: float | None = None) -> Key | None:
        """Wait for a key that is due and return it; None when the time is over or on `close`.

        The caller must say `done` or `failed` of it.
        """
        end = None if timeout_s is None else self._clock() + timeout_s
        with self._changed:
            while not self._is_closed:
                now = self._clock()
                key = self._pop_due(now)
                if key is not None:
                    self._running.add(key)
                    self._last_taken[key] = now
                    return key
                waits = [moment - now for moment in (self._next_due(), end) if moment is not None]
                if end is not None and now >= end:
                    return None
                self._changed.wait(min(waits) if waits else None)
            return None

    def done(self, key: Key, *, again_after_s: float | None = None) -> None:
        """A key's turn went well: its failures are forgotten. It may be asked for again."""
        with self._changed:
            self._failures.pop(key, None)
            self._finish(key, again_after_s)

    def failed(self, key: Key, *, at_least_s: float = 0.0) -> float:
        """A key's turn failed: it comes back later. Return after how many seconds."""
        settings = self._settings
        with self._changed:
            failures = self._failures.get(key, 0)
            self._failures[key] = failures + 1
            delay_s = min(settings.max_delay_s, settings.first_delay_s * 2.0 ** min(failures, 32))
            delay_s = max(at_least_s, delay_s * (1 - self._random() / 2))
            # What was asked for meanwhile waits too: it would fail just the same.
            self._again.pop(key, None)
            self._finish(key, delay_s)
            return delay_s

    def forget(self, key: Key) -> None:
        """A key stands for nothing any more: drop what is known of it.

        One that was asked for meanwhile still comes: what it stands for may be there anew.
        """
        with self._changed:
            self._failures.pop(key, None)
            self._last_taken.pop(key, None)

    def close(self) -> None:
        """Let every `take` return None, now and later."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def failures(self, key: Key) -> int:
        """Return how often a key failed since it last went well."""
        with self._changed:
            return self._failures.get(key, 0)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        with self._changed:
            return self._is_closed

    @property
    def depth(self) -> int:
        """Keys that are due now and not yet taken."""
        with self._changed:
            now = self._clock()
            return sum(due <= now for due in self._due.values())

    def check_integrity(self) -> None:
        """Raise AssertionError if the parts contradict each other."""
        with self._changed:
            assert not self._running & set(self._due), "a key waits and runs"
            assert set(self._again) <= self._running, "asked again, yet it does not run"
            live = {(due, key) for due, _, key in self._heap if self._due.get(key) == due}
            assert {key for _, key in live} == set(self._due), "a key would never come"

    def _add(self, key: Key, due: float) -> None:
        if key in self._running:
            self._again[key] = min(due, self._again.get(key, due))
            return
        if key in self._last_taken:
            due = max(due, self._last_taken[key] + self._settings.min_interval_s)
        if self._failures.get(key) and key in self._due:
            return  # it waits out its delay, whatever happens meanwhile
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        self._counter += 1
        heapq.heappush(self._heap, (due, self._counter, key))
        self._changed.notify()

    def _pop_due(self, now: float) -> Key | None:
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self._observe_wait(now - due)
                return key
        return None

    def _next_due(self) -> float | None:
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _finish(self, key: Key, again_after_s: float | None) -> None:
        self._running.discard(key)
        again = self._again.pop(key, None)
        if again_after_s is not None:
            wished = self._clock() + again_after_s
            again = wished if again is None else min(again, wished)
        if again is not None:
            self._add(key, again)
