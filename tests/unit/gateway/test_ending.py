"""The end of a gateway: asked for by a signal, within one budget, and by force if need be."""

import queue
import signal
import threading
import time
from types import FrameType

import pytest

from glinthawk.gateway.ending import EXIT_OVERDUE, Ending

WAIT_S = 60.0


def make_ending(now: list[float], **fields: float) -> tuple[Ending, "queue.SimpleQueue[int]"]:
    codes: queue.SimpleQueue[int] = queue.SimpleQueue()
    return Ending(clock=lambda: now[0], exit_process=codes.put, **fields), codes


def test_the_steps_share_one_budget() -> None:
    now = [100.0]
    ending, _ = make_ending(now, budget_s=20.0, latest_s=WAIT_S)
    now[0] += 50.0
    assert ending.left(5.0) == 5.0
    assert not ending.has_begun
    ending.begin()
    now[0] += 16.0
    ending.begin()
    assert ending.left(5.0) == 4.0
    assert ending.left(1.0) == 1.0
    now[0] += 10.0
    assert ending.left(5.0) == 0.0


def test_who_waits_learns_of_the_end_at_once() -> None:
    ending, _ = make_ending([0.0], latest_s=WAIT_S)
    assert not ending.wait(0.01)
    threading.Timer(0.1, ending.begin).start()
    assert ending.wait(WAIT_S)
    assert ending.wait(WAIT_S), "also later"


def test_a_signal_in_the_middle_of_a_wait_ends_it() -> None:
    """Many short waits, so that the signal comes also while one begins or ends."""
    for _ in range(30):
        ending, _ = make_ending([0.0], latest_s=WAIT_S)

        def end(number: int, frame: FrameType | None, ending: Ending = ending) -> None:
            ending.begin()

        former = signal.signal(signal.SIGUSR1, end)
        try:
            main_thread = threading.main_thread().ident
            assert main_thread is not None
            threading.Timer(0.01, signal.pthread_kill, (main_thread, signal.SIGUSR1)).start()
            deadline = time.monotonic() + WAIT_S
            while not ending.wait(0.0001):
                assert time.monotonic() < deadline
        finally:
            signal.signal(signal.SIGUSR1, former)


def test_what_is_not_over_in_time_is_ended_by_force() -> None:
    ending, codes = make_ending([0.0], latest_s=0.1)
    with pytest.raises(queue.Empty):
        codes.get(timeout=0.3)
    ending.begin()
    assert codes.get(timeout=WAIT_S) == EXIT_OVERDUE
