"""Prefill: who is admitted where, and what goes into the next prefill step of a worker."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from glinthawk.scheduler.books import Books
from glinthawk.scheduler.sequence import Phase, Sequence
from glinthawk.scheduler.worker import WorkerState, own_forecast

_LOOK_AHEAD = 8
"""Waiting sequences looked at before the queue counts as blocked."""

_AGES = (1 / 2, 1 / 4)
_BURST = 1 / 16
"""Shares of a sequence's output over which starts are spread; the last may overshoot by one."""

_SMALLEST_SHARE = 8
"""A prefill step is filled to 1/8 of the budget before work is spread over workers, and a prompt
is not cut to fill the last 1/8 of it: its rest would have to ask for the K and V of its start."""


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, start + count) of a sequence; is_last when they end its known tokens."""

    sequence: Sequence
    start: int
    count: int
    is_last: bool


def plan_prefill(books: Books) -> list[tuple[WorkerState, list[Chunk]]]:
    """Return the prefill steps that start now, packed; admits waiting sequences."""
    for worker in books.workers.values():
        worker.planned = None
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
    full: set[str] = set()
    packed: dict[str, list[Chunk]] = {}
    for worker in ready:
        chunks = _continued(books, worker) if len(packed) < slots else []
        if chunks:
            packed[worker.name] = chunks
    if packed:
        share = _share(books, len(ready), sum(map(_rows, packed.values())))
    while slots > 0:
        open_workers = [
            worker
            for worker in ready
            if worker.name not in blocked
            and worker.name not in full
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
        chunk = _chunk(sequence, room)
        if _is_worth(books, chunk):
            chunks.append(chunk)
        else:
            full.add(worker.name)  # the next step begins with it
    for chunk in (chunk for chunks in packed.values() for chunk in chunks):
        chunk.sequence.prefilled = chunk.start + chunk.count
    return [(books.workers[name], chunks) for name, chunks in packed.items()]


def can_admit(books: Books, worker: WorkerState, sequence: Sequence) -> bool:
    """Tell whether `worker` has KV and rows for a waiting sequence now, and the peak to come."""
    if sequence.id in worker.refused or sequence.id in worker.unreleased:
        return False
    if not worker.accepting or worker.short or worker.num_running >= books.rows_per_worker:
        return False
    pages = worker.geometry.num_pages(len(sequence.tokens))
    if worker.is_vacant:
        return pages <= worker.free
    spare = worker.capacity * books.config.watermark
    if pages + spare > worker.free:
        worker.refused.add(sequence.id)
        return False
    group = sequence.group
    sequence.expected_end = group.prompt_tokens + books.expected_output(group)
    limit = (worker.capacity - spare - worker.shared_pages()) * worker.geometry.page_tokens
    return _peak_fits(books, worker, sequence, limit)


def could_hold(worker: WorkerState, sequence: Sequence) -> bool:
    """Tell whether `worker`, empty, could hold a sequence at its greatest length."""
    return worker.geometry.num_pages(sequence.limit) <= worker.capacity


def _peak_fits(books: Books, worker: WorkerState, sequence: Sequence, limit: float) -> bool:
    """Tell whether the peak to come stays below `limit` tokens, and starts stay spread.

    If all that waits does not fit together, sequences that start together would also end
    together, in waves that half fill the memory. So sequences in the first half of their
    output, its first quarter and sixteenth, may have only that share of the memory.
    """
    page = worker.geometry.page_tokens
    if worker.planned is None:
        worker.planned = worker.forecast()
    forecast = worker.planned
    own, rest, output = own_forecast(sequence, page)
    peak = forecast.peak_with(own, rest, page)
    if peak > limit:
        worker.refused.add(sequence.id)
        return False
    coming = min(
        -(-(len(books.queue) - 1) // len(books.workers)), books.rows_per_worker - worker.num_running
    )
    if peak + coming * (own + rest + page / 2) <= limit:
        return True
    mean = own + output / 2 + page / 2
    if forecast.young_tokens(_BURST, page) >= _BURST * limit:
        return False
    return all(forecast.young_tokens(age, page) + mean <= age * limit for age in _AGES)


def _rows(chunks: list[Chunk]) -> int:
    return sum(chunk.count for chunk in chunks)


def _chunk(sequence: Sequence, room: int) -> Chunk:
    start = sequence.prefilled
    count = min(room, len(sequence.tokens) - start)
    return Chunk(sequence, start, count, start + count == len(sequence.tokens))


def _is_worth(books: Books, chunk: Chunk) -> bool:
    """Tell whether a prompt is to be cut for a chunk of this size; a last one is no cut."""
    return chunk.is_last or chunk.count * _SMALLEST_SHARE >= books.config.prefill_tokens


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
            chunk = _chunk(sequence, room)
            if not _is_worth(books, chunk):
                break
            chunks.append(chunk)
            room -= chunk.count
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
    group = sequence.group
    sequence.expected_end = group.prompt_tokens + books.expected_output(group)
    books.queue.serve(sequence, max(sequence.expected_end, len(sequence.tokens) + 1))
    sequence.phase = Phase.PREFILL
    worker.place(sequence, worker.geometry.num_pages(len(sequence.tokens)))
    worker.prefilling.append(sequence)
    if worker.planned is not None:
        page = worker.geometry.page_tokens
        worker.planned = worker.planned.extended(own_forecast(sequence, page))
