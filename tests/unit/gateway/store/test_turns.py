"""Threads get their turn in the order in which they asked for it."""

import contextlib
import signal
import threading
import time

import pytest

from glinthawk.errors import StoreUnavailable
from glinthawk.gateway.store.turns import Turns

WAIT_S = 120.0


def wait_for(turns: Turns, num_waiting: int) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while turns.num_waiting != num_waiting:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_who_waits_comes_before_who_was_there_and_asks_again() -> None:
    turns = Turns()
    order: list[str] = []

    def take(name: str) -> None:
        with turns:
            order.append(name)

    threads = [threading.Thread(target=take, args=(name,)) for name in "abc"]
    with turns:
        for count, thread in enumerate(threads, start=1):
            thread.start()
            wait_for(turns, count)
    take("again")
    for thread in threads:
        thread.join()
    assert order == ["a", "b", "c", "again"]


def test_only_one_is_in_at_a_time() -> None:
    turns = Turns()
    num_in = 0
    total = 0

    def work() -> None:
        nonlocal num_in, total
        for _ in range(300):
            with turns:
                num_in += 1
                assert num_in == 1
                time.sleep(0)
                num_in -= 1
                total += 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total == 6 * 300


def test_an_error_inside_passes_the_turn_on() -> None:
    turns = Turns()
    with pytest.raises(RuntimeError, match="inside"), turns:
        raise RuntimeError("inside")
    with turns:
        assert turns.num_waiting == 0


def test_who_is_interrupted_while_waiting_leaves_the_line() -> None:
    turns = Turns()
    is_held, may_leave = threading.Event(), threading.Event()
    main_thread = threading.get_ident()

    def hold() -> None:
        with turns:
            is_held.set()
            may_leave.wait()

    def interrupt_once_waiting() -> None:
        wait_for(turns, 1)
        signal.pthread_kill(main_thread, signal.SIGINT)

    holder = threading.Thread(target=hold)
    holder.start()
    is_held.wait()
    threading.Thread(target=interrupt_once_waiting).start()
    with pytest.raises(KeyboardInterrupt), turns:
        pytest.fail("the turn was not free")
    assert turns.num_waiting == 0
    may_leave.set()
    holder.join()
    with turns:
        assert turns.num_waiting == 0


def test_who_waits_too_long_is_told_so_and_leaves_the_line() -> None:
    turns = Turns(wait_s=0.05)
    with turns:
        thread = threading.Thread(target=lambda: turns.take(WAIT_S) and turns.give_back())
        thread.start()
        wait_for(turns, 1)
        with pytest.raises(StoreUnavailable, match=r"busy: no turn to write came in 0.05 s"), turns:
            pytest.fail("the turn was not free")
        assert turns.num_waiting == 1
    thread.join(WAIT_S)
    with turns:
        assert turns.num_waiting == 0


def test_a_turn_that_comes_while_its_waiter_gives_up_goes_to_the_next() -> None:
    turns = Turns(wait_s=0.002)
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            with contextlib.suppress(StoreUnavailable), turns:
                time.sleep(0.002)

    threads = [threading.Thread(target=come_and_go) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    stop.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert turns.num_waiting == 0
    assert turns.take(0.0), "nobody has it"
