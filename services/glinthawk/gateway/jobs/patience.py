"""Waiting for a store that cannot be written now: a full disk, a lock, a volume that is away.

Nothing is lost meanwhile and nothing is logged twice: one line when it begins, one when it is
over. Each actor (the runner's thread, a validation, a finishing) has a patience of its own.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from glinthawk.errors import StoreUnavailable
from glinthawk.telemetry.logging import get_logger

log = get_logger("gateway.jobs")

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0

T = TypeVar("T")


class Stopped(Exception):
    """The gateway ends; what was under way is left to its next start."""


class Patience:
    """How one thread bears an unavailable store. doing: what it does, for the log."""

    def __init__(
        self,
        doing: str,
        stopped: threading.Event,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._doing = doing
        self._stopped = stopped
        self._clock = clock
        # While the store is away: how long is waited for it, and when the next attempt is due.
        self._wait_s: float | None = None
        self._due_s: float | None = None
        self._num_moves = 0

    @property
    def num_moves(self) -> int:
        """How often the thread was heard of. One that waits for the store moves; one that hangs
        does not."""
        return self._num_moves

    @property
    def is_due(self) -> bool:
        """Whether the store is well as far as is known, or it is time to try again."""
        return self._due_s is None or self._clock() >= self._due_s

    def read(self, call: Callable[[], T]) -> T:
        """Call. That it succeeds says nothing: on a full disk one can still read.

        Raises:
            StoreUnavailable: as `call` did; the next attempt is due later.
        """
        try:
            return call()
        except StoreUnavailable as error:
            self._fail(error)
            raise

    def write(self, call: Callable[[], T]) -> T:
        """Call. If it succeeds, the store is well again.

        Raises:
            StoreUnavailable: as `call` did; the next attempt is due later.
        """
        result = self.read(call)
        if self._wait_s is not None:
            self._wait_s = self._due_s = None
            log.info("store_available_again", doing=self._doing)
        return result

    def insist(self, call: Callable[[], T]) -> T:
        """Call until it succeeds.

        Raises:
            Stopped: the gateway ends before that.
        """
        while True:
            self.check()
            try:
                return self.write(call)
            except StoreUnavailable:
                self._stopped.wait(self._wait_s)

    def check(self) -> None:
        """Raise Stopped if the gateway ends."""
        self._num_moves += 1
        if self._stopped.is_set():
            raise Stopped

    def pause(self, wait_s: float) -> None:
        """Wait.

        Raises:
            Stopped: the gateway ends before that.
        """
        self._stopped.wait(wait_s)
        self.check()

    def _fail(self, error: StoreUnavailable) -> None:
        if self._wait_s is None:
            log.error("store_unavailable", doing=self._doing, error=str(error))
            self._wait_s = FIRST_WAIT_S
        else:
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
        self._due_s = self._clock() + self._wait_s
