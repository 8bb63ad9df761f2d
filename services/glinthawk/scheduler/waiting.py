"""The queue: sequences that were set back stand first, by age; then flows share what is served.

A flow is a job, or all callers who wait for an answer. Flows that have something waiting get
tokens in proportion to their weights: start-time fair queueing (Goyal, Vin and Cheng, 1996).
Each flow has a tag, the virtual time at which its first sequence is due; serving a sequence of
c tokens moves it on by c / weight, and the lowest tag is next.

    flow A, weight 1   a1 a2 a3      tag 40         order of service:
    flow B, weight 2   b1 b2         tag 35         b1, a1, b2, a2, ... by tag

A flow that was idle begins at the present virtual time: it is served soon, and has saved up
nothing. Tokens are guessed when a sequence is served, and set right when it ends.
"""

import heapq
from bisect import insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from glinthawk.core.ids import SequenceId
from glinthawk.scheduler.data import Flow
from glinthawk.scheduler.sequence import Phase, Sequence

_MIN_STALE = 64

_MAX_IDLE_FLOWS = 1024
"""Idle flows that are remembered; the longest idle is forgotten."""


@dataclass(eq=False)
class _Line:
    """The sequences of one flow, as they came."""

    flow: Flow
    tag: float
    items: deque[Sequence] = field(default_factory=deque)
    num_live: int = 0


class WaitingQueue:
    """Waiting sequences in order of service. Removal leaves a stale entry, dropped later."""

    def __init__(self) -> None:
        self._returned: list[Sequence] = []
        self._lines: dict[str, _Line] = {}
        self._live: dict[SequenceId, Sequence] = {}
        self._fresh: set[SequenceId] = set()
        self._virtual = 0.0

    def __len__(self) -> int:
        return len(self._live)

    def append(self, sequence: Sequence) -> None:
        """Queue a new sequence at the back of its flow."""
        line = self._line(sequence.group.flow)
        if not line.num_live:
            line.tag = max(line.tag, self._virtual)
            line.items.clear()
        line.items.append(sequence)
        line.num_live += 1
        self._fresh.add(sequence.id)
        self._enter(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Queue a sequence that ran before: ahead of new ones, older ones first."""
        self._enter(sequence)
        insort(self._returned, sequence, key=lambda other: -other.order)

    def serve(self, sequence: Sequence, tokens: int) -> None:
        """Take a sequence out that starts now, and charge its flow with the tokens expected of
        it. One that ran before was charged then."""
        if sequence.id in self._fresh:
            line = self._lines[sequence.group.flow.name]
            self._virtual = max(self._virtual, line.tag)
            sequence.charged = tokens
            self.charge(sequence.group.flow, tokens)
        self.remove(sequence)

    def charge(self, flow: Flow, tokens: int) -> None:
        """Count tokens that a flow got, or (below 0) that were charged and not used."""
        line = self._line(flow)
        line.tag += tokens / flow.weight

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands."""
        del self._live[sequence.id]
        if sequence.id in self._fresh:
            self._fresh.remove(sequence.id)
            self._drop_stale(self._lines[sequence.group.flow.name])
        elif sequence in self._returned[-1:]:
            self._returned.pop()
        elif len(self._returned) > _MIN_STALE + 2 * len(self._live):
            self._returned = [item for item in self._returned if self._is_live(item)]

    def __iter__(self) -> Iterator[Sequence]:
        """Yield waiting sequences, next to be served first. Do not change it meanwhile."""
        seen: set[SequenceId] = set()
        for item in reversed(self._returned):
            if self._is_live(item) and item.id not in self._fresh and item.id not in seen:
                seen.add(item.id)
                yield item
        yield from self._iterate_fresh()

    def _iterate_fresh(self) -> Iterator[Sequence]:
        heads: list[tuple[float, int, Sequence, Iterator[Sequence]]] = []

        def offer(tag: float, rest: Iterator[Sequence]) -> None:
            item = next(rest, None)
            if item is not None:
                heapq.heappush(heads, (tag, item.order, item, rest))

        for line in self._lines.values():
            if line.num_live:
                offer(line.tag, (item for item in line.items if item.id in self._fresh))
        while heads:
            tag, _, item, rest = heapq.heappop(heads)
            yield item
            offer(tag + len(item.tokens) / item.group.flow.weight, rest)

    def _line(self, flow: Flow) -> _Line:
        line = self._lines.pop(flow.name, None)
        if line is None:
            line = _Line(flow, self._virtual)
            if len(self._lines) >= _MAX_IDLE_FLOWS:
                idle = next((name for name, it in self._lines.items() if not it.num_live), None)
                if idle is not None:
                    del self._lines[idle]
        self._lines[flow.name] = line  # the one used last stands last
        return line

    def _drop_stale(self, line: _Line) -> None:
        line.num_live -= 1
        while line.items and line.items[0].id not in self._fresh:
            line.items.popleft()
        if len(line.items) > _MIN_STALE + 2 * line.num_live:
            line.items = deque(item for item in line.items if item.id in self._fresh)

    def _enter(self, sequence: Sequence) -> None:
        sequence.phase = Phase.QUEUED
        self._live[sequence.id] = sequence

    def _is_live(self, sequence: Sequence) -> bool:
        return self._live.get(sequence.id) is sequence
