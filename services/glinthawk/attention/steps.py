"""The steps that a worker has made room for, by lane, until nothing more can come of them.

A decode step is over when its lane's next one is composed: the stage had every answer by then.
A prefill step's K and V get no answer, so its last frames may still be on their way when the
lane goes on; it is kept until every layer has been stored. Of a decode lane whose sequences are
all released only the number of its last step is kept, for lanes come and go. Knows neither frames
nor peers.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from glinthawk.attention.interface import BatchPlan, Int32s, Rows
from glinthawk.attention.pages import PageAllocator
from glinthawk.core.ids import SequenceId
from glinthawk.core.step import StepKind, StepPlan


@dataclass
class LiveStep:
    """One composed step; everything that all its layers share is computed once.

    pages, slots: [rows] where the K and V of each row lie. starts: first position of each
    sequence. tables: of prefill, the pages of each sequence's earlier tokens. batch: of
    decode, the backend's plan. members: sequences whose rows may still be written. kept:
    [rows] which rows those are, None for all. stored: layers whose K and V have come.
    """

    kind: StepKind
    lane: int
    step: int
    sequences: tuple[SequenceId, ...]
    starts: tuple[int, ...]
    counts: npt.NDArray[np.uint32]
    pages: Int32s
    slots: Int32s
    tables: tuple[Int32s, ...] = ()
    batch: BatchPlan | None = None
    members: set[SequenceId] = field(default_factory=set)
    kept: npt.NDArray[np.bool_] | None = None
    stored: set[int] = field(default_factory=set)

    @property
    def num_rows(self) -> int:
        """Rows of the step."""
        return len(self.pages)

    @property
    def num_earlier_rows(self) -> int:
        """Tokens of its sequences before the step's own."""
        return sum(self.starts)

    def lost_sequence(self) -> SequenceId | None:
        """Return a sequence of the step whose pages are gone, None if all are here."""
        if len(self.members) == len(self.sequences):
            return None
        return next(sequence for sequence in self.sequences if sequence not in self.members)

    def forget(self, sequences: Collection[SequenceId]) -> None:
        """Write no more rows of `sequences`: their pages may be somebody else's now."""
        if self.members.isdisjoint(sequences):
            return
        self.members.difference_update(sequences)
        is_kept = np.array([sequence in self.members for sequence in self.sequences], np.bool_)
        self.kept = np.repeat(is_kept, self.counts)


def build_live_step(plan: StepPlan, allocator: PageAllocator) -> LiveStep:
    """Return a step as the worker keeps it, after `allocator` has made room for it."""
    sequences = tuple(SequenceId(item) for item in plan.sequences.tolist())
    starts = tuple(plan.starts.tolist())
    counts = plan.counts.tolist()
    tables: tuple[Int32s, ...] = ()
    if plan.kind is StepKind.DECODE:
        pages, slots = _locate_last(sequences, plan, allocator)
    else:
        places = [
            allocator.locate(sequence, start, start + count)
            for sequence, start, count in zip(sequences, starts, counts, strict=True)
        ]
        empty = np.empty(0, np.int32)
        pages = np.concatenate([empty, *(place[0] for place in places)])
        slots = np.concatenate([empty, *(place[1] for place in places)])
        if any(starts):
            tables = tuple(allocator.page_table(sequence).copy() for sequence in sequences)
    return LiveStep(
        kind=plan.kind,
        lane=plan.lane,
        step=plan.step,
        sequences=sequences,
        starts=starts,
        counts=plan.counts,
        pages=pages,
        slots=slots,
        tables=tables,
        members=set(sequences),
    )


ENDED_LANES = 4096
"""Lanes of which only the last step's number is remembered, so that a late replay is known."""


class StepBook:
    """Live steps by lane and step."""

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._latest: dict[int, LiveStep] = {}
        self._trailing: dict[tuple[int, int], LiveStep] = {}
        self._ended: dict[int, int] = {}

    def find(self, lane: int, step: int) -> LiveStep | None:
        """Return a live step."""
        latest = self._latest.get(lane)
        if latest is not None and latest.step == step:
            return latest
        return self._trailing.get((lane, step))

    def is_composed(self, lane: int, step: int) -> bool:
        """Return whether the lane has seen this step, or a later one, already."""
        latest = self._latest.get(lane)
        last = self._ended.get(lane, -1) if latest is None else latest.step
        return last >= step

    def add(self, step: LiveStep) -> None:
        """Make `step` its lane's latest."""
        former = self._latest.get(step.lane)
        if former is not None and not self._is_settled(former):
            self._trailing[former.lane, former.step] = former
        self._latest[step.lane] = step
        self._ended.pop(step.lane, None)

    def mark_stored(self, step: LiveStep, layer: int) -> bool:
        """Note that a layer's K and V are written; return whether that was the last one."""
        was_settled = self._is_settled(step)
        step.stored.add(layer)
        if was_settled or not self._is_settled(step):
            return False
        self._trailing.pop((step.lane, step.step), None)
        return True

    def forget(self, sequences: Collection[SequenceId]) -> list[int]:
        """Let no live step write rows of `sequences`; return the lanes that nothing is left of."""
        for step in (*self._latest.values(), *self._trailing.values()):
            step.forget(sequences)
        gone = [key for key, step in self._trailing.items() if self._is_settled(step)]
        for key in gone:
            del self._trailing[key]
        ended = [
            lane
            for lane, step in self._latest.items()
            if step.kind is StepKind.DECODE and not step.members
        ]
        for lane in ended:
            self._ended[lane] = self._latest.pop(lane).step
        for lane in list(self._ended)[: max(0, len(self._ended) - ENDED_LANES)]:
            del self._ended[lane]
        return ended

    def awaits_rows_of(self, sequences: Iterable[SequenceId]) -> bool:
        """Return whether K and V of one of `sequences` are still on their way."""
        wanted = set(sequences)
        return any(
            not self._is_settled(step) and not step.members.isdisjoint(wanted)
            for step in (*self._latest.values(), *self._trailing.values())
        )

    def _is_settled(self, step: LiveStep) -> bool:
        if step.kind is not StepKind.PREFILL or not step.members:
            return True
        return len(step.stored) == self._num_layers


class OutputRing:
    """Memory for one lane's OUTPUT rows, used again when the peer has surely received them.

    A stage sends the rows of a later layer only when it has the output of the one before, so
    a frame that goes on frees the buffer before. A replay frees nothing and gets fresh memory.
    """

    def __init__(self) -> None:
        self._buffers = [np.empty(0, np.uint8), np.empty(0, np.uint8)]
        self._turn = 0
        self._last = (-1, -1)

    def take(
        self, step: int, layer: int, shape: tuple[int, int], wire: np.dtype[np.generic]
    ) -> Rows:
        """Return memory of `shape` for the output of a layer of a step."""
        num_bytes = shape[0] * shape[1] * wire.itemsize
        if (step, layer) <= self._last:
            return np.empty(shape, wire)
        self._last = (step, layer)
        self._turn = 1 - self._turn
        if len(self._buffers[self._turn]) < num_bytes:
            self._buffers[self._turn] = np.empty(num_bytes, np.uint8)
        return self._buffers[self._turn][:num_bytes].view(wire).reshape(shape)


def _locate_last(
    sequences: tuple[SequenceId, ...], plan: StepPlan, allocator: PageAllocator
) -> tuple[Int32s, Int32s]:
    """Return page and slot of the one row of each sequence."""
    starts = plan.starts.astype(np.int32)
    indices = (starts // np.int32(allocator.page_tokens)).tolist()
    pages = [
        allocator.page_table(sequence)[index]
        for sequence, index in zip(sequences, indices, strict=True)
    ]
    return np.array(pages, np.int32), starts % np.int32(allocator.page_tokens)
