"""The engine over the real scheduler while its workers fail, go and come back."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.step import SampledToken, StepPlan, StepResult
from glinthawk.errors import (
    CapacityExceeded,
    GlinthawkError,
    InvalidRequest,
    InvariantBroken,
    NotFound,
    PeerUnavailable,
    StateLost,
)
from glinthawk.gateway.engine import Completion, Engine
from glinthawk.gateway.events import CopyEnded
from glinthawk.gateway.generation import INTERACTIVE
from glinthawk.gateway.open_requests import MOST_FAILURES
from glinthawk.gateway.prompts import Prompt
from glinthawk.gateway.requests import Endpoint, ParsedRequest
from glinthawk.gateway.roster import WorkerEntry
from glinthawk.gateway.worker_sizes import COUNTED_S, WorkerSizes
from glinthawk.gateway.workers import WorkerState
from glinthawk.scheduler import Flow, MoveOrder, Scheduler, SchedulerConfig
from glinthawk.telemetry.metrics import ServiceMetrics
from unit.gateway.factories import END, ByteTokenizer, make_choice, make_request
from unit.gateway.store.factories import FakeClock

GEOMETRY = KVGeometry(2, 4, 2, 32, DType.FLOAT16, (None, None))
WAIT_S = 60.0
STEP_S = 1.0
"""What a step of w0 seems to take in a slow run."""
PAGES = 40


class Tiers:
    """Workers whose cache is the tokens of each sequence; a step that does not fit what they
    hold is a defect of the gateway. The next token follows from the tokens before it.

    A step to a worker that is dead or frozen is never answered.
    """

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.caches: dict[tuple[str, int], dict[int, int]] = {}
        self.registered: dict[int, list[int]] = {}
        self.dead: set[str] = set()
        self.failing: Callable[[StepPlan], GlinthawkError | None] = lambda plan: None
        self.unanswered: list[StepPlan] = []
        self.resets: list[tuple[str, int]] = []
        self.steps: list[tuple[str, int]] = []
        self.released: list[str] = []
        self.next_epoch = 1
        self.now = 0.0
        self.num_rows = 0
        self.copies: list[MoveOrder] = []
        self.copying: Callable[[MoveOrder], GlinthawkError | None] = lambda order: None
        self.holding: Callable[[MoveOrder], bool] = lambda order: False

    def join(self, name: str, pages: int = PAGES) -> None:
        assert self.engine is not None
        self.next_epoch += 1
        self.dead.discard(name)
        entry = WorkerEntry(name, pages * GEOMETRY.page_bytes, self.next_epoch, "one")
        self.caches[name, self.next_epoch] = {}
        self.engine.worker_joined(entry)

    def lose(self, name: str) -> None:
        assert self.engine is not None
        self.dead.add(name)
        self.engine.worker_lost(name)

    def send_step(self, plan: StepPlan, *, epoch: int, prefill_first: bool) -> None:
        assert self.engine is not None
        if plan.worker == "w0":
            self.now += STEP_S
        self.steps.append((plan.worker, epoch))
        if plan.worker in self.dead:
            self.unanswered.append(plan)
            return
        error = self.failing(plan)
        if error is not None:
            self.engine.step_failed(plan.lane, plan.step, error)
            return
        self.answer(plan, epoch)

    def answer(self, plan: StepPlan, epoch: int) -> None:
        assert self.engine is not None
        cache = self.caches[plan.worker, epoch]
        self.num_rows += plan.num_rows
        for sequence in plan.releases:
            given_up = (sequence, plan.worker) in [(c.sequence, c.target) for c in self.copies]
            assert sequence in cache or given_up
            cache.pop(sequence, None)
        for fork in plan.forks:
            assert cache[fork.parent] >= fork.num_tokens
            cache[fork.child] = fork.num_tokens
        for start in plan.registrations:
            self.registered[start.sequence] = list(start.tokens)
        sampled = []
        rows = zip(plan.sequences.tolist(), plan.starts.tolist(), plan.counts.tolist(), strict=True)
        for (sequence, start, count), samples in zip(rows, plan.samples.tolist(), strict=True):
            assert cache.get(sequence, 0) == start, "the worker holds all tokens before the row"
            cache[sequence] = start + count
            if samples:
                tokens = self.registered[sequence]
                assert len(tokens) == start + count, "the last stage knows all tokens before"
                tokens.append((sum(tokens) * 31 + len(tokens)) % 256)
                sampled.append(SampledToken(sequence, tokens[-1]))
        self.engine.take_result(StepResult(plan.lane, plan.step, tuple(sampled)))

    def copy_pages(
        self, order: MoveOrder, *, source_epoch: int, target_epoch: int, timeout_s: float
    ) -> None:
        self.copies.append(order)
        if not self.holding(order):
            self.copy(order, source_epoch, target_epoch)

    def copy(self, order: MoveOrder, source_epoch: int, target_epoch: int) -> None:
        assert self.engine is not None
        error = self.copying(order)
        if error is None:
            source = self.caches[order.source, source_epoch]
            target = self.caches[order.target, target_epoch]
            assert source[order.sequence] == order.num_tokens, "nothing is written meanwhile"
            assert order.sequence not in target
            target[order.sequence] = order.num_tokens
        self.engine.copy_ended(CopyEnded(order, 100, error))

    def reset_worker(self, name: str, epoch: int, error: GlinthawkError) -> None:
        self.resets.append((name, epoch))
        self.join(name)

    def release_worker(self, name: str) -> None:
        self.released.append(name)


class Run:
    """An engine on its thread."""

    def __init__(self, *, is_slow: bool = False, sizes: WorkerSizes | None = None) -> None:
        self.scheduler = Scheduler(SchedulerConfig(geometry=GEOMETRY, max_sequence_length=2000))
        self.tiers = Tiers()
        self.done: dict[Any, Completion] = {}
        self.registry = CollectorRegistry()
        self.engine = Engine(
            self.scheduler,
            ByteTokenizer(),
            carrier=self.tiers,
            on_done=self._on_done,
            metrics=ServiceMetrics(self.registry),
            sizes=sizes,
            clock=(lambda: time.monotonic() + self.tiers.now) if is_slow else time.monotonic,
        )
        self.tiers.engine = self.engine
        self.thread = threading.Thread(target=self.engine.run, daemon=True)

    def start(self, *requests: ParsedRequest) -> None:
        for key, request in enumerate(requests):
            self.engine.submit(key, request)
        self.thread.start()

    def wait_for(self, is_true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not is_true():
            assert time.monotonic() < deadline
            assert self.engine.failure is None
            time.sleep(0.005)

    def wait_for_state(self, name: str, state: WorkerState) -> None:
        self.wait_for(
            lambda: (name, state) in [(w.name, w.state) for w in self.engine.stats.workers]
        )

    def count_recomputed(self) -> float | None:
        return self.registry.get_sample_value("glinthawk_recomputed_tokens_total")

    def stop(self) -> None:
        self.engine.stop()
        if self.thread.is_alive():
            self.thread.join(WAIT_S)
        self.scheduler.check_integrity()

    def _on_done(self, completion: Completion) -> None:
        assert completion.key not in self.done, "a request is done once"
        self.done[completion.key] = completion


@pytest.fixture
def run() -> Iterator[Run]:
    run = Run()
    yield run
    run.stop()


@pytest.fixture
def slow() -> Iterator[Run]:
    """A run in which the steps of w0 seem to take a second each."""
    run = Run(is_slow=True)
    yield run
    run.stop()


def request_of(
    length: int, num_tokens: int = 20, n: int = 1, *, stops: bool = False
) -> ParsedRequest:
    """Return a request. stops: it may end earlier, as far as the scheduler knows."""
    choices = tuple(
        make_choice(
            index=index,
            choice=index,
            max_new_tokens=num_tokens,
            stop_token_ids=frozenset({END} if stops else ()),
        )
        for index in range(n)
    )
    return make_request(
        Endpoint.COMPLETIONS, [Prompt(tuple(range(1, length + 1)))], n=n, choices=choices
    )


def expected_tokens(length: int, num_tokens: int = 20) -> tuple[int, ...]:
    tokens = list(range(1, length + 1))
    for _ in range(num_tokens):
        tokens.append((sum(tokens) * 31 + len(tokens)) % 256)
    return tuple(tokens[length:])


def assert_texts(run: Run, lengths: list[int]) -> None:
    assert sorted(run.done) == list(range(len(lengths)))
    for key, length in enumerate(lengths):
        completion = run.done[key]
        assert completion.error is None
        assert {choice.tokens for choice in completion.choices} == {expected_tokens(length)}


def count_rows(lengths: list[int], n: int = 1, num_tokens: int = 20) -> int:
    """Return the rows that requests run if nothing is computed twice: the prompt once, and each
    token that a choice generates but the first choice's last."""
    return sum(length + n * num_tokens - 1 for length in lengths)


def test_requests_wait_for_the_first_worker(run: Run) -> None:
    run.start(request_of(5))
    run.wait_for(lambda: run.engine.stats.scheduler.num_waiting == 1)
    run.tiers.join("w0")
    run.wait_for(lambda: len(run.done) == 1)
    assert_texts(run, [5])


def test_a_request_waits_for_a_worker_as_large_as_one_of_an_earlier_life() -> None:
    run = Run(sizes=WorkerSizes({PAGES * GEOMETRY.page_bytes: time.time()}))
    try:
        run.tiers.join("small", pages=4)
        run.start(request_of(5), request_of(300), request_of(5 * 2000))
        run.wait_for(lambda: len(run.done) == 2)
        assert isinstance(run.done[2].error, InvalidRequest)
        run.wait_for(lambda: run.engine.stats.scheduler.num_waiting == 1)
        run.tiers.join("large")
        run.wait_for(lambda: len(run.done) == 3)
        assert run.done[1].choices[0].tokens == expected_tokens(300)
    finally:
        run.stop()


def test_a_request_that_waits_in_vain_for_a_larger_worker_ends_when_its_day_is_over() -> None:
    clock = FakeClock()
    run = Run(sizes=WorkerSizes({PAGES * GEOMETRY.page_bytes: clock.now}, clock=clock))
    try:
        run.tiers.join("small", pages=4)
        run.start(request_of(300), request_of(5))
        run.wait_for(lambda: 1 in run.done)
        assert 0 not in run.done
        clock.now += COUNTED_S
        run.wait_for(lambda: 0 in run.done)
        assert "at most 128 fit" in str(run.done[0].error)
    finally:
        run.stop()


def test_what_came_before_the_first_worker_and_is_too_large_for_it_is_refused_then(
    run: Run,
) -> None:
    run.start(request_of(300), request_of(5))
    run.wait_for(lambda: run.engine.stats.scheduler.num_waiting == 2)
    run.tiers.join("small", pages=4)
    run.wait_for(lambda: len(run.done) == 2)
    assert isinstance(run.done[0].error, InvalidRequest)
    assert run.done[1].error is None


def test_what_a_lost_worker_held_is_computed_again_with_all_its_tokens(run: Run) -> None:
    lengths = [5, 40, 7, 33, 12, 70]
    run.tiers.join("w0")
    run.tiers.failing = lambda plan: run.tiers.dead.add("w0") if len(run.tiers.steps) > 9 else None
    run.start(*(request_of(length, n=3) for length in lengths))
    run.wait_for(lambda: bool(run.tiers.unanswered))
    assert len(run.done) < len(lengths)
    run.tiers.failing = lambda plan: None
    run.tiers.lose("w0")
    run.tiers.join("w1")
    run.wait_for(lambda: len(run.done) == len(lengths))
    assert_texts(run, lengths)
    run.wait_for(lambda: run.engine.stats.tokens_out == 6 * 3 * 20)
    assert run.count_recomputed() == run.tiers.num_rows - count_rows(lengths, n=3) > 0


def test_what_is_recomputed_for_want_of_room_is_counted(run: Run) -> None:
    run.tiers.join("w0", pages=24)
    short, long = [3] * 40, [40] * 12
    run.start(*(request_of(length, 1, stops=True) for length in short))
    run.wait_for(lambda: len(run.done) == len(short))
    assert run.count_recomputed() == 0
    for key, length in enumerate(long, start=len(short)):
        run.engine.submit(key, request_of(length, 200, n=2, stops=True))
    run.wait_for(lambda: len(run.done) == len(short) + len(long))
    run.wait_for(lambda: run.engine.stats.scheduler.kv_used_bytes == 0)
    needed = count_rows(short, num_tokens=1) + count_rows(long, n=2, num_tokens=200)
    assert run.count_recomputed() == run.tiers.num_rows - needed > 0
    assert run.engine.stats.scheduler.recomputed_tokens == run.count_recomputed()


def test_the_queue_is_counted_by_class(run: Run) -> None:
    def count_waiting(name: str) -> float | None:
        return run.registry.get_sample_value("glinthawk_waiting_sequences", {"class": name})

    job = Flow("batch_1")
    for key in range(5):
        run.engine.submit(key, request_of(5, n=2), flow=INTERACTIVE if key < 2 else job)
    run.start()
    run.wait_for(lambda: count_waiting("batch") == 6)
    assert count_waiting("interactive") == 4
    assert run.registry.get_sample_value("glinthawk_queue_depth") == 10
    run.tiers.join("w0")
    run.wait_for(lambda: count_waiting("batch") == count_waiting("interactive") == 0)
    run.wait_for(lambda: len(run.done) == 5)


def test_a_late_result_of_a_lost_worker_changes_nothing(run: Run) -> None:
    run.tiers.join("w0")
    run.tiers.dead.add("w0")
    run.start(request_of(5))
    run.wait_for(lambda: bool(run.tiers.unanswered))
    run.tiers.lose("w0")
    run.wait_for_state("w0", WorkerState.LOST)
    (late,) = run.tiers.unanswered
    for sequence in late.sequences.tolist():
        wrong = StepResult(late.lane, late.step, (SampledToken(sequence, 99),))
        run.engine.take_result(wrong)
    run.engine.step_failed(late.lane, late.step, StateLost("too late"))
    run.tiers.join("w1")
    run.wait_for(lambda: len(run.done) == 1)
    assert_texts(run, [5])
    assert run.tiers.resets == []


@pytest.mark.parametrize(
    "error",
    [StateLost("gone"), CapacityExceeded("full"), InvariantBroken("bug"), PeerUnavailable("away")],
)
def test_a_failed_step_resets_its_worker_and_the_texts_stay_the_same(
    run: Run, error: GlinthawkError
) -> None:
    lengths = [5, 40, 7]
    failed: list[int] = []

    def fail_once(plan: StepPlan) -> GlinthawkError | None:
        if len(run.tiers.steps) == 8 and not failed:
            failed.append(plan.step)
            return error
        return None

    run.tiers.failing = fail_once
    run.tiers.join("w0")
    run.start(*(request_of(length) for length in lengths))
    run.wait_for(lambda: len(run.done) == len(lengths))
    assert_texts(run, lengths)
    assert run.tiers.resets == [("w0", 2)]
    assert {epoch for _, epoch in run.tiers.steps} == {2, 3}


def test_a_request_whose_steps_always_fail_ends_and_later_ones_run(run: Run) -> None:
    poisoned = 111

    def fail(plan: StepPlan) -> GlinthawkError | None:
        has_poison = int(plan.counts.max(initial=0)) == poisoned
        return InvariantBroken("a row of evil") if has_poison else None

    run.tiers.failing = fail
    run.tiers.join("w0")
    run.start(request_of(poisoned))
    run.wait_for(lambda: 0 in run.done)
    error = run.done[0].error
    assert isinstance(error, InvariantBroken)
    assert f"{MOST_FAILURES} failed steps" in str(error)
    assert "a row of evil" in str(error)
    assert len(run.tiers.resets) == MOST_FAILURES
    run.engine.submit(1, request_of(5))
    run.wait_for(lambda: 1 in run.done)
    assert run.done[1].error is None


def test_lost_machines_are_not_counted_as_failures(run: Run) -> None:
    left = [10 * MOST_FAILURES]

    def fail(plan: StepPlan) -> GlinthawkError | None:
        left[0] -= 1
        return PeerUnavailable("away") if left[0] > 0 else None

    run.tiers.failing = fail
    run.tiers.join("w0")
    run.start(request_of(5))
    run.wait_for(lambda: len(run.done) == 1)
    assert_texts(run, [5])


def test_a_drain_moves_everything_by_its_deadline_and_can_be_taken_back(run: Run) -> None:
    run.tiers.join("w0")
    run.tiers.dead.add("w0")
    run.start(request_of(5))
    run.wait_for(lambda: bool(run.tiers.unanswered))
    run.wait_for_state("w0", WorkerState.ACTIVE)
    run.engine.drain("w0", 0.05)
    run.wait_for_state("w0", WorkerState.DRAINED)
    run.tiers.join("w1")
    run.wait_for(lambda: len(run.done) == 1)
    assert_texts(run, [5])
    assert ("w1", 4) in run.tiers.steps
    run.tiers.dead.clear()
    assert run.tiers.resets == [("w0", 2)], "it held what nobody needs any more"
    run.engine.cancel_drain("w0")
    run.wait_for_state("w0", WorkerState.ACTIVE)
    assert [name for name, _ in run.tiers.resets] == ["w0", "w0"]


def test_a_worker_that_wants_to_end_is_let_go_once_it_is_empty(run: Run) -> None:
    run.tiers.join("w0")
    run.tiers.dead.add("w0")
    run.start(request_of(5))
    run.wait_for(lambda: bool(run.tiers.unanswered))
    run.engine.worker_leaves("w0", 60.0)
    run.engine.worker_leaves("w7", 60.0)
    run.wait_for_state("w0", WorkerState.DRAINING)
    assert run.tiers.released == []
    run.tiers.dead.clear()
    for plan in run.tiers.unanswered:
        run.tiers.answer(plan, 2)
    run.wait_for(lambda: run.tiers.released == ["w0"])
    assert_texts(run, [5])
    run.engine.worker_leaves("w0", 60.0)
    run.wait_for(lambda: run.tiers.released == ["w0", "w0"])


def test_a_worker_without_room_for_a_page_is_passed_over(run: Run) -> None:
    run.tiers.join("tiny", 0)
    run.tiers.join("w0")
    run.start(request_of(5))
    run.wait_for(lambda: len(run.done) == 1)
    assert_texts(run, [5])
    run.wait_for_state("tiny", WorkerState.LOST)


def test_draining_an_unknown_worker_is_refused(run: Run) -> None:
    run.tiers.join("w0")
    run.start()
    run.wait_for_state("w0", WorkerState.ACTIVE)
    with pytest.raises(NotFound, match="w0"):
        run.engine.drain("w7", 1.0)
    with pytest.raises(NotFound, match="w7"):
        run.engine.cancel_drain("w7")


def test_a_request_that_only_a_lost_worker_could_hold_waits_for_it(run: Run) -> None:
    run.tiers.join("large", PAGES)
    run.tiers.join("small", 2)
    run.start()
    run.wait_for_state("small", WorkerState.ACTIVE)
    run.tiers.lose("large")
    run.engine.submit(0, request_of(300))
    run.engine.submit(1, request_of(5))
    run.wait_for(lambda: 1 in run.done)
    assert 0 not in run.done
    run.tiers.join("large", PAGES)
    run.wait_for(lambda: 0 in run.done)
    assert_texts(run, [300, 5])


def test_a_cancelled_request_leaves_nothing_behind_when_its_worker_is_lost(run: Run) -> None:
    run.tiers.join("w0")
    run.tiers.dead.add("w0")
    run.start(request_of(5), request_of(6))
    run.wait_for(lambda: bool(run.tiers.unanswered))
    run.engine.cancel(0)
    run.tiers.lose("w0")
    run.tiers.join("w1")
    run.wait_for(lambda: 1 in run.done)
    run.wait_for(lambda: run.engine.stats.scheduler.kv_used_bytes == 0)
    assert 0 not in run.done
    assert not run.scheduler.has_work()


LONG = 400


def begin_to_drain(run: Run, lengths: list[int], deadline_s: float) -> None:
    """Have requests run on w0 alone, then let w1 join and w0 drain, while they stand still."""
    go_on = threading.Event()

    def stand_still(plan: StepPlan) -> None:
        if len(run.tiers.steps) > 12:
            go_on.wait(WAIT_S)

    run.tiers.failing = stand_still
    run.tiers.join("w0", 10 * PAGES)
    run.start(*(request_of(length, LONG) for length in lengths))
    run.wait_for(lambda: len(run.tiers.steps) > 12)
    run.tiers.join("w1", 10 * PAGES)
    run.engine.drain("w0", deadline_s)
    go_on.set()


def assert_long_texts(run: Run, lengths: list[int]) -> None:
    for key, length in enumerate(lengths):
        assert run.done[key].choices[0].tokens == expected_tokens(length, LONG)


def test_a_drain_copies_what_would_not_end_in_time_and_recomputes_nothing(slow: Run) -> None:
    lengths = [5, 40, 7]
    begin_to_drain(slow, lengths, deadline_s=300.0)
    slow.wait_for_state("w0", WorkerState.DRAINED)
    slow.wait_for(lambda: len(slow.done) == len(lengths))
    assert_long_texts(slow, lengths)
    assert sorted(order.sequence for order in slow.tiers.copies) == [1, 2, 3]
    slow.wait_for(lambda: slow.engine.stats.scheduler.kv_used_bytes == 0)
    assert slow.engine.stats.scheduler.recomputed_tokens == 0
    assert slow.engine.stats.moved_bytes == 300


def test_what_ends_in_time_is_not_copied(slow: Run) -> None:
    lengths = [5, 40]
    begin_to_drain(slow, lengths, deadline_s=10_000.0)
    slow.wait_for_state("w0", WorkerState.DRAINED)
    assert_long_texts(slow, lengths)
    assert slow.tiers.copies == []
    assert {worker for worker, _ in slow.tiers.steps} == {"w0"}


def test_a_sequence_whose_copy_fails_goes_on_and_is_recomputed_at_the_deadline(slow: Run) -> None:
    lengths = [5, 40]
    slow.tiers.copying = lambda order: CapacityExceeded("full")
    begin_to_drain(slow, lengths, deadline_s=200.0)
    slow.wait_for_state("w0", WorkerState.DRAINED)
    slow.wait_for(lambda: len(slow.done) == len(lengths))
    assert_long_texts(slow, lengths)
    assert len(slow.tiers.copies) == len(lengths), "the same sequence is not sent there again"
    slow.wait_for(lambda: slow.engine.stats.scheduler.kv_used_bytes == 0)
    assert slow.engine.stats.scheduler.recomputed_tokens > 0
    assert slow.engine.stats.scheduler.moved_tokens == 0


def test_a_drain_taken_back_between_copies_leaves_every_sequence_where_its_kv_is(
    slow: Run,
) -> None:
    lengths = [5, 40, 7]
    held: list[MoveOrder] = []

    def take_back(order: MoveOrder) -> bool:
        held.append(order)
        slow.engine.cancel_drain("w0")
        return True

    slow.tiers.holding = take_back
    begin_to_drain(slow, lengths, deadline_s=300.0)
    slow.wait_for(lambda: len(slow.done) == 1)
    assert len(held) == 2
    for order in held:
        slow.tiers.copy(order, 2, 3)
    slow.wait_for(lambda: len(slow.done) == len(lengths))
    assert_long_texts(slow, lengths)
    slow.wait_for(lambda: slow.engine.stats.scheduler.kv_used_bytes == 0)
    assert slow.engine.stats.scheduler.recomputed_tokens == 0
    assert slow.tiers.resets == []
    assert {"w0", "w1"} <= {worker for worker, _ in slow.tiers.steps}


@pytest.mark.parametrize("victim", ["w0", "w1"])
def test_a_machine_lost_in_the_middle_of_a_copy_costs_time_only(slow: Run, victim: str) -> None:
    lengths = [5, 40, 7]
    held: list[MoveOrder] = []

    def lose(order: MoveOrder) -> bool:
        if victim in slow.tiers.dead:
            return order.target == victim
        held.append(order)
        slow.tiers.lose(victim)
        slow.engine.copy_ended(CopyEnded(order, 100))
        slow.tiers.join("w2", 10 * PAGES)
        return True

    slow.tiers.holding = lose
    begin_to_drain(slow, lengths, deadline_s=300.0)
    slow.wait_for(lambda: len(slow.done) == len(lengths))
    assert_long_texts(slow, lengths)
    assert len(held) == 1
    slow.stop()
    assert slow.scheduler.stats().kv_used_bytes == 0


def test_a_worker_that_drained_under_an_earlier_gateway_goes_on_draining(run: Run) -> None:
    run.start()
    entry = WorkerEntry("w0", PAGES * GEOMETRY.page_bytes, 2, "one")
    run.engine.worker_joined(entry, drain_s=600.0)
    run.engine.submit(0, request_of(5))
    run.wait_for_state("w0", WorkerState.DRAINED)
    assert run.tiers.steps == []
    run.tiers.join("w1")
    run.wait_for(lambda: len(run.done) == 1)
    assert_texts(run, [5])
