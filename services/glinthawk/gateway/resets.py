"""When a worker that is to begin anew may do so: at once, and later each time it fails again. Pure.

A worker that is there but cannot be reached by a stage would otherwise take sequences and lose
them without end.
"""

from dataclasses import dataclass

MOST_WAIT_S = 30.0
CALM_S = 60.0
"""After so long without a reset, a worker is trusted as at first."""


@dataclass
class _Record:
    num_resets: int = 0
    last: float | None = None
    due: float | None = None


class Resets:
    """Resets that were asked for, by worker."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def request(self, name: str, now: float) -> None:
        """Ask for a reset; one that waits already stays as it is."""
        record = self._records.setdefault(name, _Record())
        if record.due is not None:
            return
        if record.last is not None and now - record.last > CALM_S:
            record.num_resets = 0
        wait_s = 0.0 if record.num_resets == 0 else 2.0 ** (record.num_resets - 1)
        record.due = now + min(MOST_WAIT_S, wait_s)
        record.num_resets += 1
        record.last = record.due

    def is_due(self, now: float) -> bool:
        """Tell whether a worker's time has come."""
        return any(item.due is not None and item.due <= now for item in self._records.values())

    def take_due(self, now: float) -> list[str]:
        """Return, once, the workers whose time has come; forget those long calm."""
        taken: list[str] = []
        for name, item in list(self._records.items()):
            if item.due is not None and item.due <= now:
                item.due = None
                taken.append(name)
            elif item.due is None and item.last is not None and now - item.last > CALM_S:
                del self._records[name]
        return taken
