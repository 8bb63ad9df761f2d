"""The scheduler that the gateway's engine drives: one object, no clock, no I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from glinthawk.core.ids import LaneId, SequenceId
from glinthawk.core.step import SequenceStart, StepPlan, StepResult
from glinthawk.errors import InvalidRequest, NotFound
from glinthawk.scheduler.accounts import build_stats, verify
from glinthawk.scheduler.books import Books
from glinthawk.scheduler.commit import commit_step
from glinthawk.scheduler.compose import compose_decode, compose_prefill, compose_release
from glinthawk.scheduler.config import SchedulerConfig
from glinthawk.scheduler.data import (
    Committed,
    FinishReason,
    Movable,
    MoveOrder,
    SchedulerStats,
    SequenceGroup,
    WorkerLoad,
)
from glinthawk.scheduler.decode import plan_decode
from glinthawk.scheduler.moving import (
    fail_move,
    finish_move,
    forget_target,
    list_movable,
    start_move,
)
from glinthawk.scheduler.prefill import can_admit, plan_prefill
from glinthawk.scheduler.sequence import Group, Phase, Sequence
from glinthawk.scheduler.worker import WorkerState

_SHORT_OF_SEQUENCES = 0.9
"""Lanes below this share of the sequences they could have are to be filled first."""


class Scheduler:
    """Admits, places and composes sequences. See the package for how it is driven."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self._books = Books(config)
        self._remembered_pages: int | None = 0
        self._largest: int | None = None

    def add_worker(self, name: str, kv_bytes: int) -> None:
        """Take a worker with `kv_bytes` of KV memory into use."""
        worker = WorkerState(name, kv_bytes, self.config.geometry)
        if name in self._books.workers:
            raise InvalidRequest(f"attention worker {name!r} is there already; remove it first")
        if worker.capacity < 1:
            raise InvalidRequest(
                f"attention worker {name!r} offers {kv_bytes} bytes of KV memory, less than one "
                f"page of {self.config.geometry.page_bytes} bytes; give it more"
            )
        self._books.workers[name] = worker

    def remove_worker(self, name: str) -> tuple[SequenceId, ...]:
        """Forget a worker; its sequences wait again, its steps in flight are void.

        Returns the sequences that will be recomputed."""
        worker = self._worker(name)
        forget_target(self._books, worker)
        return self._books.forget_worker(worker)

    def set_accepting(self, name: str, accepting: bool) -> None:
        """Say whether new sequences may be placed on a worker (False drains it)."""
        self._worker(name).accepting = accepting

    def remember(self, kv_bytes: int | None) -> bool:
        """Count, from now on, on a worker with so much KV memory as on one that may come: 0 for
        none, None for one of any size. Return whether less fits than when this was called last."""
        pages_in = self.config.geometry.pages_in
        self._remembered_pages = None if kv_bytes is None else pages_in(kv_bytes)
        before, self._largest = self._largest, self.largest_possible()
        if self._largest is None:
            return False
        return self._largest < (self.config.max_sequence_length if before is None else before)

    def largest_possible(self) -> int | None:
        """Return the tokens of the longest sequence that a worker could hold, of those that are
        there and that which is remembered; None while that is not known."""
        if self._remembered_pages is None:
            return None
        pages = [worker.capacity for worker in self._books.workers.values()]
        largest = max(self._remembered_pages, *pages, 0)
        if largest == 0:
            return None
        return min(self.config.max_sequence_length, largest * self.config.geometry.page_tokens)

    def check_size(self, num_prompt_tokens: int, max_new_tokens: int) -> None:
        """Raise InvalidRequest, with both sizes, when such a sequence could never be held."""
        num_tokens = num_prompt_tokens + max(1, max_new_tokens)
        largest = self.largest_possible()
        limit = self.config.max_sequence_length if largest is None else largest
        if num_tokens > limit:
            raise InvalidRequest(
                f"the request needs {num_tokens} tokens (prompt {num_prompt_tokens}, output "
                f"{max_new_tokens}); at most {limit} fit. Shorten the prompt, set max_tokens "
                "lower, or give the workers more KV memory",
                param="max_tokens",
            )

    def add(self, group: SequenceGroup) -> None:
        """Queue a request. Raises InvalidRequest, with both sizes, when it can never fit."""
        self.check_size(group.starts[0].prompt_tokens, group.max_new_tokens)
        self._check_starts(group)
        record = Group(
            group.starts[0].prompt_tokens,
            group.max_new_tokens,
            group.expected_new_tokens,
            group.flow,
        )
        for number, start in enumerate(group.starts):
            self._add_choice(record, start, is_lead=number == 0)

    def abort(self, sequences: Iterable[SequenceId]) -> None:
        """End sequences now (cancelled, or a stop string was found); unknown ids are ignored.

        They are not reported as finished. One in flight ends when its step is back."""
        for identity in sequences:
            sequence = self._books.sequences.get(identity)
            if sequence is None or sequence.doomed is not None:
                continue
            if sequence.busy:
                sequence.doomed = FinishReason.STOP
                if sequence.lane is not None:
                    sequence.lane.doomed.append(sequence)
            else:
                self._books.end(sequence, FinishReason.STOP)

    def plan(self) -> list[StepPlan]:
        """Return all steps that may start now; they count as in flight from here on."""
        books = self._books
        plans: list[StepPlan] = []
        for worker in books.workers.values():
            chosen = plan_decode(books, worker)
            plans += [compose_decode(books, worker, decode) for decode in chosen]
        plans += [compose_prefill(books, *step) for step in plan_prefill(books)]
        idle = [w for w in books.workers.values() if w.releases and w.steps_flying == 0]
        plans += [compose_release(books, worker) for worker in idle]
        return plans

    def commit(
        self, result: StepResult, finished: Mapping[SequenceId, FinishReason] | None = None
    ) -> Committed | None:
        """Take in a step's result; None when the step is not known (its worker was removed).

        `finished`: sequences that end with their sampled token, by the caller's judgement."""
        return commit_step(self._books, result, finished or {})

    def movable(self, name: str) -> list[Movable]:
        """Return the sequences of a worker whose KV could be copied elsewhere now."""
        return list_movable(self._worker(name))

    def start_move(self, sequence: SequenceId, excluded: Collection[str] = ()) -> MoveOrder | None:
        """Begin to move a sequence's KV to another worker; it stands still until `end_move`.

        None when no worker but those `excluded` has room for it, or it cannot leave now."""
        return start_move(self._books, sequence, excluded)

    def end_move(self, order: MoveOrder, *, arrived: bool) -> bool:
        """Let a sequence go on: on the target if all its KV has `arrived` there, else where it
        was. False when the move is over already (aborted, set back, a worker removed)."""
        return (finish_move if arrived else fail_move)(self._books, order)

    def find_step(self, lane: LaneId, step: int) -> StepPlan | None:
        """Return a step in flight; None for one that came back, or whose worker was removed."""
        flight = self._books.flights.get((lane, step))
        return None if flight is None else flight.plan

    def worker_load(self, name: str) -> WorkerLoad:
        """Return what a worker holds."""
        worker = self._worker(name)
        page_bytes = self.config.geometry.page_bytes
        return WorkerLoad(
            kv_used_bytes=worker.used * page_bytes,
            kv_capacity_bytes=worker.capacity * page_bytes,
            num_sequences=len(worker.sequences),
            is_idle=worker.is_vacant and not (worker.steps_flying or worker.releases),
        )

    @property
    def prefill_first(self) -> bool:
        """Whether lanes are > 10% short of sequences that could join: the hint for stages."""
        books = self._books
        workers = books.workers.values()
        rows = sum(lane.size for worker in workers for lane in worker.lanes)
        coming = sum(len(worker.prefilling) for worker in workers)
        head = next(iter(books.queue), None)
        if head is not None:
            pages = books.config.geometry.num_pages(len(head.tokens))
            room = sum(w.free // pages for w in workers if can_admit(books, w, head))
            coming += min(len(books.queue), room)
        capacity = books.rows_per_worker * len(workers)
        return rows < _SHORT_OF_SEQUENCES * min(capacity, rows + coming)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue; choices that wait to fork are not in it. O(1)."""
        return len(self._books.queue)

    def has_work(self) -> bool:
        """Tell whether any sequence is unfinished."""
        return bool(self._books.sequences)

    def stats(self) -> SchedulerStats:
        """Return counts for metrics. O(sequences): call it seconds apart."""
        return build_stats(self._books)

    def check_integrity(self) -> None:
        """Raise InvariantBroken when the books do not agree with each other. O(sequences)."""
        verify(self._books)

    def _worker(self, name: str) -> WorkerState:
        worker = self._books.workers.get(name)
        if worker is None:
            known = ", ".join(self._books.workers) or "none"
            raise NotFound(f"there is no attention worker {name!r}; known are {known}")
        return worker

    def _check_starts(self, group: SequenceGroup) -> None:
        first = group.starts[0]
        prompt = first.tokens[: first.prompt_tokens]
        seen: set[SequenceId] = set()
        for start in group.starts:
            if start.sequence in self._books.sequences or start.sequence in seen:
                raise InvalidRequest(f"sequence {start.sequence} was added already")
            seen.add(start.sequence)
            if start.tokens[: start.prompt_tokens] != prompt:
                raise InvalidRequest(f"sequence {start.sequence} has a prompt of its own")
            if len(start.tokens) >= group.num_tokens:
                raise InvalidRequest(
                    f"sequence {start.sequence} has {len(start.tokens)} tokens of "
                    f"{group.num_tokens}; it is finished already"
                )

    def _add_choice(self, group: Group, start: SequenceStart, *, is_lead: bool) -> None:
        sequence = Sequence(
            start=start,
            group=group,
            order=self._books.next_order(),
            tokens=list(start.tokens),
            limit=group.prompt_tokens + max(1, group.max_new_tokens),
        )
        group.members.append(sequence)
        self._books.sequences[sequence.id] = sequence
        self._books.lengths.begin(group.flow.name, sequence.id)
        has_output = sequence.num_generated > 0
        if is_lead or has_output or group.fork_tokens == 0:
            self._books.queue.append(sequence)
        else:
            sequence.phase = Phase.PENDING
            group.pending.append(sequence)
