import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from glinthawk.attention.pages import Growth, PageAllocator, PageCopy
from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.ids import SequenceId
from glinthawk.core.step import Fork
from glinthawk.errors import InvariantBroken, StateLost

A, B, C = SequenceId(1), SequenceId(2), SequenceId(3)


def allocator_with(num_pages: int, *growth: Growth) -> PageAllocator:
    allocator = PageAllocator(num_pages, 32)
    assert allocator.apply(growth=growth) == ()
    return allocator


def test_a_sequence_holds_its_tokens_rounded_up_to_pages() -> None:
    allocator = allocator_with(10, Growth(A, 0, 33))
    assert allocator.num_used == 2
    assert allocator.page_table(A).tolist() == [0, 1]
    assert allocator.page_table(A).dtype == np.int32


def test_a_released_sequence_frees_its_pages_at_once() -> None:
    allocator = allocator_with(2, Growth(A, 0, 64))
    assert allocator.apply(releases=[A], growth=[Growth(B, 0, 64)]) == ()
    assert allocator.num_tokens(A) == 0
    assert allocator.num_tokens(B) == 64


def test_a_fork_shares_whole_pages_and_copies_the_partial_one() -> None:
    allocator = allocator_with(10, Growth(A, 0, 40))
    copies = allocator.apply(forks=[Fork(A, B, 36)])
    assert copies == (PageCopy(1, 2),)
    assert allocator.page_table(B).tolist() == [0, 2]
    assert allocator.num_used == 3


def test_a_shared_page_lives_until_its_last_holder_is_released() -> None:
    allocator = allocator_with(10, Growth(A, 0, 64))
    allocator.apply(forks=[Fork(A, B, 64)])
    allocator.apply(releases=[A])
    assert allocator.num_used == 2
    allocator.apply(releases=[B])
    assert allocator.num_free == 10


def test_what_does_not_fit_changes_nothing() -> None:
    allocator = allocator_with(4, Growth(A, 0, 64), Growth(B, 0, 32))
    wanted = [Growth(B, 32, 32), Growth(C, 0, 64)]
    assert allocator.apply(releases=[A], forks=[Fork(B, A, 31)], growth=wanted) is None
    assert allocator.page_table(A).tolist() == [0, 1]
    assert allocator.num_tokens(B) == 32
    assert allocator.num_tokens(C) == 0
    allocator.check_integrity()


def test_applying_the_same_again_changes_nothing() -> None:
    allocator = allocator_with(10, Growth(A, 0, 40), Growth(C, 0, 5))
    step = {
        "releases": [C],
        "forks": [Fork(A, B, 36)],
        "growth": [Growth(A, 40, 1), Growth(B, 36, 1)],
    }
    assert allocator.apply(**step) == (PageCopy(1, 2),)  # type: ignore[arg-type]
    before = [allocator.page_table(s).tolist() for s in (A, B)]
    assert allocator.apply(**step) == ()  # type: ignore[arg-type]
    assert [allocator.page_table(s).tolist() for s in (A, B)] == before
    assert allocator.sequences == (A, B)


def test_writing_again_into_a_shared_page_copies_it_first() -> None:
    allocator = allocator_with(10, Growth(A, 0, 64))
    allocator.apply(forks=[Fork(A, B, 64)])
    assert allocator.apply(growth=[Growth(B, 40, 4)]) == (PageCopy(1, 2),)
    assert allocator.page_table(A).tolist() == [0, 1]
    assert allocator.page_table(B).tolist() == [0, 2]
    assert allocator.num_tokens(B) == 64


def test_a_sequence_released_and_started_again_in_one_step_starts_anew() -> None:
    allocator = allocator_with(10, Growth(A, 0, 100))
    assert allocator.apply(releases=[A], growth=[Growth(A, 0, 10)]) == ()
    assert allocator.num_tokens(A) == 10
    assert allocator.num_used == 1


def test_a_gap_before_the_rows_is_lost_state() -> None:
    allocator = allocator_with(10, Growth(A, 0, 5))
    with pytest.raises(StateLost, match="holds 5 tokens, rows start at 6"):
        allocator.apply(growth=[Growth(A, 6, 1)])


@pytest.mark.parametrize("fork", [Fork(B, C, 1), Fork(A, C, 6)])
def test_a_fork_of_what_is_not_there_is_lost_state(fork: Fork) -> None:
    allocator = allocator_with(10, Growth(A, 0, 5))
    with pytest.raises(StateLost):
        allocator.apply(releases=[A], forks=[fork])
    assert allocator.num_tokens(A) == 5


def test_tokens_are_located_in_their_pages() -> None:
    allocator = allocator_with(10, Growth(B, 0, 1), Growth(A, 0, 70))
    pages, slots = allocator.locate(A, 30, 66)
    assert pages.tolist() == [1] * 2 + [2] * 32 + [3] * 2
    assert slots.tolist() == [30, 31, *range(32), 0, 1]
    with pytest.raises(StateLost):
        allocator.locate(A, 60, 71)
    with pytest.raises(StateLost):
        allocator.page_table(C)


def test_integrity_check_notices_a_lost_page() -> None:
    allocator = allocator_with(4, Growth(A, 0, 5))
    allocator._free.pop()
    with pytest.raises(InvariantBroken, match="free list"):
        allocator.check_integrity()


def test_partly_filled_pages_waste_at_most_three_percent_of_a_70b_shaped_model() -> None:
    geometry = KVGeometry(80, 64, 8, 128, DType.FLOAT16, (None,) * 80)
    lengths = np.random.default_rng(0).exponential(1000, 2000).astype(int) + 1
    lengths = (lengths * (1000 / lengths.mean())).astype(int) + 1
    allocator = PageAllocator(geometry.pages_in(1 << 40), geometry.page_tokens)
    growth = [Growth(SequenceId(i), 0, int(n)) for i, n in enumerate(lengths)]
    assert allocator.apply(growth=growth) == ()
    held = allocator.num_used * geometry.page_bytes
    needed = int(lengths.sum()) * geometry.token_bytes
    assert 995 <= lengths.mean() <= 1005
    assert held / needed <= 1.03


class RandomSteps(RuleBasedStateMachine):
    """Random transactions, against a model that keeps every token's value by page and slot."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = PageAllocator(12, 4)
        self.memory: dict[tuple[int, int], int] = {}
        self.model: dict[SequenceId, list[int]] = {}
        self.clock = 0

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        ids = st.integers(0, 6).map(SequenceId)
        releases = data.draw(st.lists(ids, max_size=2))
        model = {s: list(v) for s, v in self.model.items() if s not in releases}
        forks = []
        for child in data.draw(st.lists(ids, max_size=2)):
            if child not in model and model:
                parent = data.draw(st.sampled_from(sorted(model)))
                count = data.draw(st.integers(1, len(model[parent])))
                forks.append(Fork(parent, child, count))
                model[child] = model[parent][:count]
        growth = []
        for sequence in data.draw(st.lists(ids, max_size=4, unique=True)):
            held = len(model.get(sequence, []))
            start = data.draw(st.integers(max(0, held - 5), held))
            growth.append(Growth(sequence, start, data.draw(st.integers(1, 9))))
        copies = self.allocator.apply(releases=releases, forks=forks, growth=growth)
        if copies is not None:
            self.execute(model, copies, growth)

    def execute(
        self,
        model: dict[SequenceId, list[int]],
        copies: tuple[PageCopy, ...],
        growth: list[Growth],
    ) -> None:
        for source, target in copies:
            for slot in range(4):
                self.memory[target, slot] = self.memory.get((source, slot), -1)
        for rows in growth:
            sequence, start, count = rows.sequence, rows.start, rows.count
            values = model.setdefault(sequence, [])
            pages, slots = self.allocator.locate(sequence, start, start + count)
            for token, at in enumerate(zip(pages.tolist(), slots.tolist(), strict=True), start):
                self.clock += 1
                self.memory[at] = self.clock
                values[token : token + 1] = [self.clock]
        self.model = model
        assert self.allocator.apply(growth=growth) == ()

    @invariant()
    def books_agree(self) -> None:
        self.allocator.check_integrity()

    @invariant()
    def every_token_is_what_was_written(self) -> None:
        assert set(self.allocator.sequences) == set(self.model)
        for sequence, values in self.model.items():
            pages, slots = self.allocator.locate(sequence, 0, len(values))
            at = zip(pages.tolist(), slots.tolist(), strict=True)
            assert [self.memory[place] for place in at] == values


TestRandomSteps = RandomSteps.TestCase
TestRandomSteps.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
