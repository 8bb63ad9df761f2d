"""A lock whose waiters are let in as they came, which `threading.Lock` does not promise.

Without it, a thread that writes in a loop, such as one that drops a million lines bit by bit,
takes the lock again before any other has woken up.
"""

import threading
from collections import deque
from types import TracebackType


class Turns:
    """See the module. A context manager; not reentrant."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._is_taken = False
        self._waiting: deque[threading.Lock] = deque()

    @property
    def num_waiting(self) -> int:
        """How many threads wait for their turn."""
        return len(self._waiting)

    def __enter__(self) -> None:
        with self._guard:
            if not self._is_taken:
                self._is_taken = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        try:
            gate.acquire()
        except BaseException:
            self._give_up(gate)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False

    def _give_up(self, gate: threading.Lock) -> None:
        """Leave the line, interrupted; the turn may have come just then."""
        with self._guard:
            if gate in self._waiting:
                self._waiting.remove(gate)
                return
        self._pass_on()
