"""Prefill: who is admitted where, and what goes into the next prefill step of a worker."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np

from glinthawk.scheduler.books import Books
from glinthawk.scheduler.sequence import Phase, Sequence
from glinthawk.scheduler.worker import WorkerState, expected_rest, peak_tokens

_LOOK_AHEAD = 8
"""Waiting sequences looked at before the queue counts as blocked."""

_SMALLEST_SHARE = 8
"""A prefill step is filled to 1/8 of the budget before work is spread over workers."""


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, start + count) of a sequence; is_last when they end its known tokens."""

    sequence: Sequence
    start: int
    count: int
    is_last: bool


def plan_prefill(books: Books) -> list[tuple[WorkerState, list[Chunk]]]:
    """Return the prefill steps that start now, packed; admits waiting sequences."""
    steps: list[tuple[WorkerState, list[Chunk]]] = []
    flying = sum(worker.prefills_flying for worker in books.workers.values())
    slots = books.config.prefills_in_flight - flying
    ready = [
        worker
        for worker in books.workers.values()
        if worker.prefills_flying < books.config.prefills_per_worker
    ]
    ready.sort(key=lambda worker: -worker.free)
    share = 1
    blocked: set[str] = set()
    packed: dict[str, list[Chunk]] = {}
    for worker in ready:
        chunks = _continued(books, worker) if len(packed) < slots else []
        if chunks:
            packed[worker.name] = chunks
    while slots > 0:
        open_workers = [
            worker
            for worker in ready
            if worker.name not in blocked
            and _rows(packed.get(worker.name, [])) < share
            and (worker.name in packed or len(packed) < slots)
        ]
        placed = _admit_next(books, open_workers, blocked)
        if placed is None:
            break
        worker, sequence = placed
        if share == 1:
            share = _share(books, len(ready), len(sequence.tokens))
        chunks = packed.setdefault(worker.name, [])
        room = books.config.prefill_tokens - _rows(chunks)
        chunks.append(_chunk(sequence, room))
    for name, chunks in packed.items():
        for chunk in chunks:
            chunk.sequence.prefilled = chunk.start + chunk.count
        steps.append((books.workers[name], chunks))
    return steps


def can_admit(books: Books, worker: WorkerState, sequence: Sequence) -> bool:
    """Tell whether `worker` has KV and rows for a waiting sequence now, and the peak to come."""
    if sequence.id in worker.refused or sequence.id in worker.unreleased:
        return False
    if not worker.accepting or worker.short or worker.num_running >= books.rows_per_worker:
        return False
    geometry = worker.geometry
    pages = geometry.num_pages(len(sequence.tokens))
    if not worker.sequences:
        return pages <= worker.free
    spare = worker.capacity * books.config.watermark
    fits = pages + spare <= worker.free
    if fits:
        group = sequence.group
        sequence.expected_end = group.prompt_tokens + books.expected_output(group)
        own, rest = worker.forecast()
        own = np.append(own, len(sequence.tokens))
        rest = np.append(rest, expected_rest(sequence, geometry.page_tokens))
        limit = (worker.capacity - spare - worker.shared_pages()) * geometry.page_tokens
        fits = peak_tokens(own, rest, geometry.page_tokens) <= limit
    if not fits:
        worker.refused.add(sequence.id)
    return fits


def could_hold(worker: WorkerState, sequence: Sequence) -> bool:
    """Tell whether `worker`, empty, could hold a sequence at its greatest length."""
    return worker.geometry.num_pages(sequence.limit) <= worker.capacity


def _rows(chunks: list[Chunk]) -> int:
    return sum(chunk.count for chunk in chunks)


def _chunk(sequence: Sequence, room: int) -> Chunk:
    start = sequence.prefilled
    count = min(room, len(sequence.tokens) - start)
    return Chunk(sequence, start, count, start + count == len(sequence.tokens))


def _share(books: Books, num_workers: int, admitted: int) -> int:
    """Return the rows after which a step counts as full: a small job is packed, a large one
    is spread evenly over the workers, a whole budget each."""
    budget = books.config.prefill_tokens
    waiting = admitted
    for sequence in books.queue:
        waiting += len(sequence.tokens)
        if waiting >= budget * num_workers:
            return budget
    return min(budget, max(budget // _SMALLEST_SHARE, -(-waiting // num_workers)))


def _continued(books: Books, worker: WorkerState) -> list[Chunk]:
    """Return chunks of prompts that were begun, oldest first, up to the budget."""
    chunks: list[Chunk] = []
    room = books.config.prefill_tokens
    for sequence in worker.prefilling:
        if room and not sequence.flying:
            chunks.append(_chunk(sequence, room))
            room -= chunks[-1].count
    return chunks


def _admit_next(
    books: Books, workers: list[WorkerState], blocked: set[str]
) -> tuple[WorkerState, Sequence] | None:
    """Admit the next waiting sequence that fits, to the worker with the most free KV.

    A sequence that fits nowhere keeps the emptiest worker that could hold it from taking
    younger ones, so that room gathers for it; others may pass it on other workers.
    """
    if not workers:
        return None
    for sequence in islice(books.queue, _LOOK_AHEAD):
        able = [w for w in books.workers.values() if w.accepting and could_hold(w, sequence)]
        able.sort(key=lambda worker: -worker.free)
        for worker in able:
            if (
                worker in workers
                and worker.name not in blocked
                and can_admit(books, worker, sequence)
            ):
                _admit(books, worker, sequence)
                return worker, sequence
        if able:
            blocked.add(able[0].name)
    return None


def _admit(books: Books, worker: WorkerState, sequence: Sequence) -> None:
    books.queue.remove(sequence)
    group = sequence.group
    sequence.phase = Phase.PREFILL
    sequence.expected_end = group.prompt_tokens + books.expected_output(group)
    worker.place(sequence, worker.geometry.num_pages(len(sequence.tokens)))
    worker.prefilling.append(sequence)
