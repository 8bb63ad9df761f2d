"""Which share of the last seconds each member computed, from the busy seconds in its heartbeats.

It says whether a tier is short of compute and bandwidth, where KV demand says whether it is
short of room. Times arrive as arguments.
"""

import threading
from collections import deque

WINDOW_S = 15.0


class BusyMeter:
    """Totals at points of time, by member. Any thread may call; none waits for more than sums."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._lock = threading.Lock()
        self._points: dict[str, deque[tuple[float, float]]] = {}

    def note(self, name: str, now_s: float, busy_s: float) -> None:
        """Take a member's total. One that is lower than the last is of a new process."""
        with self._lock:
            points = self._points.setdefault(name, deque())
            if points and busy_s < points[-1][1]:
                points.clear()
            points.append((now_s, busy_s))
            while len(points) > 2 and points[1][0] <= now_s - self._window_s:
                points.popleft()

    def forget(self, name: str) -> None:
        """Drop a member that is gone."""
        with self._lock:
            self._points.pop(name, None)

    def share(self, name: str) -> float | None:
        """Return the share of time in which a member computed, 0 to 1; None while unknown."""
        with self._lock:
            points = self._points.get(name)
            if not points or len(points) < 2:
                return None
            first, last = points[0], points[-1]
        elapsed_s = last[0] - first[0]
        return min(1.0, (last[1] - first[1]) / elapsed_s) if elapsed_s > 0 else None
