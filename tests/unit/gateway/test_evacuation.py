"""Which sequences leave a draining worker, on the real scheduler, turn by turn."""

from collections.abc import Iterator

import numpy as np
import pytest

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.ids import SequenceId
from glinthawk.core.sampling import SamplingParams
from glinthawk.core.step import SampledToken, SequenceStart, StepPlan, StepResult
from glinthawk.errors import PeerUnavailable
from glinthawk.gateway.evacuation import COPIES_AT_ONCE, MOST_FAILURES, Evacuation
from glinthawk.gateway.events import CopyEnded
from glinthawk.gateway.roster import WorkerEntry
from glinthawk.gateway.workers import Workforce
from glinthawk.scheduler import MoveOrder, Scheduler, SchedulerConfig, SequenceGroup

GEOMETRY = KVGeometry(2, 4, 2, 32, DType.FLOAT16, (None, None))
PAGES = 2000
STEP_S = 1.0
EPOCHS = {"w0": 4, "w1": 5}


class Machine:
    """An engine in which a step of one lane takes a second, and nobody answers copies."""

    def __init__(self, num_sequences: int, num_tokens: int, *, pages: int = PAGES) -> None:
        self.scheduler = Scheduler(
            SchedulerConfig(geometry=GEOMETRY, min_lane_rows=1, max_sequence_length=4000)
        )
        self.workers = Workforce(self.scheduler)
        self.evacuation = Evacuation(self.scheduler, self.workers, self)
        self.now = 0.0
        self.orders: list[MoveOrder] = []
        self.timeouts: list[float] = []
        self.flying: list[StepPlan] = []
        self.join("w0", PAGES)
        for number in range(1, num_sequences + 1):
            start = SequenceStart(SequenceId(number), (1, 2, 3), 3, SamplingParams())
            self.scheduler.add(SequenceGroup((start,), num_tokens, num_tokens))
        while self.scheduler.stats().num_decoding < num_sequences or len(self.flying) < 2:
            self.turn()
        self.join("w1", pages)

    def join(self, name: str, pages: int) -> None:
        self.workers.join(WorkerEntry(name, pages * GEOMETRY.page_bytes, EPOCHS[name], "one"))

    def copy_pages(
        self, order: MoveOrder, *, source_epoch: int, target_epoch: int, timeout_s: float
    ) -> None:
        assert (source_epoch, target_epoch) == (EPOCHS[order.source], EPOCHS[order.target])
        self.orders.append(order)
        self.timeouts.append(timeout_s)

    def turn(self) -> None:
        """Take one step's result, if one is in flight, and plan."""
        if self.flying:
            plan = self.flying.pop(0)
            self.now += STEP_S
            sampled = [SampledToken(item, 9) for item in plan.sequences[plan.samples].tolist()]
            self.scheduler.commit(StepResult(plan.lane, plan.step, tuple(sampled)))
        self.workers.settle(self.now)
        self.evacuation.begin_copies(self.now)
        self.flying += self.scheduler.plan()
        self.scheduler.check_integrity()

    def turns(self, number: int) -> None:
        for _ in range(number):
            self.turn()

    def end(self, order: MoveOrder, *, fails: bool = False) -> None:
        error = PeerUnavailable("no way") if fails else None
        self.evacuation.end_copy(CopyEnded(order, 7, error))


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(6, 1000)
    yield machine
    machine.scheduler.check_integrity()


def test_sequences_of_alternating_lanes_all_leave_a_few_at_a_time(machine: Machine) -> None:
    assert len(machine.scheduler.stats().lane_rows) == 2
    machine.workers.drain("w0", machine.now + 500.0)
    ended = 0
    for _ in range(60):
        machine.turn()
        assert len(machine.orders) - ended <= COPIES_AT_ONCE
        for order in machine.orders[ended:]:
            machine.end(order)
            ended += 1
    assert sorted(order.sequence for order in machine.orders) == [1, 2, 3, 4, 5, 6]
    assert {order.target for order in machine.orders} == {"w1"}
    assert machine.evacuation.moved_bytes == 6 * 7
    assert machine.scheduler.worker_load("w1").num_sequences == 6
    assert not dict(machine.workers.draining()), "it is empty, and so drained"


def test_a_copy_may_take_the_time_that_is_left_and_no_longer(machine: Machine) -> None:
    machine.workers.drain("w0", machine.now + 30.0)
    machine.turns(10)
    assert machine.orders
    assert all(0 < timeout_s < 30.0 for timeout_s in machine.timeouts)


def test_what_would_end_in_half_of_the_time_stays(machine: Machine) -> None:
    machine.workers.drain("w0", machine.now + 9000.0)
    machine.turns(50)
    assert machine.orders == []


def test_nothing_is_moved_without_a_drain(machine: Machine) -> None:
    machine.turns(50)
    assert machine.orders == []


def test_without_room_elsewhere_a_sequence_stays_and_is_looked_at_again() -> None:
    machine = Machine(6, 1000, pages=40)
    machine.workers.drain("w0", machine.now + 500.0)
    machine.turns(40)
    held = machine.orders.copy()
    assert len(held) == 1, "one sequence of 1,003 tokens fits into 40 pages of 32"
    machine.end(held[0])
    machine.scheduler.abort([held[0].sequence])
    machine.turns(40)
    assert len(machine.orders) == 2


def test_a_target_to_which_copies_fail_is_not_tried_for_ever(machine: Machine) -> None:
    machine.workers.drain("w0", machine.now + 500.0)
    ended = 0
    for _ in range(80):
        machine.turn()
        for order in machine.orders[ended:]:
            machine.end(order, fails=True)
            ended += 1
    assert MOST_FAILURES <= len(machine.orders) < MOST_FAILURES + COPIES_AT_ONCE
    assert machine.scheduler.stats().num_moving == 0
    assert np.sum(machine.scheduler.stats().lane_rows) == 6


def test_a_drain_that_is_taken_back_begins_no_more_copies(machine: Machine) -> None:
    machine.workers.drain("w0", machine.now + 500.0)
    machine.turns(10)
    begun = machine.orders.copy()
    assert len(begun) == COPIES_AT_ONCE
    machine.workers.cancel_drain("w0")
    for order in begun:
        machine.end(order)
    machine.turns(30)
    assert machine.orders == begun
    assert machine.scheduler.worker_load("w0").num_sequences == 6 - len(begun)
