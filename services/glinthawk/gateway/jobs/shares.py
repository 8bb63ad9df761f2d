"""Whose line goes next: jobs share tokens by their weights, and none waits for ever.

Pure: no clock, no I/O. This is start-time fair queueing (Goyal, Vin, Cheng, 1996) over flows
with virtual clocks: a flow's clock advances by tokens / weight, and the flow that is furthest
behind goes next. Deficit round robin shares as well, but must know what a line costs before it
goes; here the estimate is put right when the line's true length is known.
"""

from collections.abc import Collection
from dataclasses import dataclass

MAX_PRIORITY = 8


def weigh(priority: int) -> float:
    """Return the weight of a job: each step of priority doubles its share, from -8 to 8."""
    return float(2.0 ** max(-MAX_PRIORITY, min(MAX_PRIORITY, priority)))


@dataclass
class _Flow:
    weight: float
    virtual_time: float
    is_backlogged: bool = False


class FairShares:
    """The virtual clocks of the flows that are there."""

    def __init__(self) -> None:
        self._flows: dict[str, _Flow] = {}
        self._virtual_time = 0.0

    def join(self, name: str, weight: float) -> None:
        """Add a flow; it begins where the others stand: no debt, no credit."""
        self._flows[name] = _Flow(weight, self._virtual_time)

    def leave(self, name: str) -> None:
        """Forget a flow; harmless if it is not there."""
        self._flows.pop(name, None)

    def choose(self, backlogged: Collection[str]) -> str | None:
        """Return which of the flows that have something to send goes next; None if none has.

        A flow that had nothing to send cannot save up what it did not use.
        """
        for name, flow in self._flows.items():
            is_backlogged = name in backlogged
            if is_backlogged and not flow.is_backlogged:
                flow.virtual_time = max(flow.virtual_time, self._virtual_time)
            flow.is_backlogged = is_backlogged
        if not backlogged:
            return None
        chosen = min(backlogged, key=lambda name: (self._flows[name].virtual_time, name))
        self._virtual_time = max(self._virtual_time, self._flows[chosen].virtual_time)
        return chosen

    def charge(self, name: str, num_tokens: int) -> None:
        """Count tokens against a flow; a negative number gives back what it did not need."""
        flow = self._flows.get(name)
        if flow is not None:
            flow.virtual_time += num_tokens / flow.weight
