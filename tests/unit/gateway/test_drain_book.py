"""Drains over the lives of a gateway, on a real store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from glinthawk.errors import StoreUnavailable
from glinthawk.gateway.drain_book import KEPT_AFTER_S, DrainBook
from glinthawk.gateway.roster import WorkerEntry
from glinthawk.gateway.store.interface import Store
from glinthawk.gateway.store.sql import open_store
from unit.gateway.store.factories import FakeClock

ONE = WorkerEntry("w0", 1, epoch=1, instance="one")
TWO = WorkerEntry("w0", 1, epoch=9, instance="two")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(tmp_path / "data")
    yield store
    store.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_a_gateway_that_starts_again_knows_the_time_that_is_left(
    store: Store, clock: FakeClock
) -> None:
    DrainBook(store, clock=clock).note("w0", "one", 300.0)
    clock.now += 100
    again = DrainBook(store, clock=clock)
    assert again.seconds_left(ONE) == pytest.approx(200.0)
    clock.now += 500
    assert again.seconds_left(ONE) == 0.0
    assert again.seconds_left(WorkerEntry("w1", 1, 1, "one")) is None


def test_a_drain_taken_back_is_not_known_any_more(store: Store, clock: FakeClock) -> None:
    book = DrainBook(store, clock=clock)
    book.note("w0", "one", 300.0)
    book.forget("w0")
    book.forget("w0")
    assert book.seconds_left(ONE) is None
    assert DrainBook(store, clock=clock).seconds_left(ONE) is None


def test_another_process_of_the_name_does_not_drain(store: Store, clock: FakeClock) -> None:
    book = DrainBook(store, clock=clock)
    book.note("w0", "one", 300.0)
    assert book.seconds_left(TWO) is None
    assert DrainBook(store, clock=clock).seconds_left(TWO) is None


def test_the_drain_of_a_worker_that_never_came_back_is_forgotten_at_last(
    store: Store, clock: FakeClock
) -> None:
    DrainBook(store, clock=clock).note("w0", "one", 300.0)
    clock.now += 300 + KEPT_AFTER_S + 1
    DrainBook(store, clock=clock)
    assert list(store.list_drains()) == []


def test_what_cannot_be_kept_or_forgotten_changes_nothing(store: Store, clock: FakeClock) -> None:
    book = DrainBook(store, clock=clock)
    book.note("w0", "one", 300.0)
    store.close()
    with pytest.raises(StoreUnavailable):
        book.note("w1", "three", 1.0)
    with pytest.raises(StoreUnavailable):
        book.forget("w0")
    assert book.seconds_left(ONE) == pytest.approx(300.0)
    assert book.seconds_left(WorkerEntry("w1", 1, 1, "three")) is None
    assert book.seconds_left(TWO) is None
