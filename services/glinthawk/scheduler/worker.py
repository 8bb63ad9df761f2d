"""The gateway's mirror of one attention worker: its pages, its lanes, what it must be told.

Pages are counted when they are promised, not when the worker takes them, so the mirror never
shows less than the worker holds: used = own pages of every sequence + each shared run once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from glinthawk.core.geometry import KVGeometry
from glinthawk.core.ids import LaneId, SequenceId
from glinthawk.scheduler.lane import Lane
from glinthawk.scheduler.sequence import Group, Phase, Sequence, SharedPages


class WorkerState:
    """One worker. sequences: all that hold pages. releases: to be told with its next step.
    unreleased: those of `releases`, and those told in steps not yet back.
    forks: groups with choices that wait to fork here. short: growth failed in this plan.
    refused: waiting sequences that did not fit since something was last freed."""

    def __init__(self, name: str, kv_bytes: int, geometry: KVGeometry) -> None:
        self.name = name
        self.geometry = geometry
        self.capacity = geometry.pages_in(kv_bytes)
        self.accepting = True
        self.used = 0
        self.sequences: dict[SequenceId, Sequence] = {}
        self.lanes: list[Lane] = []
        self.prefilling: list[Sequence] = []
        self.forks: deque[Group] = deque()
        self.releases: list[SequenceId] = []
        self.unreleased: set[SequenceId] = set()
        self.side_lanes: list[LaneId] = []
        self.prefills_flying = 0
        self.steps_flying = 0
        self.num_held = 0
        self.short = False
        self.refused: set[SequenceId] = set()

    @property
    def free(self) -> int:
        """Pages that are promised to nobody."""
        return self.capacity - self.used

    @property
    def num_running(self) -> int:
        """Sequences with pages here that still extend."""
        return len(self.sequences) - self.num_held

    def place(self, sequence: Sequence, pages: int) -> None:
        """Give a sequence its first pages here."""
        sequence.worker = self
        self.sequences[sequence.id] = sequence
        self.take(sequence, pages)

    def take(self, sequence: Sequence, pages: int) -> None:
        """Promise more pages to a sequence."""
        sequence.pages += pages
        self.used += pages

    def share(self, holder: Sequence, child: Sequence, pages: int) -> None:
        """Let `child` hold the first `pages` pages of `holder` too."""
        if pages == 0:
            return
        if holder.shared is None:
            holder.shared = SharedPages(pages)
            holder.pages -= pages
            if holder.phase is Phase.LANE and holder.lane is not None:
                holder.lane.shared[holder.row] = pages * self.geometry.page_tokens
        holder.shared.holders += 1
        child.shared = holder.shared

    def release(self, sequence: Sequence) -> None:
        """Take all pages from a sequence, and tell the worker if it knows of it."""
        del self.sequences[sequence.id]
        self.used -= sequence.pages
        if sequence.shared is not None:
            sequence.shared.holders -= 1
            if sequence.shared.holders == 0:
                self.used -= sequence.shared.pages
        if sequence.known:
            self.releases.append(sequence.id)
            self.unreleased.add(sequence.id)
        sequence.worker = sequence.shared = sequence.fork_from = None
        sequence.pages = sequence.prefilled = 0
        sequence.known = sequence.settled = False
        self.refused.clear()

    def shared_pages(self) -> int:
        """Pages in shared runs, each run counted once."""
        runs = {id(s.shared): s.shared.pages for s in self.sequences.values() if s.shared}
        return sum(runs.values())

    def lane_tokens(self) -> int:
        """KV tokens of all lanes."""
        return sum(lane.num_tokens for lane in self.lanes)

    def outside_lanes(self) -> Iterator[Sequence]:
        """Yield running sequences that are no row of a lane yet."""
        yield from self.prefilling
        for lane in self.lanes:
            yield from lane.joining

    def forecast(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return for every running sequence its own KV tokens and the tokens expected to come."""
        page = self.geometry.page_tokens
        own = [lane.kv - lane.shared for lane in self.lanes]
        ends = [
            np.minimum(np.maximum(lane.expected_end - lane.kv, page), lane.limit - lane.kv)
            for lane in self.lanes
        ]
        others = list(self.outside_lanes())
        tokens = [len(s.tokens) - (s.shared.pages * page if s.shared else 0) for s in others]
        rests = [expected_rest(s, page) for s in others]
        own.append(np.array(tokens, dtype=np.int64))
        ends.append(np.array(rests, dtype=np.int64))
        return np.concatenate(own), np.concatenate(ends)


def expected_rest(sequence: Sequence, page_tokens: int) -> int:
    """Return the tokens still expected of a sequence: at least a page, at most its limit."""
    length = len(sequence.tokens)
    return min(max(sequence.expected_end - length, page_tokens), sequence.limit - length)


def peak_tokens(own: npt.NDArray[np.int64], rest: npt.NDArray[np.int64], page_tokens: int) -> float:
    """Return the greatest KV total ahead if sequence i holds own[i] and ends after rest[i].

    Just before the j-th longest rest r_j is over, the j sequences that rest longest are there,
    each r_j longer than now, with half a page unused on average. Admission by this peak, not by
    today's use, is what staggers starts.
    """
    order = np.argsort(-rest, kind="stable")
    counts = np.arange(1, len(own) + 1)
    totals = np.cumsum(own[order]) + counts * (rest[order] + page_tokens / 2)
    return float(totals.max()) if len(own) else 0.0
