"""The work queue: one at a time, once each, later and later after failures."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from glinthawk_operator.queue import QueueSettings, WorkQueue

SETTINGS = QueueSettings(first_delay_s=1.0, max_delay_s=60.0, min_interval_s=0.0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def make_queue(
    settings: QueueSettings = SETTINGS, random: float = 0.0
) -> tuple[WorkQueue[str], Clock]:
    clock = Clock()
    return WorkQueue(settings, clock=clock, random=lambda: random), clock


def test_a_key_that_is_added_often_comes_once() -> None:
    queue, _ = make_queue()
    for _ in range(5):
        queue.add("a")
    assert queue.take(timeout_s=0) == "a"
    queue.done("a")
    assert queue.take(timeout_s=0) is None


def test_a_key_is_with_one_worker_at_a_time() -> None:
    queue, _ = make_queue()
    queue.add("a")
    assert queue.take(timeout_s=0) == "a"
    queue.add("a")
    assert queue.take(timeout_s=0) is None
    queue.done("a")
    assert queue.take(timeout_s=0) == "a"


def test_the_earlier_of_two_times_holds() -> None:
    queue, clock = make_queue()
    queue.add("a", after_s=10)
    queue.add("a", after_s=3)
    queue.add("a", after_s=20)
    assert queue.take(timeout_s=0) is None
    clock.now_s = 3
    assert queue.take(timeout_s=0) == "a"
    queue.done("a")
    clock.now_s = 100
    assert queue.take(timeout_s=0) is None


def test_a_key_that_fails_waits_twice_as_long_each_time_up_to_a_limit() -> None:
    queue, clock = make_queue()
    queue.add("a")
    delays = []
    for _ in range(9):
        assert queue.take(timeout_s=0) == "a"
        delays.append(queue.failed("a"))
        clock.now_s += delays[-1]
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert queue.take(timeout_s=0) == "a"
    queue.done("a")
    queue.add("a")
    queue.take(timeout_s=0)
    assert queue.failed("a") == 1


def test_delays_are_scattered() -> None:
    delays = []
    for random in (0.0, 0.5, 0.999):
        queue, _ = make_queue(random=random)
        queue.add("a")
        queue.take(timeout_s=0)
        delays.append(queue.failed("a"))
    assert delays == [1.0, 0.75, 0.5005]


def test_events_do_not_cut_a_delay_short() -> None:
    queue, clock = make_queue()
    queue.add("a")
    queue.take(timeout_s=0)
    queue.add("a")
    queue.failed("a", at_least_s=30)
    queue.add("a")
    clock.now_s = 29
    assert queue.take(timeout_s=0) is None
    clock.now_s = 30
    assert queue.take(timeout_s=0) == "a"


def test_between_two_turns_lies_the_least_time() -> None:
    queue, clock = make_queue(QueueSettings(min_interval_s=5.0))
    queue.add("a")
    queue.take(timeout_s=0)
    queue.add("a")
    queue.done("a")
    assert queue.take(timeout_s=0) is None
    clock.now_s = 5
    assert queue.take(timeout_s=0) == "a"


def test_a_key_may_ask_to_come_again() -> None:
    queue, clock = make_queue()
    queue.add("a")
    queue.take(timeout_s=0)
    queue.done("a", again_after_s=7)
    clock.now_s = 6.9
    assert queue.take(timeout_s=0) is None
    clock.now_s = 7
    assert queue.take(timeout_s=0) == "a"


def test_a_forgotten_key_begins_anew() -> None:
    queue, _ = make_queue()
    queue.add("a")
    queue.take(timeout_s=0)
    queue.failed("a")
    queue.forget("a")
    assert queue.failures("a") == 0
    queue.add("a")
    assert queue.take(timeout_s=0) == "a"


def test_a_key_that_is_asked_for_before_it_is_forgotten_still_comes() -> None:
    queue, clock = make_queue()
    queue.add("a")
    queue.take(timeout_s=0)
    queue.add("a")
    queue.done("a")
    queue.forget("a")
    clock.now_s = 1
    assert queue.take(timeout_s=0) == "a"


def test_close_wakes_those_who_wait() -> None:
    queue: WorkQueue[str] = WorkQueue(SETTINGS, clock=Clock(), random=lambda: 0.0)
    taken: list[str | None] = []
    threads = [threading.Thread(target=lambda: taken.append(queue.take())) for _ in range(3)]
    for thread in threads:
        thread.start()
    queue.close()
    for thread in threads:
        thread.join(30)
    assert taken == [None] * 3


def test_add_wakes_one_who_waits() -> None:
    queue: WorkQueue[str] = WorkQueue(SETTINGS, clock=Clock(), random=lambda: 0.0)
    taken: list[str | None] = []
    thread = threading.Thread(target=lambda: taken.append(queue.take()))
    thread.start()
    queue.add("a")
    thread.join(30)
    assert taken == ["a"]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "later", "take", "done", "failed", "forget", "wait"]),
        st.sampled_from("abc"),
    ),
    max_size=60,
)


@given(OPERATIONS)
def test_nothing_that_was_added_is_lost(operations: list[tuple[str, str]]) -> None:
    queue, clock = make_queue()
    running: set[str] = set()
    owed: set[str] = set()
    for name, key in operations:
        if name in ("add", "later"):
            queue.add(key, after_s=2.0 if name == "later" else 0.0)
            owed.add(key)
        elif name == "take":
            taken = queue.take(timeout_s=0)
            if taken is not None:
                assert taken not in running
                running.add(taken)
                owed.discard(taken)
        elif name == "done" and key in running:
            running.discard(key)
            queue.done(key)
        elif name == "failed" and key in running:
            running.discard(key)
            queue.failed(key)
            owed.add(key)
        elif name == "forget" and key not in running:
            queue.forget(key)
        elif name == "wait":
            clock.now_s += 1.0
        queue.check_integrity()
    for key in running:
        queue.done(key)
    clock.now_s += 1000
    came = set()
    while (key_or_none := queue.take(timeout_s=0)) is not None:
        came.add(key_or_none)
        queue.done(key_or_none)
    assert came == owed


def test_how_long_a_key_was_due_is_told() -> None:
    clock, waits = Clock(), list[float]()
    queue = WorkQueue[str](SETTINGS, clock=clock, random=lambda: 0.0, observe_wait=waits.append)
    queue.add("a", after_s=2)
    clock.now_s = 5
    assert queue.take(timeout_s=0) == "a"
    assert waits == [3]
