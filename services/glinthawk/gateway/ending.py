"""The end of a gateway: asked for once, and over in one budget of time, whatever hangs.

    signal or failure --begin--> steps, each with what is left --> over
                          `----- at the latest: the process is ended from within

A signal handler may call `begin` at any moment of the main thread, also in the middle of a wait;
so what it touches must not be a lock that the main thread may hold.
"""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable

from glinthawk.telemetry.logging import get_logger

log = get_logger("gateway.ending")

BUDGET_S = 22.0
"""For all steps together."""

LATEST_S = 25.0
"""When the process is ended by force, since the end began. Whoever asked, such as Kubernetes,
waits for 30 seconds, of which a call of the system may hold up the signal for 5."""

TELL_S = 1.0
"""How long the log may take to say why."""

EXIT_OVERDUE = 1


class Ending:
    """See the module. clock: seconds, monotonic. exit_process: ends it at once, with a code."""

    def __init__(
        self,
        *,
        budget_s: float = BUDGET_S,
        latest_s: float = LATEST_S,
        clock: Callable[[], float] = time.monotonic,
        exit_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._budget_s = budget_s
        self._latest_s = latest_s
        self._clock = clock
        self._exit_process = exit_process
        self._began_at: float | None = None
        # SimpleQueue.put may interrupt itself and get, in one thread.
        self._to_wait: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._to_watch: queue.SimpleQueue[None] = queue.SimpleQueue()
        threading.Thread(target=self._watch, name="ending", daemon=True).start()

    @property
    def has_begun(self) -> bool:
        """Whether the end was asked for."""
        return self._began_at is not None

    def begin(self) -> None:
        """Ask for the end; the second time is harmless."""
        if self._began_at is None:
            self._began_at = self._clock()
            self._to_wait.put(None)
            self._to_watch.put(None)

    def wait(self, timeout_s: float) -> bool:
        """Wait until the end is asked for, and return whether it is; one thread does."""
        if not self.has_begun:
            with contextlib.suppress(queue.Empty):
                self._to_wait.get(timeout=timeout_s)
        return self.has_begun

    def left(self, most_s: float) -> float:
        """Return the seconds that a step of the end may take, `most_s` at most."""
        if self._began_at is None:
            return most_s
        return min(most_s, max(0.0, self._began_at + self._budget_s - self._clock()))

    def _watch(self) -> None:
        """End the process if it is still there when all should be over."""
        self._to_watch.get()
        time.sleep(self._latest_s)
        # What is in the store is whole at every moment, and processes that were started end
        # with their parent. What hangs may be who reads the log.
        telling = threading.Thread(
            target=log.error, args=("end_overdue",), kwargs={"after_s": self._latest_s}, daemon=True
        )
        telling.start()
        telling.join(TELL_S)
        self._exit_process(EXIT_OVERDUE)
