"""Takes in what came back: the tokens of a step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from glinthawk.core.ids import SequenceId
from glinthawk.core.step import SampledToken, StepKind, StepResult
from glinthawk.errors import InvariantBroken
from glinthawk.scheduler.books import Books, Flight
from glinthawk.scheduler.data import Committed, Finished, FinishReason
from glinthawk.scheduler.decode import assign_lane
from glinthawk.scheduler.lane import Lane
from glinthawk.scheduler.sequence import Sequence

Endings = list[tuple[Sequence, FinishReason]]


def commit_step(
    books: Books, result: StepResult, finished: Mapping[SequenceId, FinishReason]
) -> Committed | None:
    """Append the sampled tokens of a step, end what is to end, free its lane."""
    flight = books.flights.get((result.lane, result.step))
    if flight is None:
        return None
    sampled = _match(flight, result)
    _land(books, flight)
    for released in flight.plan.releases:
        flight.worker.unreleased.pop(released, None)
    recomputed = _count_recomputed(books, flight)
    accepted: list[SequenceId] = []
    endings: Endings = []
    for sequence, token in zip(flight.sequences, sampled, strict=True):
        sequence.settled = True
        if sequence.doomed is not None or token is None:
            continue
        if token.error is not None:
            endings.append((sequence, FinishReason.ERROR))
            continue
        sequence.tokens.append(token.token)
        accepted.append(sequence.id)
        reason = finished.get(sequence.id)
        if reason is None and len(sequence.tokens) >= sequence.limit:
            reason = FinishReason.LENGTH
        if reason is not None:
            endings.append((sequence, reason))
    if flight.lane is not None:
        _advance_lane(flight, flight.lane, sampled)
    else:
        _end_prefill(books, flight, endings)
    told = tuple(_end_all(books, flight, endings))
    return Committed(
        result.lane, result.step, flight.plan.kind, frozenset(accepted), told, recomputed
    )


def _match(flight: Flight, result: StepResult) -> list[SampledToken | None]:
    """Return the sampled token of every sequence of the step; None where none is due."""
    by_sequence = {token.sequence: token for token in result.sampled}
    matched: list[SampledToken | None] = []
    for sequence, samples in zip(flight.sequences, flight.plan.samples.tolist(), strict=True):
        token = by_sequence.pop(sequence.id, None) if samples else None
        if samples and token is None:
            raise InvariantBroken(
                f"the result of step {result.step}, lane {result.lane} has no token for "
                f"sequence {sequence.id}"
            )
        matched.append(token)
    if by_sequence:
        raise InvariantBroken(
            f"the result of step {result.step}, lane {result.lane} has tokens for sequences "
            f"{sorted(by_sequence)[:5]}, which it did not sample"
        )
    return matched


def _land(books: Books, flight: Flight) -> None:
    plan, worker = flight.plan, flight.worker
    del books.flights[plan.lane, plan.step]
    worker.steps_flying -= 1
    for sequence in flight.sequences:
        sequence.flying = False
    if flight.lane is not None:
        flight.lane.flying = False
        return
    worker.side_lanes.append(plan.lane)
    if plan.kind is StepKind.PREFILL:
        worker.prefills_flying -= 1


def _count_recomputed(books: Books, flight: Flight) -> int:
    """Return how many tokens of a prefill step had KV before, and note those that have it now."""
    plan = flight.plan
    if plan.kind is not StepKind.PREFILL:
        return 0
    recomputed = 0
    spans = zip(plan.starts.tolist(), plan.counts.tolist(), strict=True)
    for sequence, (start, count) in zip(flight.sequences, spans, strict=True):
        end = start + count
        recomputed += max(0, min(end, sequence.computed) - start)
        sequence.computed = max(sequence.computed, end)
        group = sequence.group
        group.computed = max(group.computed, min(end, group.fork_tokens))
    books.recomputed_tokens += recomputed
    return recomputed


def _advance_lane(flight: Flight, lane: Lane, sampled: list[SampledToken | None]) -> None:
    tokens = np.array([token.token if token else 0 for token in sampled], dtype=np.int64)
    if flight.all_rows:
        lane.kv[:] += 1
        lane.next_token[:] = tokens
    else:
        rows = [sequence.row for sequence in flight.sequences]
        lane.kv[rows] += 1
        lane.next_token[rows] = tokens


def _end_prefill(books: Books, flight: Flight, endings: Endings) -> None:
    """Let sequences whose prompt is through join a lane, and their choices fork."""
    ending = {sequence.id for sequence, _ in endings}
    for sequence, samples in zip(flight.sequences, flight.plan.samples.tolist(), strict=True):
        sequence.settled = samples
        if not samples or sequence.doomed is not None:
            continue
        books.become_holder(sequence)
        if sequence.id not in ending:
            flight.worker.prefilling.remove(sequence)
            assign_lane(books, flight.worker, sequence)


def _end_all(books: Books, flight: Flight, endings: Endings) -> list[Finished]:
    """End sequences with their reasons; those aborted meanwhile end silently."""
    doomed = flight.sequences if flight.lane is None else flight.lane.doomed
    for sequence in list(doomed):
        if sequence.doomed is not None:
            books.end(sequence, sequence.doomed)
    if flight.lane is not None:
        flight.lane.doomed = []
    return [books.end(sequence, reason) for sequence, reason in endings]
