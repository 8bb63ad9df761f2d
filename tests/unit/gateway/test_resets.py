from glinthawk.gateway.resets import CALM_S, MOST_WAIT_S, Resets


def wait_of(resets: Resets, now: float) -> float:
    """Ask for a reset and return how long it takes to become due."""
    resets.request("w", now)
    waited = 0.0
    while not resets.is_due(now + waited):
        waited += 0.5
    assert resets.take_due(now + waited) == ["w"]
    return waited


def test_the_first_is_due_at_once_and_later_ones_wait_longer_up_to_a_limit() -> None:
    resets, now = Resets(), 100.0
    waits = []
    for _ in range(8):
        waits.append(wait_of(resets, now))
        now += waits[-1]
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, MOST_WAIT_S, MOST_WAIT_S]


def test_a_worker_that_was_calm_is_trusted_as_at_first() -> None:
    resets = Resets()
    assert wait_of(resets, 100.0) == 0.0
    assert wait_of(resets, 100.0) == 1.0
    assert wait_of(resets, 102.0 + CALM_S) == 0.0


def test_one_that_waits_is_not_put_off_by_asking_again() -> None:
    resets = Resets()
    wait_of(resets, 100.0)
    resets.request("w", 100.0)
    resets.request("w", 100.9)
    assert resets.take_due(100.9) == []
    assert resets.take_due(101.0) == ["w"]
    assert resets.take_due(200.0) == []
