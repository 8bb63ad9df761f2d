"""Whose line goes next: jobs share tokens by their weights, and none waits for ever.

Pure: no clock, no I/O. This is start-time fair queueing (Goyal, Vin, Cheng, 1996) over flows
with virtual clocks: a flow's clock advances by tokens / weight, and the flow that is furthest
behind goes next. Deficit round robin shares as well, but must know what a line costs before it
goes; here the estimate is put right when the line's true length is known.
"""

import heapq
from dataclasses import dataclass

MAX_PRIORITY = 8

_MIN_HEAP = 64
_STALE_SHARE = 4
"""Entries of a heap, beside so many for each flow, at which those passed over are dropped."""


def weigh(priority: int) -> float:
    """Return the weight of a job: each step of priority doubles its share, from -8 to 8."""
    return float(2.0 ** max(-MAX_PRIORITY, min(MAX_PRIORITY, priority)))


@dataclass
class _Flow:
    weight: float
    virtual_time: float
    is_backlogged: bool = False


class FairShares:
    """The virtual clocks of the flows that are there.

    Who goes next is found in a heap, in logarithmic time. A clock that has moved leaves its old
    entry in there, which is passed over when it comes up.
    """

    def __init__(self) -> None:
        self._flows: dict[str, _Flow] = {}
        self._virtual_time = 0.0
        self._total_weight = 0.0
        self._heap: list[tuple[float, str]] = []

    def join(self, name: str, weight: float) -> None:
        """Add a flow, with nothing to send; it begins where the others stand: no debt, no
        credit."""
        self._flows[name] = _Flow(weight, self._virtual_time)
        self._total_weight = sum(flow.weight for flow in self._flows.values())

    def leave(self, name: str) -> None:
        """Forget a flow; harmless if it is not there."""
        self._flows.pop(name, None)
        self._total_weight = sum(flow.weight for flow in self._flows.values())

    def share(self, name: str) -> float:
        """Return which part of all tokens is due to a flow that is there, from 0 to 1."""
        return self._flows[name].weight / self._total_weight

    def set_backlogged(self, name: str, is_backlogged: bool) -> None:
        """Say whether a flow that is there has something to send.

        One that had nothing cannot save up what it did not use.
        """
        flow = self._flows[name]
        if is_backlogged and not flow.is_backlogged:
            flow.virtual_time = max(flow.virtual_time, self._virtual_time)
            self._push(name, flow)
        flow.is_backlogged = is_backlogged

    def choose(self) -> str | None:
        """Return which of the flows that have something to send goes next; None if none has."""
        while self._heap:
            virtual_time, name = self._heap[0]
            flow = self._flows.get(name)
            if flow is not None and flow.is_backlogged and flow.virtual_time == virtual_time:
                self._virtual_time = max(self._virtual_time, virtual_time)
                return name
            heapq.heappop(self._heap)
        return None

    def charge(self, name: str, num_tokens: int) -> None:
        """Count tokens against a flow; a negative number gives back what it did not need."""
        flow = self._flows.get(name)
        if flow is not None:
            flow.virtual_time += num_tokens / flow.weight
            if flow.is_backlogged:
                self._push(name, flow)

    def _push(self, name: str, flow: _Flow) -> None:
        heapq.heappush(self._heap, (flow.virtual_time, name))
        if len(self._heap) > _MIN_HEAP + _STALE_SHARE * len(self._flows):
            self._heap = [
                (each.virtual_time, other)
                for other, each in self._flows.items()
                if each.is_backlogged or each is flow
            ]
            heapq.heapify(self._heap)
