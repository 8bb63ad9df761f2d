"""Workers in and out of the real scheduler."""

from dataclasses import replace

import pytest

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.ids import SequenceId
from glinthawk.core.sampling import SamplingParams
from glinthawk.core.step import SequenceStart
from glinthawk.errors import NotFound
from glinthawk.gateway.roster import WorkerEntry
from glinthawk.gateway.workers import (
    MOST_ABSENT,
    EndedDrains,
    WorkerFigures,
    WorkerState,
    Workforce,
)
from glinthawk.scheduler import Scheduler, SchedulerConfig, SequenceGroup

GEOMETRY = KVGeometry(2, 4, 2, 32, DType.FLOAT16, (None, None))
ENTRY = WorkerEntry("w0", 20 * GEOMETRY.page_bytes, epoch=5, instance="one")
NOTHING = EndedDrains((), ())


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler(SchedulerConfig(geometry=GEOMETRY))


@pytest.fixture
def workers(scheduler: Scheduler) -> Workforce:
    workers = Workforce(scheduler)
    workers.join(ENTRY)
    return workers


def add_sequence(scheduler: Scheduler, number: int = 1) -> None:
    start = SequenceStart(SequenceId(number), (1, 2, 3), 3, SamplingParams())
    scheduler.add(SequenceGroup((start,), 10))


def figures(workers: Workforce, name: str = "w0") -> WorkerFigures:
    return next(item for item in workers.figures() if item.name == name)


def state(workers: Workforce, name: str = "w0") -> WorkerState:
    return figures(workers, name).state


def test_figures_show_what_a_worker_holds(scheduler: Scheduler, workers: Workforce) -> None:
    add_sequence(scheduler)
    scheduler.plan()
    shown = figures(workers)
    assert shown == WorkerFigures(
        "w0", WorkerState.ACTIVE, GEOMETRY.page_bytes, 20 * GEOMETRY.page_bytes, 1, "one"
    )


def test_a_lost_worker_gives_its_sequences_back_and_may_return(
    scheduler: Scheduler, workers: Workforce
) -> None:
    add_sequence(scheduler)
    scheduler.plan()
    workers.lose("w0")
    workers.lose("w0")
    assert state(workers) is WorkerState.LOST
    assert scheduler.num_waiting == 1
    assert scheduler.plan() == []
    workers.join(replace(ENTRY, epoch=9))
    assert workers.epoch_of("w0") == 9
    assert [plan.worker for plan in scheduler.plan()] == ["w0"]


def test_joining_again_without_news_of_the_loss_is_a_loss_too(
    scheduler: Scheduler, workers: Workforce
) -> None:
    add_sequence(scheduler)
    (plan,) = scheduler.plan()
    workers.join(replace(ENTRY, epoch=9, instance="two"))
    assert scheduler.find_step(plan.lane, plan.step) is None
    assert scheduler.num_waiting == 1


def test_a_draining_worker_gets_nothing_new_and_is_drained_when_empty(
    scheduler: Scheduler, workers: Workforce
) -> None:
    workers.drain("w0", until=100.0)
    add_sequence(scheduler)
    assert scheduler.plan() == []
    assert state(workers) is WorkerState.DRAINING
    workers.settle(now=0.0)
    assert state(workers) is WorkerState.DRAINED


def test_what_still_runs_at_the_deadline_waits_for_another_worker(
    scheduler: Scheduler, workers: Workforce
) -> None:
    add_sequence(scheduler)
    scheduler.plan()
    workers.drain("w0", until=100.0)
    workers.settle(now=99.0)
    assert state(workers) is WorkerState.DRAINING
    assert figures(workers).num_sequences == 1
    workers.settle(now=100.0)
    assert state(workers) is WorkerState.DRAINED
    assert scheduler.num_waiting == 1
    scheduler.check_integrity()


def test_one_that_asked_to_end_is_named_once_when_it_is_empty(
    scheduler: Scheduler, workers: Workforce
) -> None:
    add_sequence(scheduler)
    scheduler.plan()
    workers.drain("w0", until=100.0, then_ends=True)
    assert workers.settle(now=99.0) == NOTHING
    assert workers.settle(now=100.0) == EndedDrains(("w0",), ())
    assert workers.settle(now=101.0) == NOTHING
    workers.drain("w0", until=100.0, then_ends=True)
    assert workers.settle(now=101.0) == EndedDrains(("w0",), ())


def test_one_that_is_cut_short_is_named_once_to_be_emptied_and_stays_drained(
    scheduler: Scheduler, workers: Workforce
) -> None:
    add_sequence(scheduler)
    scheduler.plan()
    workers.drain("w0", until=100.0)
    assert workers.settle(now=99.0) == NOTHING
    assert workers.settle(now=100.0) == EndedDrains((), (ENTRY,))
    assert workers.settle(now=101.0) == NOTHING
    workers.lose("w0")
    workers.join(replace(ENTRY, epoch=9))
    assert workers.settle(now=102.0) == NOTHING
    assert state(workers) is WorkerState.DRAINED
    assert scheduler.plan() == []


def test_one_that_ends_by_itself_is_not_emptied(scheduler: Scheduler, workers: Workforce) -> None:
    workers.drain("w0", until=100.0)
    assert workers.settle(now=0.0) == NOTHING
    assert state(workers) is WorkerState.DRAINED


def test_a_drain_taken_back_in_time_leaves_the_sequences_where_they_are(
    scheduler: Scheduler, workers: Workforce
) -> None:
    add_sequence(scheduler, 1)
    (first,) = scheduler.plan()
    workers.drain("w0", until=100.0)
    assert workers.cancel_drain("w0") is None
    assert state(workers) is WorkerState.ACTIVE
    assert scheduler.find_step(first.lane, first.step) is not None


def test_a_drained_worker_must_begin_anew_to_come_back(workers: Workforce) -> None:
    workers.drain("w0", until=0.0)
    workers.settle(now=0.0)
    assert workers.cancel_drain("w0") == ENTRY
    workers.join(replace(ENTRY, epoch=9))
    assert state(workers) is WorkerState.ACTIVE


@pytest.mark.parametrize(
    ("instance", "expected"), [("one", WorkerState.DRAINING), ("two", WorkerState.ACTIVE)]
)
def test_a_drain_outlasts_a_reset_of_the_process_but_not_the_process(
    workers: Workforce, instance: str, expected: WorkerState
) -> None:
    workers.drain("w0", until=100.0)
    workers.lose("w0")
    workers.join(replace(ENTRY, epoch=9, instance=instance))
    assert state(workers) is expected


def test_only_so_many_workers_that_are_gone_are_shown(workers: Workforce) -> None:
    for number in range(MOST_ABSENT + 10):
        name = f"pod-{number}"
        workers.join(replace(ENTRY, name=name))
        workers.lose(name)
    names = [item.name for item in workers.figures()]
    assert len(names) == MOST_ABSENT + 1
    assert names[-1] == f"pod-{MOST_ABSENT + 9}"
    assert "w0" in names


def test_an_unknown_worker_is_named(workers: Workforce) -> None:
    with pytest.raises(NotFound, match=r"'w7'.*w0"):
        workers.drain("w7", until=0.0)
    with pytest.raises(NotFound, match="w7"):
        workers.cancel_drain("w7")
