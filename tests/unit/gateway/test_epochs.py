"""Epochs in blocks: few writes, no number twice, and no waiting where they are taken."""

import threading

import pytest

from glinthawk.errors import StoreUnavailable
from glinthawk.gateway.epochs import BLOCK, LEAST, Epochs

WAIT_S = 60.0


class Counter:
    """Counts what is reserved, and how often."""

    def __init__(self, first: int = 1) -> None:
        self.next = first
        self.num_writes = 0

    def __call__(self, count: int) -> int:
        self.num_writes += 1
        self.next += count
        return self.next - count


def test_epochs_only_grow_and_seldom_cost_a_write() -> None:
    counter = Counter(first=7)
    epochs = Epochs(counter)
    taken = []
    for _ in range(2 * BLOCK):
        epochs.prepare()
        taken.append(epochs.take())
    assert taken[0] == 7
    assert taken == sorted(set(taken))
    assert counter.num_writes <= 3


def test_a_later_process_takes_none_that_an_earlier_one_could_have_taken() -> None:
    counter = Counter()
    first = Epochs(counter)
    first.prepare()
    second = Epochs(counter)
    second.prepare()
    last = [first.take() for _ in range(first.num_left)][-1]
    assert second.take() > last


def test_none_is_taken_that_was_not_reserved() -> None:
    epochs = Epochs(Counter())
    with pytest.raises(StoreUnavailable):
        epochs.take()
    epochs.prepare()
    for _ in range(BLOCK):
        epochs.take()
    with pytest.raises(StoreUnavailable):
        epochs.take()


def test_who_takes_does_not_wait_for_who_reserves() -> None:
    is_asked, goes_on = threading.Event(), threading.Event()
    counter = Counter()

    def reserve(count: int) -> int:
        if counter.num_writes:
            is_asked.set()
            assert goes_on.wait(WAIT_S)
        return counter(count)

    epochs = Epochs(reserve)
    epochs.prepare()
    while epochs.num_left >= LEAST:
        epochs.take()
    preparing = threading.Thread(target=epochs.prepare, daemon=True)
    preparing.start()
    assert is_asked.wait(WAIT_S)
    taken = epochs.take()  # it would hang
    goes_on.set()
    preparing.join(WAIT_S)
    assert epochs.take() > taken
