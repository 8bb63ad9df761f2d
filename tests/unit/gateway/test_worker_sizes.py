"""Sizes of workers: which count, and over the lives of a gateway, on a real store."""

import time
from pathlib import Path

import pytest

from glinthawk.errors import StoreUnavailable
from glinthawk.gateway.store.sql import open_store
from glinthawk.gateway.worker_sizes import (
    COUNTED_S,
    KEEP_EVERY_S,
    SETTLE_S,
    SizeBook,
    WorkerSizes,
)
from unit.gateway.store.factories import FakeClock

WAIT_S = 60.0


def test_the_largest_counts_for_a_day_after_it_was_there() -> None:
    clock = FakeClock()
    sizes = WorkerSizes(clock=clock)
    sizes.note([4, 2])
    clock.now += COUNTED_S - 1
    sizes.note([2])
    assert sizes.largest() == 4
    clock.now += 1
    assert sizes.largest() == 2
    clock.now += COUNTED_S
    assert sizes.largest() == 0


def test_nothing_is_known_before_the_first_worker_and_a_moment_after_it() -> None:
    clock = FakeClock()
    sizes = WorkerSizes({9: clock.now}, settle_s=30.0, clock=clock)
    clock.now += 100.0
    assert sizes.largest() is None
    sizes.note([])
    sizes.note([4])
    clock.now += 29.0
    assert sizes.largest() is None
    clock.now += 1.0
    assert sizes.largest() == 9


def test_only_sizes_that_can_ever_be_the_largest_are_kept() -> None:
    clock = FakeClock()
    sizes = WorkerSizes(clock=clock)
    for size in range(100, 0, -1):
        sizes.note([size])
        clock.now += 1
    assert len(sizes.seen()) == 100
    sizes.note([50])
    assert set(sizes.seen()) == set(range(50, 101))
    sizes.note([200])
    assert set(sizes.seen()) == {200}


def test_a_gateway_that_starts_again_knows_the_largest(tmp_path: Path) -> None:
    clock = FakeClock()
    store = open_store(tmp_path)
    first = SizeBook(store, clock=clock)
    first.sizes.note([8, 4])
    first.keep()
    store.close()
    clock.now += COUNTED_S / 2
    store = open_store(tmp_path)
    again = SizeBook(store, clock=clock)
    again.sizes.note([4])
    clock.now += SETTLE_S
    assert again.sizes.largest() == 8
    clock.now += COUNTED_S / 2
    assert again.sizes.largest() == 4
    store.close()


def test_a_size_that_stays_is_written_now_and_then_only(tmp_path: Path) -> None:
    clock = FakeClock()
    store = open_store(tmp_path)
    book = SizeBook(store, clock=clock)
    seen_at = []
    for _ in range(100):
        book.sizes.note([8])
        book.keep()
        seen_at.append(store.list_worker_sizes()[0].seen_at)
        clock.now += KEEP_EVERY_S / 10
    assert 10 <= len(set(seen_at)) <= 11
    store.close()
    book.sizes.note([9])
    with pytest.raises(StoreUnavailable):
        book.keep()


def test_the_book_keeps_by_itself(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    book = SizeBook(store)
    book.start()
    book.sizes.note([8])
    deadline = time.monotonic() + WAIT_S
    while not store.list_worker_sizes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    book.stop()
    store.close()
