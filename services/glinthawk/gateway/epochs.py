"""Epochs from the durable counter, reserved in blocks, so that hardly one waits for a disk.

`prepare` may write, and is called where nobody waits; `take` only counts, and is called under
locks. What is left of a block when the process ends is never used.
"""

import threading
from collections.abc import Callable

from glinthawk.errors import StoreUnavailable

BLOCK = 256
"""Epochs that one write reserves."""

LEAST = 8
"""Epochs there are after `prepare`: more than two threads take before they prepare again."""


class Epochs:
    """See the module. Any thread may call.

    reserve: raises the durable counter by so many, and returns the first of the new numbers.
    """

    def __init__(self, reserve: Callable[[int], int]) -> None:
        self._reserve = reserve
        self._refilling = threading.Lock()
        self._lock = threading.Lock()
        self._next = 0
        self._end = 0

    @property
    def num_left(self) -> int:
        """How many can be taken without a write."""
        with self._lock:
            return self._end - self._next

    def prepare(self) -> None:
        """See to it that some can be taken; writes, and may wait for the store.

        Raises:
            StoreUnavailable: fewer than LEAST are left, and none can be reserved now.
        """
        with self._refilling:
            if self.num_left >= LEAST:
                return
            first = self._reserve(BLOCK)
            with self._lock:
                self._next, self._end = first, first + BLOCK

    def take(self) -> int:
        """Return an epoch that is greater than all before; never waits.

        Raises:
            StoreUnavailable: none is reserved; `prepare` comes first.
        """
        with self._lock:
            if self._next == self._end:
                raise StoreUnavailable("no epoch is reserved; it is tried again")
            self._next += 1
            return self._next - 1
