"""Decode: who is in which lane, room for one more token each, and the steps of idle lanes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glinthawk.scheduler.books import Books
from glinthawk.scheduler.lane import Lane
from glinthawk.scheduler.sequence import Group, Phase, Sequence
from glinthawk.scheduler.worker import WorkerState, own_forecast

_UNEVEN = 0.3
"""Lanes that differ by more than this share of the mean are evened out."""


@dataclass(frozen=True)
class DecodeRows:
    """Rows of an idle lane that step now; None for all of them."""

    lane: Lane
    rows: npt.NDArray[np.int64] | None


def plan_decode(books: Books, worker: WorkerState) -> list[DecodeRows]:
    """Settle lanes, grow their sequences by a token, admit forks; return what can step."""
    worker.short = False
    for lane in [lane for lane in worker.lanes if not lane.flying]:
        settle_lane(books, lane)
    _enter_idle_lanes(worker)
    stalled = _grow(books, worker)
    _admit_forks(books, worker)
    _enter_idle_lanes(worker)
    worker.lanes = [lane for lane in worker.lanes if lane.size]
    chosen: list[DecodeRows] = []
    for lane in worker.lanes:
        if lane.flying:
            continue
        waiting = [s.row for s in stalled if s.lane is lane and s.phase is Phase.LANE]
        if len(waiting) < lane.num_rows:
            rows = None
            if waiting:
                rows = np.delete(np.arange(lane.num_rows), waiting)
            chosen.append(DecodeRows(lane, rows))
    return chosen


def assign_lane(books: Books, worker: WorkerState, sequence: Sequence) -> None:
    """Let a sequence join the lightest lane, a new one, or one of its own."""
    others = [lane for lane in worker.lanes if not lane.lone]
    tokens = len(sequence.tokens)
    usable = _usable_lanes(books, worker)
    mean = (sum(lane.num_tokens for lane in worker.lanes) + tokens) / usable
    if tokens >= books.config.lone_tokens and tokens > mean / 2 and worker.lanes:
        _open_lane(books, worker, lone=True).join(sequence)
        return
    roomy = [lane for lane in others if lane.size < books.config.max_lane_rows]
    if len(others) < usable or not roomy:
        _open_lane(books, worker).join(sequence)
    else:
        min(roomy, key=lambda lane: lane.num_tokens).join(sequence)


def settle_lane(books: Books, lane: Lane) -> None:
    """Move sequences out of an idle lane that is too long, too heavy or not worth having."""
    worker = lane.worker
    if not lane.members:
        return
    usable = _usable_lanes(books, worker)
    total = worker.lane_tokens()
    mean = total / usable
    others = [o for o in worker.lanes if o is not lane and not o.lone]
    if lane.lone:
        if others and lane.num_tokens < mean / 4:
            _move(lane, list(lane.members), min(others, key=lambda o: o.num_tokens))
        return
    longest = int(lane.kv.argmax())
    tokens = int(lane.kv[longest])
    if lane.size > 1 and tokens >= books.config.lone_tokens and tokens > mean / 2:
        _move(lane, [lane.members[longest]], _open_lane(books, worker, lone=True))
        return
    if not others:
        if usable > 1 and lane.num_rows >= 2 * books.config.min_lane_rows:
            _even_out(lane, _open_lane(books, worker), books.config.max_lane_rows)
        return
    lightest = min(others, key=lambda o: o.num_tokens)
    small = worker.num_running < books.config.min_lane_rows
    if small and lane.size + lightest.size <= books.config.max_lane_rows:
        _move(lane, list(lane.members), lightest)
    elif lane.num_tokens - lightest.num_tokens > _UNEVEN * mean:
        _even_out(lane, lightest, books.config.max_lane_rows)


def _enter_idle_lanes(worker: WorkerState) -> None:
    for lane in worker.lanes:
        if lane.joining and not lane.flying:
            lane.enter_joining(worker.geometry.page_tokens)


def _usable_lanes(books: Books, worker: WorkerState) -> int:
    return max(1, min(books.lanes_per_worker, worker.num_running // books.config.min_lane_rows))


def _open_lane(books: Books, worker: WorkerState, *, lone: bool = False) -> Lane:
    lane = Lane(books.next_lane(), worker, lone=lone)
    worker.lanes.append(lane)
    return lane


def _move(source: Lane, sequences: list[Sequence], target: Lane) -> None:
    for sequence in sequences:
        source.remove(sequence)
        target.join(sequence)


def _even_out(source: Lane, target: Lane, max_rows: int) -> None:
    """Move sequences until about half of the difference in tokens is gone."""
    surplus = (source.num_tokens - target.num_tokens) // 2
    moving: list[Sequence] = []
    for sequence, tokens in zip(source.members, source.kv.tolist(), strict=True):
        if tokens <= surplus and target.size + len(moving) < max_rows:
            moving.append(sequence)
            surplus -= tokens
    _move(source, moving, target)


def _grow(books: Books, worker: WorkerState) -> list[Sequence]:
    """Promise a page to every row of an idle lane that needs one; return rows without.

    When pages are short the oldest are served first, at the cost of the youngest idle ones.
    A row for which nobody younger is idle stands still for a step. The oldest sequence of a
    worker never stands still for good: all others are younger, and idle sooner or later; and
    alone it fits, because it was placed where its greatest length fits.
    """
    needy: list[Sequence] = []
    for lane in worker.lanes:
        if not lane.flying and lane.num_rows:
            needy += [lane.members[row] for row in np.flatnonzero(lane.kv >= lane.room).tolist()]
    if len(needy) <= worker.free:
        for sequence in needy:
            _add_page(worker, sequence)
        return []
    worker.short = True
    needy.sort(key=lambda sequence: sequence.order)
    stalled: list[Sequence] = []
    for sequence in needy:
        if sequence.phase is not Phase.LANE or sequence.worker is not worker:
            continue
        while worker.free < 1:
            if not _free_younger(books, worker, sequence):
                break
        if worker.free >= 1:
            _add_page(worker, sequence)
        else:
            stalled.append(sequence)
    return stalled


def _add_page(worker: WorkerState, sequence: Sequence) -> None:
    worker.take(sequence, 1)
    assert sequence.lane is not None
    sequence.lane.room[sequence.row] += worker.geometry.page_tokens


def _free_younger(books: Books, worker: WorkerState, sequence: Sequence) -> bool:
    """Release an ended holder, or else set back the youngest idle sequence that is younger."""
    held = [s for s in worker.sequences.values() if s.phase is Phase.HELD]
    if held:
        books.drop_held(held[0])
        return True
    idle = (s for s in worker.sequences.values() if not s.busy and s.phase is not Phase.MOVING)
    youngest = max(idle, key=lambda other: other.order)
    if youngest.order <= sequence.order:
        return False
    books.set_back(youngest)
    return True


def _admit_forks(books: Books, worker: WorkerState) -> None:
    """Let waiting choices take over the pages of their holder, while there is room."""
    for group in list(worker.forks):
        books.drop_idle_holder(group)
    for group in list(worker.forks):
        while group.pending and group.holder is not None and not worker.short:
            child = group.pending[0]
            if not _fork_fits(books, worker, child, group):
                break
            group.pending.popleft()
            _reserve_fork(books, worker, child, group)
        holder = group.holder
        idle = worker.num_running == 0 and worker.steps_flying == 0
        if holder is not None and holder.phase is Phase.HELD and group.pending and idle:
            books.drop_held(holder)


def _fork_pages(worker: WorkerState, group: Group) -> tuple[int, int]:
    """Return the pages shared by a fork, and those it needs for itself."""
    shared = group.fork_tokens // worker.geometry.page_tokens
    return shared, worker.geometry.num_pages(group.prompt_tokens) - shared


def _fork_fits(books: Books, worker: WorkerState, child: Sequence, group: Group) -> bool:
    if worker.num_running >= books.rows_per_worker or child.id in worker.unreleased:
        return False
    shared, own_pages = _fork_pages(worker, group)
    page = worker.geometry.page_tokens
    if worker.num_running == 0:
        return own_pages <= worker.free
    spare = worker.capacity * books.config.watermark
    if own_pages + spare > worker.free:
        return False
    child.expected_end = group.prompt_tokens + books.expected_output(group)
    tokens, rest, _ = own_forecast(child, page)
    limit = (worker.capacity - spare - worker.shared_pages()) * page
    return worker.forecast().peak_with(tokens - shared * page, rest, page) <= limit


def _reserve_fork(books: Books, worker: WorkerState, child: Sequence, group: Group) -> None:
    holder = group.holder
    assert holder is not None
    shared, own_pages = _fork_pages(worker, group)
    worker.place(child, own_pages)
    worker.share(holder, child, shared)
    child.fork_from = holder
    child.expected_end = group.prompt_tokens + books.expected_output(group)
    group.unsent_forks.add(child.id)
    assign_lane(books, worker, child)
