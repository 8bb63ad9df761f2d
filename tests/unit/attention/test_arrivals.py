"""Pages that come from another worker, in and out of order, whole and given up."""

from dataclasses import replace

import numpy as np
import pytest

from glinthawk.attention import arrivals
from glinthawk.attention.arrivals import Arrivals
from glinthawk.attention.pages import PageAllocator
from glinthawk.attention.selection import select_backend
from glinthawk.core.ids import SequenceId
from glinthawk.errors import CapacityExceeded, InvalidRequest, StateLost
from glinthawk.wire.pages import PageArrival
from unit.attention.factories import GEOMETRY

NUM_PAGES = 4
SEQUENCE = SequenceId(7)


class Cache:
    """What a cache has around its arrivals."""

    def __init__(self) -> None:
        self.backend = select_backend(GEOMETRY, NUM_PAGES, 1, prefer="reference")
        self.allocator = PageAllocator(NUM_PAGES, GEOMETRY.page_tokens)
        self.arrivals = Arrivals(self.allocator, self.backend)

    def release(self, sequence: SequenceId) -> None:
        given_up = self.arrivals.unfinished([sequence])
        self.allocator.apply(releases=[sequence])
        self.arrivals.give_up(given_up)
        self.allocator.check_integrity()


@pytest.fixture
def cache() -> Cache:
    return Cache()


def page(index: int, *, num_tokens: int = 40, fill: float = 1.0, number: int = 1) -> PageArrival:
    numbers = np.full(GEOMETRY.page_bytes // 4, fill, np.float32)
    return PageArrival(number, SEQUENCE, num_tokens, index, memoryview(numbers.tobytes()))


def test_pages_are_written_in_order_and_the_last_one_makes_the_sequence(cache: Cache) -> None:
    assert [cache.arrivals.take(page(i, fill=float(i))) for i in range(3)] == [False, False, True]
    assert cache.allocator.num_tokens(SEQUENCE) == 40
    for index, number in enumerate(cache.allocator.page_table(SEQUENCE).tolist()):
        content = cache.backend.export_page(number).view(np.float32)
        assert (content == index).all()


@pytest.mark.parametrize(
    "wrong", [page(2), page(1, number=2), page(1, num_tokens=41)], ids=["order", "copy", "length"]
)
def test_a_page_that_is_not_due_is_refused(cache: Cache, wrong: PageArrival) -> None:
    cache.arrivals.take(page(0))
    with pytest.raises(InvalidRequest, match="due is page 1"):
        cache.arrivals.take(wrong)
    cache.arrivals.take(page(1))
    assert cache.arrivals.take(page(2))


def test_a_page_of_no_copy_is_refused(cache: Cache) -> None:
    with pytest.raises(StateLost, match="not under way"):
        cache.arrivals.take(page(1))


def test_a_page_of_another_size_takes_no_room(cache: Cache) -> None:
    with pytest.raises(InvalidRequest, match="bytes"):
        cache.arrivals.take(replace(page(0), content=memoryview(b"short")))
    assert cache.allocator.num_used == 0


def test_room_is_taken_for_all_pages_or_none(cache: Cache) -> None:
    with pytest.raises(CapacityExceeded, match="wants 5 pages, 4 of 4"):
        cache.arrivals.take(page(0, num_tokens=5 * GEOMETRY.page_tokens))
    assert cache.allocator.num_used == 0
    cache.arrivals.take(page(0, num_tokens=4 * GEOMETRY.page_tokens))
    assert cache.allocator.num_free == 0


def test_a_sequence_that_is_there_is_not_taken_again(cache: Cache) -> None:
    for index in range(3):
        cache.arrivals.take(page(index))
    with pytest.raises(InvalidRequest, match="40 tokens here already"):
        cache.arrivals.take(page(0))


def test_a_copy_given_up_half_way_frees_its_pages_and_takes_no_more(cache: Cache) -> None:
    cache.arrivals.take(page(0))
    cache.release(SEQUENCE)
    assert cache.allocator.num_used == 0
    with pytest.raises(StateLost):
        cache.arrivals.take(page(1))
    with pytest.raises(StateLost, match="given up"):
        cache.arrivals.take(page(0, number=2))


def test_a_copy_given_up_before_it_came_takes_no_room(cache: Cache) -> None:
    cache.release(SEQUENCE)
    with pytest.raises(StateLost, match="given up"):
        cache.arrivals.take(page(0))
    assert cache.allocator.num_used == 0


def test_a_sequence_released_when_it_was_whole_may_come_again(cache: Cache) -> None:
    for number in (1, 2):
        for index in range(3):
            cache.arrivals.take(page(index, number=number))
        cache.release(SEQUENCE)


def test_only_so_many_copies_given_up_are_remembered(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "MOST_REFUSED", 10)
    for sequence in range(100, 115):
        cache.release(SequenceId(sequence))
    assert len(cache.arrivals._refused) == 10
