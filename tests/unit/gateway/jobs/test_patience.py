import threading
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from glinthawk.errors import StoreUnavailable
from glinthawk.gateway.jobs.patience import LONGEST_WAIT_S, Patience, Stopped


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def refuse() -> None:
    raise StoreUnavailable("the disk is full")


def test_a_store_that_is_away_is_tried_again_later_and_later_and_logged_once() -> None:
    clock = Clock()
    patience = Patience("committing", threading.Event(), clock=clock)
    waits = []
    with capture_logs() as logs:
        for _ in range(10):
            assert patience.is_due
            with pytest.raises(StoreUnavailable):
                patience.write(refuse)
            assert not patience.is_due
            began_s = clock.now_s
            while not patience.is_due:
                clock.now_s += 0.05
            waits.append(clock.now_s - began_s)
        assert patience.write(lambda: 5) == 5
        assert patience.write(lambda: 6) == 6
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(LONGEST_WAIT_S, abs=0.1)
    assert [line["event"] for line in logs] == ["store_unavailable", "store_available_again"]
    assert logs[0]["error"] == "the disk is full"


def test_reading_does_not_prove_that_one_can_write() -> None:
    clock = Clock()
    patience = Patience("committing", threading.Event(), clock=clock)
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                patience.write(refuse)
            assert patience.read(lambda: 1) == 1
    assert len(logs) == 1


def test_it_insists_until_it_works() -> None:
    attempts: list[int] = []

    def work_the_third_time() -> int:
        attempts.append(1)
        if len(attempts) < 3:
            refuse()
        return len(attempts)

    assert Patience("x", threading.Event()).insist(work_the_third_time) == 3


@pytest.mark.parametrize("call", [refuse, lambda: None])
def test_it_gives_up_when_the_gateway_ends(call: Callable[[], None]) -> None:
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Stopped):
        Patience("x", stopped).insist(call)


def test_waiting_ends_when_the_gateway_does() -> None:
    stopped = threading.Event()
    timer = threading.Timer(0.3, stopped.set)
    timer.start()
    with pytest.raises(Stopped):
        Patience("x", stopped).insist(refuse)
    timer.join()
