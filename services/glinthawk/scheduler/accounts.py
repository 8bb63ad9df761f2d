"""Reads the books: figures for metrics and scaling, and the proof that they agree."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from glinthawk.errors import InvariantBroken
from glinthawk.scheduler.books import Books
from glinthawk.scheduler.data import RequestClass, SchedulerStats
from glinthawk.scheduler.lane import Lane
from glinthawk.scheduler.sequence import LEADS, Phase, Sequence
from glinthawk.scheduler.worker import WorkerState


def build_stats(books: Books) -> SchedulerStats:
    """Return counts and KV bytes."""
    workers = list(books.workers.values())
    page_bytes = books.config.geometry.page_bytes
    lanes = [lane for worker in workers for lane in worker.lanes]
    waiting = Counter(
        sequence.group.flow.request_class
        for sequence in books.sequences.values()
        if sequence.phase in (Phase.QUEUED, Phase.PENDING)
    )
    return SchedulerStats(
        num_waiting_interactive=waiting[RequestClass.INTERACTIVE],
        num_waiting_batch=waiting[RequestClass.BATCH],
        num_prefilling=sum(len(worker.prefilling) for worker in workers),
        num_decoding=sum(lane.size for lane in lanes),
        lane_rows=tuple(lane.num_rows for lane in lanes),
        steps_in_flight=len(books.flights),
        num_set_back=books.num_set_back,
        recomputed_tokens=books.recomputed_tokens,
        num_moving=len(books.moves),
        moved_tokens=books.moved_tokens,
        kv_used_bytes=sum(worker.used for worker in workers) * page_bytes,
        kv_demanded_bytes=demanded_pages(books) * page_bytes,
        kv_capacity_bytes=sum(worker.capacity for worker in workers) * page_bytes,
    )


def demanded_pages(books: Books) -> int:
    """Return the pages wanted: of running sequences, tokens now and half the expected rest; of
    the first N waiting, prompt and half the expected output; N = rows that are still free.

    Without workers N is what one worker's lanes can carry, so that the first one is asked for.
    """
    num_pages = books.config.geometry.num_pages
    page = books.config.geometry.page_tokens
    demanded = 0
    running = 0
    for worker in books.workers.values():
        forecast = worker.forecast()
        running += len(forecast.own)
        halfway = forecast.own + forecast.rest // 2
        demanded += int((-(-halfway // page)).sum()) + worker.shared_pages()
    rows = books.rows_per_worker * max(1, len(books.workers))
    for sequence in islice(books.queue, max(0, rows - running)):
        expected = books.expected_output(sequence.group)
        rest_tokens = max(1, expected - sequence.num_generated)
        demanded += num_pages(len(sequence.tokens) + rest_tokens // 2)
    return demanded


def verify(books: Books) -> None:
    """Raise InvariantBroken at the first promise of the books that does not hold."""
    places: Counter[int] = Counter()
    for sequence in books.queue:
        _demand(sequence.phase is Phase.QUEUED and sequence.worker is None, sequence, "queued")
        places[sequence.id] += 1
    for worker in books.workers.values():
        _verify_worker(books, worker, places)
    for sequence in books.sequences.values():
        group = sequence.group
        if sequence.phase is Phase.PENDING:
            places[sequence.id] += 1
            _demand(sequence in group.pending, sequence, "pending in its group")
            leads = [s for s in group.members if s.phase in LEADS]
            _demand(group.holder is not None or bool(leads), sequence, "led by somebody")
        if group.holder is not None:
            worker_of = group.holder.worker
            _demand(worker_of is not None and group in worker_of.forks, sequence, "offered forks")
        _demand(places[sequence.id] == 1, sequence, "in exactly one place")
        _demand(len(sequence.tokens) < sequence.limit, sequence, "below its limit")
    for flight in books.flights.values():
        for sequence in flight.sequences:
            _demand(sequence.flying and sequence.worker is flight.worker, sequence, "flying")
    _verify_moves(books)
    if sum(places.values()) != len(books.sequences):
        raise InvariantBroken(f"{sum(places.values())} places, {len(books.sequences)} sequences")
    if books.lengths.num_open != len(books.sequences):
        raise InvariantBroken(
            f"{books.lengths.num_open} lengths are awaited of {len(books.sequences)} sequences"
        )


def _verify_worker(books: Books, worker: WorkerState, places: Counter[int]) -> None:
    owned = sum(sequence.pages for sequence in worker.sequences.values())
    promised = sum(worker.arriving.values())
    counted = owned + worker.shared_pages() + promised
    if worker.used != counted or worker.used > worker.capacity:
        raise InvariantBroken(
            f"worker {worker.name}: {worker.used} pages used, {owned} owned, {promised} promised, "
            f"{worker.shared_pages()} shared, {worker.capacity} there"
        )
    flying = [flight for flight in books.flights.values() if flight.worker is worker]
    held = sum(sequence.phase is Phase.HELD for sequence in worker.sequences.values())
    if len(flying) != worker.steps_flying or held != worker.num_held:
        raise InvariantBroken(
            f"worker {worker.name}: {worker.steps_flying} steps for {len(flying)} in flight, "
            f"{worker.num_held} held for {held}"
        )
    for sequence in worker.sequences.values():
        _demand(sequence.worker is worker, sequence, f"on worker {worker.name}")
        shared = [s for s in worker.sequences.values() if s.shared and s.shared is sequence.shared]
        if sequence.shared is not None:
            _demand(len(shared) == sequence.shared.holders, sequence, "sharing with its holders")
        if sequence.phase is Phase.MOVING:
            places[sequence.id] += 1
            _demand(sequence.id in books.moves, sequence, "on its way to another worker")
    for sequence in worker.prefilling:
        places[sequence.id] += 1
        _demand(sequence.phase is Phase.PREFILL, sequence, "in prefill")
    for lane in worker.lanes:
        _verify_lane(worker, lane, places)


def _verify_moves(books: Books) -> None:
    arriving = [sequence for worker in books.workers.values() for sequence in worker.arriving]
    if len(arriving) != len(books.moves):
        raise InvariantBroken(f"{len(arriving)} sequences arrive, {len(books.moves)} move")
    for move in books.moves.values():
        sequence = move.sequence
        _demand(sequence.phase is Phase.MOVING, sequence, "moving")
        _demand(sequence.worker is move.source, sequence, f"on worker {move.source.name}")
        _demand(sequence in move.target.arriving, sequence, f"expected by {move.target.name}")
        _demand(not sequence.flying and sequence.lane is None, sequence, "out of its lane")


def _verify_lane(worker: WorkerState, lane: Lane, places: Counter[int]) -> None:
    page = worker.geometry.page_tokens
    for sequence in lane.joining:
        places[sequence.id] += 1
        _demand(sequence.phase is Phase.JOINING and sequence.lane is lane, sequence, "joining")
    for row, sequence in enumerate(lane.members):
        places[sequence.id] += 1
        _demand(sequence.phase is Phase.LANE and sequence.lane is lane, sequence, "in its lane")
        _demand(sequence.row == row, sequence, "in its row")
        _demand(int(lane.kv[row]) == len(sequence.tokens) - 1, sequence, "one token ahead of KV")
        _demand(int(lane.next_token[row]) == sequence.tokens[-1], sequence, "fed its last token")
        _demand(int(lane.room[row]) == sequence.all_pages * page, sequence, "roomed by its pages")


def _demand(holds: bool, sequence: Sequence, what: str) -> None:
    if not holds:
        raise InvariantBroken(f"sequence {sequence.id} ({sequence.phase.name}) is not {what}")
