"""A lock whose waiters are let in as they came, which `threading.Lock` does not promise.

Without it, a thread that writes in a loop, such as one that drops a million lines bit by bit,
takes the lock again before any other has woken up. Nobody waits longer than a bound: while a disk
does not answer, or another process holds the database's lock, the line only grows.
"""

import threading
from collections import deque
from types import TracebackType

from glinthawk.errors import StoreUnavailable


class Turns:
    """See the module. A context manager; not reentrant.

    wait_s: how long a turn is waited for; None for as long as it takes.
    """

    def __init__(self, wait_s: float | None = None) -> None:
        self._wait_s = wait_s
        self._guard = threading.Lock()
        self._is_taken = False
        self._waiting: deque[threading.Lock] = deque()

    @property
    def num_waiting(self) -> int:
        """How many threads wait for their turn."""
        return len(self._waiting)

    def __enter__(self) -> None:
        """Wait for a turn.

        Raises:
            StoreUnavailable: it did not come in time.
        """
        if not self.take(self._wait_s):
            raise StoreUnavailable(
                f"the store is busy: no turn to write came in {self._wait_s:g} s, and "
                f"{self.num_waiting} wait (nothing was changed); try again"
            )

    def take(self, wait_s: float | None) -> bool:
        """Wait for a turn, and return whether it came: then it must be given back."""
        with self._guard:
            if not self._is_taken:
                self._is_taken = True
                return True
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        try:
            has_come = gate.acquire(timeout=-1 if wait_s is None else wait_s)
        except BaseException:
            self._give_up(gate)
            raise
        if not has_come:
            self._give_up(gate)
        return has_come

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.give_back()

    def give_back(self) -> None:
        """End a turn; who waits longest has it then."""
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False

    def _give_up(self, gate: threading.Lock) -> None:
        """Leave the line; the turn may have come just then."""
        with self._guard:
            if gate in self._waiting:
                self._waiting.remove(gate)
                return
        self.give_back()
