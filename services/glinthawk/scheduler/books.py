"""The scheduler's books and the moves of a sequence between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from glinthawk.core.ids import LaneId, SequenceId
from glinthawk.core.step import StepPlan
from glinthawk.scheduler.config import SchedulerConfig
from glinthawk.scheduler.data import Finished, FinishReason, MoveOrder
from glinthawk.scheduler.lane import Lane
from glinthawk.scheduler.lengths import LearnedLengths
from glinthawk.scheduler.sequence import LEADS, Group, Phase, Sequence
from glinthawk.scheduler.waiting import WaitingQueue
from glinthawk.scheduler.worker import WorkerState


@dataclass(eq=False)
class Flight:
    """A step in flight: its sequences in the plan's order, and its lane."""

    plan: StepPlan
    worker: WorkerState
    sequences: list[Sequence]
    lane: Lane | None = None
    all_rows: bool = True


@dataclass(frozen=True, eq=False)
class Move:
    """A sequence's KV on its way to another worker."""

    order: MoveOrder
    sequence: Sequence
    source: WorkerState
    target: WorkerState


class Books:
    """All state of the scheduler. Every move keeps pages, queue and lanes in step."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.num_lanes = config.num_lanes
        self.workers: dict[str, WorkerState] = {}
        self.queue = WaitingQueue()
        self.sequences: dict[SequenceId, Sequence] = {}
        self.flights: dict[tuple[LaneId, int], Flight] = {}
        self.moves: dict[SequenceId, Move] = {}
        self.num_set_back = 0
        self.recomputed_tokens = 0
        self.moved_tokens = 0
        self.lengths = LearnedLengths(config.default_expected_tokens)
        self._num_ordered = 0
        self._last_lane = 0
        self._last_step = 0
        self._last_move = 0

    def next_order(self) -> int:
        """Return the age of the next sequence."""
        self._num_ordered += 1
        return self._num_ordered

    def next_lane(self) -> LaneId:
        """Return a lane id that was never used."""
        self._last_lane += 1
        return LaneId(self._last_lane)

    def next_step(self) -> int:
        """Return a step number that was never used."""
        self._last_step += 1
        return self._last_step

    def next_move(self) -> int:
        """Return a number for a move that was never used."""
        self._last_move += 1
        return self._last_move

    @property
    def lanes_per_worker(self) -> int:
        """Lanes that each worker is to have in flight."""
        return max(1, -(-self.num_lanes // max(1, len(self.workers))))

    @property
    def rows_per_worker(self) -> int:
        """Sequences that one worker's lanes can carry."""
        return self.lanes_per_worker * self.config.max_lane_rows

    def expected_output(self, group: Group) -> int:
        """Return how many tokens each choice of a group is expected to generate."""
        expected = group.expected_new_tokens
        guess = self.lengths.expect(group.flow.name) if expected is None else expected
        return min(max(1, group.max_new_tokens), max(1, guess))

    def set_back(self, sequence: Sequence) -> None:
        """Take an idle sequence off its worker; it will be recomputed from its tokens."""
        worker = sequence.worker
        assert worker is not None
        assert not sequence.busy
        if sequence.id in sequence.group.unsent_forks:
            self.unfork(sequence)
            return
        self.num_set_back += 1
        if sequence.phase is not Phase.PREFILL:
            sequence.computed = max(sequence.computed, len(sequence.tokens) - 1)
        self._leave(sequence)
        if sequence.doomed is None:
            self.queue.put_back(sequence)
        else:
            del self.sequences[sequence.id]
            self.lengths.forget(sequence.group.flow.name, sequence.id)
            sequence.phase = Phase.DONE
        self.lose_holder(sequence, worker)

    def end(self, sequence: Sequence, reason: FinishReason) -> Finished:
        """End a sequence that is not in flight, and return what to tell of it."""
        group = sequence.group
        worker = sequence.worker
        del self.sequences[sequence.id]
        if reason is FinishReason.ERROR or sequence.num_generated == 0:
            self.lengths.forget(group.flow.name, sequence.id)
        else:
            self.lengths.end(group.flow.name, sequence.id, sequence.num_generated)
        self._settle_charge(sequence)
        finished = Finished(sequence.id, reason, sequence.num_generated)
        if sequence.phase is Phase.QUEUED:
            self.queue.remove(sequence)
        elif sequence.phase is Phase.PENDING:
            group.pending.remove(sequence)
        elif worker is not None and self._is_last_holder(sequence):
            self._leave_rows(sequence, worker)
            sequence.phase = Phase.HELD
            worker.num_held += 1
            return finished
        elif worker is not None:
            self._leave(sequence)
        sequence.phase = Phase.DONE
        if worker is not None:
            self.lose_holder(sequence, worker)
        self.drop_idle_holder(group)
        self.ensure_lead(group)
        return finished

    def drop_idle_holder(self, group: Group) -> None:
        """Stop offering pages to fork once no choice waits for them."""
        holder = group.holder
        if holder is None or self._is_needed(group):
            return
        if holder.phase is Phase.HELD:
            self.drop_held(holder)
        elif holder.worker is not None:
            holder.worker.forks.remove(group)
            group.holder = None

    def drop_held(self, holder: Sequence) -> None:
        """Release an ended sequence's pages; choices that waited for them prefill themselves."""
        worker = holder.worker
        assert worker is not None
        worker.num_held -= 1
        worker.release(holder)
        holder.phase = Phase.DONE
        self.lose_holder(holder, worker)

    def become_holder(self, sequence: Sequence) -> None:
        """Offer a settled sequence's prompt pages to the choices that wait."""
        group = sequence.group
        if group.holder is None and group.pending and sequence.worker is not None:
            group.holder = sequence
            sequence.worker.forks.append(group)

    def unfork(self, child: Sequence) -> None:
        """Return a choice whose fork was not sent to those that wait."""
        assert not child.known
        child.group.unsent_forks.discard(child.id)
        self._leave(child)
        child.phase = Phase.PENDING
        child.group.pending.appendleft(child)

    def ensure_lead(self, group: Group) -> None:
        """See to it that pending choices have somebody to fork from, now or later."""
        if not group.pending or group.holder is not None:
            return
        settled = (s for s in group.members if s.settled and s.phase in (Phase.JOINING, Phase.LANE))
        candidate = next(settled, None)
        if candidate is not None:
            self.become_holder(candidate)
        elif not any(s.phase in LEADS for s in group.members):
            lead = min(group.pending, key=lambda sequence: sequence.order)
            group.pending.remove(lead)
            lead.computed = max(lead.computed, group.computed)
            self.queue.put_back(lead)

    def forget_worker(self, worker: WorkerState) -> tuple[SequenceId, ...]:
        """Drop a worker and its steps in flight; its sequences wait again."""
        for key in [key for key, flight in self.flights.items() if flight.worker is worker]:
            for sequence in self.flights.pop(key).sequences:
                sequence.flying = False
        for lane in worker.lanes:
            lane.flying = False
        for sequence in list(worker.sequences.values()):
            if sequence.phase is Phase.HELD:
                self.drop_held(sequence)
        lost = [s for s in worker.sequences.values() if s.doomed is None]
        self.release_all(list(worker.sequences.values()))
        del self.workers[worker.name]
        return tuple(sequence.id for sequence in lost)

    def cancel_move(self, sequence: Sequence) -> None:
        """Give up a copy that is under way; the sequence's pages on the source stay."""
        target = self.moves.pop(sequence.id).target
        target.stop_expecting(sequence)
        sequence.barred |= {target.name}

    def release_all(self, sequences: Iterable[Sequence]) -> None:
        """Set back every idle sequence given that still holds pages."""
        for sequence in sequences:
            if sequence.worker is not None and sequence.phase is not Phase.HELD:
                self.set_back(sequence)

    def _is_needed(self, group: Group) -> bool:
        return bool(group.pending or group.unsent_forks)

    def _settle_charge(self, sequence: Sequence) -> None:
        """Set right what the flow was charged: a choice that was forked ran no prompt."""
        if sequence.charged:
            self.queue.charge(sequence.group.flow, len(sequence.tokens) - sequence.charged)
        elif sequence.num_generated:
            self.queue.charge(sequence.group.flow, sequence.num_generated)

    def _leave(self, sequence: Sequence) -> None:
        """Take a sequence off its lane or prefill, and off its worker."""
        worker = sequence.worker
        assert worker is not None
        self._leave_rows(sequence, worker)
        sequence.group.unsent_forks.discard(sequence.id)
        worker.release(sequence)

    def _leave_rows(self, sequence: Sequence, worker: WorkerState) -> None:
        if sequence.phase is Phase.PREFILL:
            worker.prefilling.remove(sequence)
        elif sequence.phase is Phase.MOVING:
            self.cancel_move(sequence)
        elif sequence.lane is not None:
            sequence.lane.remove(sequence)

    def _is_last_holder(self, sequence: Sequence) -> bool:
        """Tell whether waiting choices could fork from nobody else."""
        group = sequence.group
        others = (s for s in group.members if s.settled and s is not sequence)
        return group.holder is sequence and self._is_needed(group) and not any(others)

    def lose_holder(self, sequence: Sequence, worker: WorkerState) -> None:
        """Have nobody fork from a sequence any more that leaves its worker."""
        group = sequence.group
        if group.holder is sequence:
            group.holder = None
            worker.forks.remove(group)
            for child in group.members:
                if child.id in group.unsent_forks:
                    self.unfork(child)
        self.ensure_lead(group)
