"""Writes down what was decided as the `StepPlan` that travels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from glinthawk.core.ids import LaneId, SequenceId
from glinthawk.core.step import Fork, SequenceStart, StepKind, StepPlan
from glinthawk.scheduler.books import Books, Flight
from glinthawk.scheduler.decode import DecodeRows
from glinthawk.scheduler.prefill import Chunk
from glinthawk.scheduler.sequence import Sequence
from glinthawk.scheduler.worker import WorkerState


def compose_decode(books: Books, worker: WorkerState, decode: DecodeRows) -> StepPlan:
    """Send the rows of an idle lane on their way."""
    lane = decode.lane
    rows = slice(None) if decode.rows is None else decode.rows
    if decode.rows is None:
        sequences = list(lane.members)
    else:
        sequences = [lane.members[row] for row in decode.rows.tolist()]
    forks, registrations = _introduce_forks(sequences)
    arrived = _introduce_arrived(sequences)
    plan = StepPlan(
        kind=StepKind.DECODE,
        lane=lane.id,
        step=books.next_step(),
        worker=worker.name,
        sequences=np.array([sequence.start.sequence for sequence in sequences], dtype=np.uint64),
        starts=lane.kv[rows].astype(np.uint32),
        counts=np.ones(len(sequences), dtype=np.uint32),
        samples=np.ones(len(sequences), dtype=np.bool_),
        tokens=lane.next_token[rows].astype(np.uint32),
        releases=_take_releases(worker),
        forks=forks,
        registrations=(*registrations, *(sequence.registration() for sequence in arrived)),
    )
    lane.flying = True
    flight = Flight(plan, worker, sequences, lane, decode.rows is None)
    return _launch(books, flight)


def compose_prefill(books: Books, worker: WorkerState, chunks: list[Chunk]) -> StepPlan:
    """Send chunks of prompts on their way."""
    sequences = [chunk.sequence for chunk in chunks]
    introduced = [sequence for sequence in sequences if not sequence.known]
    tokens: list[int] = []
    for chunk in chunks:
        tokens += chunk.sequence.tokens[chunk.start : chunk.start + chunk.count]
    plan = StepPlan(
        kind=StepKind.PREFILL,
        lane=_side_lane(books, worker),
        step=books.next_step(),
        worker=worker.name,
        sequences=np.array([sequence.id for sequence in sequences], dtype=np.uint64),
        starts=np.array([chunk.start for chunk in chunks], dtype=np.uint32),
        counts=np.array([chunk.count for chunk in chunks], dtype=np.uint32),
        samples=np.array([chunk.is_last for chunk in chunks], dtype=np.bool_),
        tokens=np.array(tokens, dtype=np.uint32),
        releases=_take_releases(worker),
        registrations=tuple(sequence.registration() for sequence in introduced),
    )
    worker.prefills_flying += 1
    for sequence in introduced:
        sequence.known = True
    return _launch(books, Flight(plan, worker, sequences))


def compose_release(books: Books, worker: WorkerState) -> StepPlan:
    """Tell an idle worker which pages nobody needs any more."""
    plan = StepPlan(
        kind=StepKind.RELEASE,
        lane=_side_lane(books, worker),
        step=books.next_step(),
        worker=worker.name,
        sequences=np.zeros(0, dtype=np.uint64),
        starts=np.zeros(0, dtype=np.uint32),
        counts=np.zeros(0, dtype=np.uint32),
        samples=np.zeros(0, dtype=np.bool_),
        tokens=np.zeros(0, dtype=np.uint32),
        releases=_take_releases(worker),
    )
    return _launch(books, Flight(plan, worker, []))


def _introduce_forks(
    sequences: Iterable[Sequence],
) -> tuple[tuple[Fork, ...], tuple[SequenceStart, ...]]:
    introduced = [sequence for sequence in sequences if not sequence.known]
    forks: list[Fork] = []
    for sequence in introduced:
        parent = sequence.fork_from
        assert parent is not None
        forks.append(Fork(parent.id, sequence.id, sequence.group.fork_tokens))
        sequence.group.unsent_forks.discard(sequence.id)
        sequence.fork_from = None
        sequence.known = True
    return tuple(forks), tuple(s.registration() for s in introduced)


def _introduce_arrived(sequences: Iterable[Sequence]) -> list[Sequence]:
    """Return those that came from another worker and step here for the first time."""
    arrived = [sequence for sequence in sequences if sequence.unregistered]
    for sequence in arrived:
        sequence.unregistered = False
    return arrived


def _side_lane(books: Books, worker: WorkerState) -> LaneId:
    """Return a lane id for a prefill or release step; they are used again when back."""
    return worker.side_lanes.pop() if worker.side_lanes else books.next_lane()


def _take_releases(worker: WorkerState) -> tuple[SequenceId, ...]:
    releases = tuple(worker.releases)
    worker.releases = []
    return releases


def _launch(books: Books, flight: Flight) -> StepPlan:
    for sequence in flight.sequences:
        sequence.flying = True
    flight.worker.steps_flying += 1
    books.flights[flight.plan.lane, flight.plan.step] = flight
    return flight.plan
