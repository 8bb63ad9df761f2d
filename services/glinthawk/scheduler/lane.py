"""A decode lane: its sequences as parallel arrays, so that a step is composed by slicing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from glinthawk.core.ids import LaneId
from glinthawk.scheduler.sequence import Phase, Sequence

if TYPE_CHECKING:
    from glinthawk.scheduler.worker import WorkerState

_FIRST_ROWS = 16


class Lane:
    """Sequences of one worker that travel together. Row i of every array is members[i].

    kv: tokens in the cache, which is the position of the next row. room: tokens that the pages
    taken can hold. next_token: input of the next step. shared: tokens in shared pages.
    expected_end, limit, output: expected and greatest length, expected output.
    joining: sequences that enter when the lane is next idle. doomed: members to end when it
    is. Members change only while it is idle.
    """

    def __init__(self, lane: LaneId, worker: WorkerState, *, lone: bool = False) -> None:
        self.id = lane
        self.worker = worker
        self.lone = lone
        self.flying = False
        self.members: list[Sequence] = []
        self.joining: list[Sequence] = []
        self.doomed: list[Sequence] = []
        self._arrays = np.zeros((7, _FIRST_ROWS), dtype=np.int64)

    @property
    def num_rows(self) -> int:
        """Rows now, without those that are joining."""
        return len(self.members)

    @property
    def size(self) -> int:
        """Rows, with those that are joining."""
        return len(self.members) + len(self.joining)

    @property
    def kv(self) -> npt.NDArray[np.int64]:
        """[rows] tokens in the cache."""
        return self._arrays[0, : len(self.members)]

    @property
    def room(self) -> npt.NDArray[np.int64]:
        """[rows] tokens that the pages taken can hold."""
        return self._arrays[1, : len(self.members)]

    @property
    def next_token(self) -> npt.NDArray[np.int64]:
        """[rows] inputs of the next step."""
        return self._arrays[2, : len(self.members)]

    @property
    def expected_end(self) -> npt.NDArray[np.int64]:
        """[rows] tokens expected at the end."""
        return self._arrays[3, : len(self.members)]

    @property
    def limit(self) -> npt.NDArray[np.int64]:
        """[rows] tokens at the end, at most."""
        return self._arrays[4, : len(self.members)]

    @property
    def shared(self) -> npt.NDArray[np.int64]:
        """[rows] tokens in pages shared with other choices."""
        return self._arrays[5, : len(self.members)]

    @property
    def output(self) -> npt.NDArray[np.int64]:
        """[rows] tokens expected to be generated in all."""
        return self._arrays[6, : len(self.members)]

    def expected_rest(self, page_tokens: int) -> npt.NDArray[np.int64]:
        """Return [rows] tokens still expected: at least a page, at most up to the limit."""
        rest: npt.NDArray[np.int64] = np.minimum(
            np.maximum(self.expected_end - self.kv, page_tokens), self.limit - self.kv
        )
        return rest

    @property
    def num_tokens(self) -> int:
        """KV tokens of all its sequences, with those that are joining."""
        return int(self.kv.sum()) + sum(len(sequence.tokens) for sequence in self.joining)

    def enter_joining(self, page_tokens: int) -> None:
        """Make rows of the sequences that wait to join; the lane must be idle."""
        first = len(self.members)
        total = first + len(self.joining)
        if total > self._arrays.shape[1]:
            grown = np.zeros((7, max(total, 2 * self._arrays.shape[1])), dtype=np.int64)
            grown[:, :first] = self._arrays[:, :first]
            self._arrays = grown
        for row, sequence in enumerate(self.joining, first):
            sequence.phase = Phase.LANE
            sequence.lane = self
            sequence.row = row
            self._arrays[:, row] = (
                len(sequence.tokens) - 1,
                sequence.all_pages * page_tokens,
                sequence.tokens[-1],
                sequence.expected_end,
                sequence.limit,
                sequence.shared.pages * page_tokens if sequence.shared else 0,
                sequence.expected_end - sequence.group.prompt_tokens,
            )
        self.members += self.joining
        self.joining = []

    def remove(self, sequence: Sequence) -> None:
        """Take out a member, or one that is joining; the last row takes the free place."""
        if sequence.phase is Phase.JOINING:
            self.joining.remove(sequence)
        else:
            last = self.members.pop()
            if last is not sequence:
                self._arrays[:, sequence.row] = self._arrays[:, last.row]
                self.members[sequence.row] = last
                last.row = sequence.row
        sequence.lane = None

    def join(self, sequence: Sequence) -> None:
        """Let a sequence enter when the lane is next idle."""
        sequence.phase = Phase.JOINING
        sequence.lane = self
        self.joining.append(sequence)
