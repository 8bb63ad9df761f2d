"""The gateway's mirror of one attention worker: its pages, its lanes, what it must be told.

Pages are counted when they are promised, not when the worker takes them, so the mirror never
shows less than the worker holds: used = own pages of every sequence + each shared run once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glinthawk.core.geometry import KVGeometry
from glinthawk.core.ids import LaneId, SequenceId
from glinthawk.scheduler.lane import Lane
from glinthawk.scheduler.sequence import Group, Phase, Sequence, SharedPages


class WorkerState:
    """One worker. sequences: all that hold pages. releases: to be told with its next step.
    unreleased: those of `releases`, and those told in steps not yet back, with their pages.
    arriving: sequences whose KV is being copied here, with the pages promised to them.
    forks: groups with choices that wait to fork here. short: growth failed in this plan.
    refused: waiting sequences that did not fit since something was last freed.
    planned: the forecast that admission extends during one plan; None when it is out of date."""

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
        self.unreleased: dict[SequenceId, int] = {}
        self.arriving: dict[Sequence, int] = {}
        self.side_lanes: list[LaneId] = []
        self.prefills_flying = 0
        self.steps_flying = 0
        self.num_held = 0
        self.short = False
        self.refused: set[SequenceId] = set()
        self.planned: Forecast | None = None

    @property
    def free(self) -> int:
        """Pages that are promised to nobody."""
        return self.capacity - self.used

    @property
    def free_now(self) -> int:
        """Pages that are promised to nobody, and that the worker itself knows to be free: what
        comes to it beside its steps may come before it is told of a release."""
        return self.free - sum(self.unreleased.values())

    @property
    def is_vacant(self) -> bool:
        """Whether no sequence is here or on its way here."""
        return not self.sequences and not self.arriving

    @property
    def num_running(self) -> int:
        """Sequences with pages here, or promised pages, that still extend."""
        return len(self.sequences) + len(self.arriving) - self.num_held

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
        pages = sequence.pages
        if sequence.shared is not None:
            sequence.shared.holders -= 1
            if sequence.shared.holders == 0:
                pages += sequence.shared.pages
        self.used -= pages
        if sequence.known:
            self.tell_release(sequence, pages)
        sequence.worker = sequence.shared = sequence.fork_from = None
        sequence.pages = sequence.prefilled = 0
        sequence.known = sequence.settled = sequence.unregistered = False
        self.refused.clear()
        self.planned = None

    def expect(self, sequence: Sequence, pages: int) -> None:
        """Promise pages to a sequence whose KV is on its way here."""
        self.arriving[sequence] = pages
        self.used += pages
        self.planned = None

    def stop_expecting(self, sequence: Sequence) -> None:
        """Take the promise back. What has come, or comes yet, the worker drops when it is told
        of the release."""
        pages = self.arriving.pop(sequence)
        self.used -= pages
        self.tell_release(sequence, pages)
        self.refused.clear()
        self.planned = None

    def receive(self, sequence: Sequence) -> None:
        """Make an arrived sequence, which no worker has any more, one of this worker's."""
        sequence.worker = self
        sequence.pages = self.arriving.pop(sequence)
        self.sequences[sequence.id] = sequence
        sequence.known = sequence.settled = sequence.unregistered = True
        self.planned = None

    def tell_release(self, sequence: Sequence, pages: int) -> None:
        """Have the worker told that nobody needs what it holds of a sequence."""
        self.releases.append(sequence.id)
        self.unreleased[sequence.id] = pages

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

    def forecast(self) -> Forecast:
        """Return what every running sequence holds and is expected to need."""
        page = self.geometry.page_tokens
        rows = [np.stack([o.kv - o.shared, o.expected_rest(page), o.output]) for o in self.lanes]
        others = [own_forecast(sequence, page) for sequence in self.outside_lanes()]
        others += [forecast_of(sequence, page) for sequence in self.arriving]
        rows.append(np.array(others, dtype=np.int64).reshape(-1, 3).T)
        return Forecast(*np.concatenate(rows, axis=1))


def own_forecast(sequence: Sequence, page_tokens: int) -> tuple[int, int, int]:
    """Return a sequence's own KV tokens, the tokens still expected (at least a page, at most
    its limit), and the output expected in all."""
    shared = sequence.shared.pages * page_tokens if sequence.shared else 0
    length, rest, output = forecast_of(sequence, page_tokens)
    return length - shared, rest, output


def forecast_of(sequence: Sequence, page_tokens: int) -> tuple[int, int, int]:
    """Return what `own_forecast` does, of a sequence that shares no pages."""
    length = len(sequence.tokens)
    rest = min(max(sequence.expected_end - length, page_tokens), sequence.limit - length)
    return length, rest, sequence.expected_end - sequence.group.prompt_tokens


@dataclass(frozen=True)
class Forecast:
    """[sequences] each: own KV tokens, tokens still expected, output expected in all."""

    own: npt.NDArray[np.int64]
    rest: npt.NDArray[np.int64]
    output: npt.NDArray[np.int64]

    def peak_with(self, own: int, rest: int, page_tokens: int) -> float:
        """Return the greatest KV total ahead with one more sequence.

        Just before the j-th longest rest r_j is over, the j sequences that rest longest are
        there, each r_j longer than now, with half a page unused on average.
        """
        rests = np.append(self.rest, rest)
        order = np.argsort(-rests, kind="stable")
        totals = np.cumsum(np.append(self.own, own)[order])
        totals = totals + np.arange(1, len(rests) + 1) * (rests[order] + page_tokens / 2)
        return float(totals.max())

    def extended(self, row: tuple[int, int, int]) -> Forecast:
        """Return this with one more sequence."""
        return Forecast(
            np.append(self.own, row[0]),
            np.append(self.rest, row[1]),
            np.append(self.output, row[2]),
        )

    def young_tokens(self, share: float, page_tokens: int) -> float:
        """Return the KV, at the mean of their lives, of sequences that still have more than
        1 - `share` of their output before them."""
        young = self.rest > self.output * (1 - share)
        means = self.own + self.rest - self.output / 2 + page_tokens / 2
        return float(means[young].sum())
