"""Moves: the KV of a sequence goes from one worker to another, and is not computed again.

    start_move    between steps: it leaves its lane, and room is taken for it on the target
    finish_move   the target has every page: it joins a lane there, and the source forgets it
    fail_move     it joins a lane of the source again, where its pages still are

Until a move has ended both workers count its pages. Whatever else ends it (the sequence is
aborted, the source is removed) is a failed move too. After a failure nobody knows what the target
has, or still gets: it is told of a release with its next step, and takes nothing for this sequence
after that, so the same sequence is never sent to it again.
"""

from __future__ import annotations

from collections.abc import Collection

from glinthawk.core.ids import SequenceId
from glinthawk.scheduler.books import Books, Move
from glinthawk.scheduler.data import Movable, MoveOrder
from glinthawk.scheduler.decode import assign_lane
from glinthawk.scheduler.prefill import could_hold
from glinthawk.scheduler.sequence import Phase, Sequence
from glinthawk.scheduler.worker import WorkerState, forecast_of


def list_movable(worker: WorkerState) -> list[Movable]:
    """Return the sequences that could leave a worker now: between steps, their KV complete."""
    page = worker.geometry.page_tokens
    return [
        Movable(sequence.id, sequence.num_generated, forecast_of(sequence, page)[1])
        for sequence in worker.sequences.values()
        if _is_movable(sequence)
    ]


def start_move(
    books: Books, identity: SequenceId, excluded: Collection[str] = ()
) -> MoveOrder | None:
    """Begin to move a sequence to the worker with the most room; None if none has room for it,
    or it cannot leave now. `excluded`: workers that are no choice."""
    sequence = books.sequences.get(identity)
    if sequence is None or not _is_movable(sequence):
        return None
    source = sequence.worker
    assert source is not None
    targets = [
        worker
        for worker in books.workers.values()
        if worker is not source
        and worker.name not in excluded
        and _can_receive(books, worker, sequence)
    ]
    if not targets:
        return None
    target = max(targets, key=lambda worker: worker.free_now)
    assert sequence.lane is not None
    sequence.lane.remove(sequence)
    sequence.phase = Phase.MOVING
    order = MoveOrder(
        books.next_move(), identity, source.name, target.name, len(sequence.tokens) - 1
    )
    books.moves[identity] = Move(order, sequence, source, target)
    target.expect(sequence, target.geometry.num_pages(len(sequence.tokens)))
    books.lose_holder(sequence, source)
    return order


def finish_move(books: Books, order: MoveOrder) -> bool:
    """Let a sequence go on where its KV is now; False if the move had ended otherwise before."""
    move = _take_if_current(books, order)
    if move is None:
        return False
    sequence = move.sequence
    del books.moves[sequence.id]
    books.moved_tokens += order.num_tokens
    move.source.release(sequence)
    move.target.receive(sequence)
    assign_lane(books, move.target, sequence)
    books.ensure_lead(sequence.group)
    return True


def fail_move(books: Books, order: MoveOrder) -> bool:
    """Let a sequence go on where it was; False if the move had ended before."""
    move = _take_if_current(books, order)
    if move is None:
        return False
    books.cancel_move(move.sequence)
    _return(books, move)
    return True


def forget_target(books: Books, worker: WorkerState) -> None:
    """End the moves to a worker that is to be removed."""
    for move in [move for move in books.moves.values() if move.target is worker]:
        del books.moves[move.sequence.id]
        worker.stop_expecting(move.sequence)
        _return(books, move)


def _return(books: Books, move: Move) -> None:
    assign_lane(books, move.source, move.sequence)
    books.ensure_lead(move.sequence.group)


def _take_if_current(books: Books, order: MoveOrder) -> Move | None:
    move = books.moves.get(order.sequence)
    return move if move is not None and move.order.number == order.number else None


def _is_movable(sequence: Sequence) -> bool:
    return (
        sequence.phase in (Phase.JOINING, Phase.LANE)
        and sequence.known
        and sequence.settled
        and sequence.doomed is None
        and not sequence.busy
    )


def _can_receive(books: Books, worker: WorkerState, sequence: Sequence) -> bool:
    """Tell whether a worker has KV and rows for a sequence of another one, and the peak to come.

    Its pages may come before the worker is told of releases, so those do not count as free yet.
    """
    if not worker.accepting or worker.short or worker.num_running >= books.rows_per_worker:
        return False
    if sequence.id in worker.unreleased or worker.name in sequence.barred:
        return False
    pages = worker.geometry.num_pages(len(sequence.tokens))
    if pages > worker.free_now or not could_hold(worker, sequence):
        return False
    if worker.is_vacant:
        return True
    spare = worker.capacity * books.config.watermark
    if pages + spare > worker.free_now:
        return False
    page = worker.geometry.page_tokens
    length, rest, _ = forecast_of(sequence, page)
    limit = (worker.capacity - spare - worker.shared_pages()) * page
    return worker.forecast().peak_with(length, rest, page) <= limit
