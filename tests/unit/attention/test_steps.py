import numpy as np

from glinthawk.attention.pages import Growth, PageAllocator
from glinthawk.attention.steps import ENDED_LANES, LiveStep, StepBook, build_live_step
from glinthawk.core.ids import LaneId, SequenceId
from glinthawk.core.step import StepKind, StepPlan

NUM_LAYERS = 2
NONE = np.zeros(0, np.uint32)


def make_step(
    kind: StepKind, lane: int, step: int, sequences: list[int], *, count: int = 1
) -> LiveStep:
    allocator = PageAllocator(64, 32)
    growth = [Growth(SequenceId(sequence), 0, count) for sequence in sequences]
    assert allocator.apply(growth=growth) == ()
    plan = StepPlan(
        kind=kind,
        lane=LaneId(lane),
        step=step,
        worker="w",
        sequences=np.array(sequences, np.uint64),
        starts=np.zeros(len(sequences), np.uint32),
        counts=np.full(len(sequences), count, np.uint32),
        samples=np.ones(len(sequences), np.bool_),
        tokens=NONE,
    )
    return build_live_step(plan, allocator)


def released(*sequences: int) -> set[SequenceId]:
    return {SequenceId(sequence) for sequence in sequences}


def test_a_decode_step_lives_until_the_next_of_its_lane() -> None:
    book = StepBook(NUM_LAYERS)
    book.add(make_step(StepKind.DECODE, 1, 5, [1, 2]))
    assert book.find(1, 5) is not None
    book.add(make_step(StepKind.DECODE, 1, 8, [1, 2]))
    assert book.find(1, 5) is None
    assert book.find(1, 8) is not None
    assert book.is_composed(1, 5)
    assert not book.is_composed(1, 9)
    assert not book.is_composed(2, 1)


def test_a_prefill_step_lives_on_until_every_layer_is_stored() -> None:
    book = StepBook(NUM_LAYERS)
    prefill = make_step(StepKind.PREFILL, 1, 5, [1], count=3)
    book.add(prefill)
    book.add(make_step(StepKind.PREFILL, 1, 8, [2], count=3))
    assert book.find(1, 5) is prefill
    assert book.awaits_rows_of(released(1))
    assert not book.mark_stored(prefill, 0)
    assert book.mark_stored(prefill, 1)
    assert not book.mark_stored(prefill, 1)
    assert book.find(1, 5) is None
    assert not book.awaits_rows_of(released(1))


def test_released_rows_are_not_written_and_the_others_are() -> None:
    book = StepBook(NUM_LAYERS)
    prefill = make_step(StepKind.PREFILL, 1, 5, [1, 2], count=3)
    book.add(prefill)
    assert book.forget(released(1)) == []
    assert prefill.kept is not None
    assert prefill.kept.tolist() == [False] * 3 + [True] * 3
    assert prefill.lost_sequence() == 1


def test_of_a_lane_without_sequences_only_the_last_step_is_known() -> None:
    book = StepBook(NUM_LAYERS)
    book.add(make_step(StepKind.DECODE, 1, 5, [1, 2]))
    assert book.forget(released(1)) == []
    assert book.find(1, 5) is not None
    assert book.forget(released(2)) == [1]
    assert book.find(1, 5) is None
    assert book.is_composed(1, 5)
    assert not book.is_composed(1, 6)
    book.add(make_step(StepKind.DECODE, 1, 9, [3]))
    assert book.find(1, 9) is not None
    assert book.is_composed(1, 9)


def test_lanes_that_come_and_go_leave_nothing_behind() -> None:
    book = StepBook(NUM_LAYERS)
    step = make_step(StepKind.DECODE, 0, 1, [1])
    for lane in range(1, ENDED_LANES + 50):
        step.lane, step.step, step.members = lane, lane, released(1)
        book.add(step)
        assert book.forget(released(1)) == [lane]
    assert not book.is_composed(1, 1)
    assert book.is_composed(ENDED_LANES + 49, ENDED_LANES + 49)
