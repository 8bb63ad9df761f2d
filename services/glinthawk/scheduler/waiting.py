"""The queue: sequences that were set back stand first, by age; then the others, as they came."""

from bisect import insort
from collections import deque
from collections.abc import Iterator

from glinthawk.core.ids import SequenceId
from glinthawk.scheduler.sequence import Phase, Sequence

_MIN_STALE = 64


class WaitingQueue:
    """Waiting sequences in order of service. Removal leaves a stale entry, dropped later."""

    def __init__(self) -> None:
        self._returned: list[Sequence] = []
        self._fresh: deque[Sequence] = deque()
        self._live: dict[SequenceId, Sequence] = {}

    def __len__(self) -> int:
        return len(self._live)

    def append(self, sequence: Sequence) -> None:
        """Queue a new sequence at the back."""
        self._enter(sequence)
        self._fresh.append(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Queue a sequence that ran before: ahead of new ones, older ones first."""
        self._enter(sequence)
        insort(self._returned, sequence, key=lambda other: -other.order)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands."""
        del self._live[sequence.id]
        if sequence in self._returned[-1:]:
            self._returned.pop()
        elif self._fresh and self._fresh[0] is sequence:
            self._fresh.popleft()
        stale = len(self._returned) + len(self._fresh) - len(self._live)
        if stale > _MIN_STALE and stale > len(self._live):
            self._returned = [item for item in self._returned if self._is_live(item)]
            self._fresh = deque(item for item in self._fresh if self._is_live(item))

    def __iter__(self) -> Iterator[Sequence]:
        """Yield waiting sequences, next to be served first. Do not change it meanwhile."""
        seen: set[SequenceId] = set()
        for items in (reversed(self._returned), iter(self._fresh)):
            for item in items:
                if self._is_live(item) and item.id not in seen:
                    seen.add(item.id)
                    yield item

    def _enter(self, sequence: Sequence) -> None:
        sequence.phase = Phase.QUEUED
        self._live[sequence.id] = sequence

    def _is_live(self, sequence: Sequence) -> bool:
        return self._live.get(sequence.id) is sequence
