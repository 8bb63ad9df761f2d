"""Following a drain, over the control API, with a gateway's answers in turn."""

from dataclasses import replace

import pytest

from glinthawk.errors import GlinthawkError
from glinthawk.gateway.draining import GRACE_S, begin_drain, follow_drain
from glinthawk.gateway.inspection import Inspection, WorkerView
from unit.gateway.controlling import EMPTY, Operations, connect, make_console, read


def show(state: str) -> Inspection:
    return replace(EMPTY, workers=(WorkerView("w", "here:1", state, 3, 1, 2, None),))


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def follow(*inspections: Inspection, deadline_s: float = 5.0) -> tuple[str, float]:
    """Return what was said, and when it ended."""
    time, console = Time(), make_console()
    with connect(Operations(*inspections)) as client:
        follow_drain(client, "w", deadline_s, console, clock=time.clock, sleep=time.sleep)
    return read(console), time.now_s


def test_a_drain_is_asked_for_with_its_deadline() -> None:
    operations, console = Operations(EMPTY), make_console()
    with connect(operations) as client:
        begin_drain(client, "w", 60.0, console)
    assert operations.drains == {"w": 60.0}
    assert "w drains" in read(console)


def test_it_is_followed_until_the_worker_is_drained() -> None:
    said, seconds = follow(show("active"), show("draining"), show("draining"), show("drained"))
    assert "w is drained" in said
    assert seconds == 1.5


@pytest.mark.parametrize(
    ("inspections", "reason"),
    [
        ((show("draining"), show("lost")), "was lost"),
        ((show("draining"), EMPTY), "was lost"),
        ((show("draining"), show("active")), "taken back"),
        ((show("draining"),), "draining with 3 sequences after 5 s"),
    ],
)
def test_what_comes_between_is_an_error(inspections: tuple[Inspection, ...], reason: str) -> None:
    with pytest.raises(GlinthawkError, match=reason):
        follow(*inspections)


def test_the_deadline_has_some_grace() -> None:
    patient = [show("draining")] * int(2 * (5.0 + GRACE_S) - 1)
    assert follow(*patient, show("drained"))[1] > 5.0
