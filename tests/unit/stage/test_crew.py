"""Segments on the caller's thread, or on several."""

import queue
import threading
from collections.abc import Sequence

import pytest
import torch

from glinthawk.errors import GlinthawkError, InvariantBroken, PeerUnavailable
from glinthawk.stage.crew import Crew, SegmentEnded
from glinthawk.stage.prefill import PrefillAttention
from glinthawk.stage.runner import SegmentRunner
from glinthawk.stage.segments import Segments
from glinthawk.stage.work import Passage
from unit.stage.factories import FLOAT32, build_reference, build_weights

WAIT_S = 30.0


class Team:
    """A crew whose segments wait until the test lets them go, and tell of themselves."""

    def __init__(self, num_hands: int, num_threads: int, failure: Exception | None = None) -> None:
        model, config = build_reference("llama")
        runner = SegmentRunner(config, build_weights(model, 0, 3), FLOAT32, num_positions=8)
        attention = PrefillAttention(config, FLOAT32)
        self.hands = [Segments(runner, attention)]
        self.hands += [Segments(runner.twin(), attention.twin()) for _ in range(1, num_hands)]
        self.failure = failure
        self.begun: queue.Queue[tuple[Segments, int, str]] = queue.Queue()
        self.go = threading.Semaphore(0)
        self.ended: queue.Queue[SegmentEnded] = queue.Queue()
        self.crew = Crew(self.hands, self.run, self.ended.put, num_threads=num_threads)

    def run(self, segments: Segments, passages: Sequence[Passage]) -> None:
        thread = threading.current_thread().name
        self.begun.put((segments, torch.get_num_threads(), thread))
        assert self.go.acquire(timeout=WAIT_S)
        if self.failure is not None:
            raise self.failure


def test_a_single_hand_is_the_callers_own_thread() -> None:
    team = Team(1, 4)
    team.go.release()
    team.crew.start([], num_lanes=7)
    segments, _, thread = team.begun.get(timeout=WAIT_S)
    assert (segments, thread) == (team.hands[0], threading.current_thread().name)
    assert team.ended.get(timeout=WAIT_S).busy_s > 0
    team.crew.close()


def test_hands_run_beside_each_other_each_with_buffers_of_its_own() -> None:
    team = Team(3, 3)
    for _ in range(3):
        assert team.crew.has_free
        team.crew.start([], num_lanes=9)
    begun = [team.begun.get(timeout=WAIT_S) for _ in range(3)]
    assert {id(segments) for segments, _, _ in begun} == {id(hand) for hand in team.hands}
    assert len({thread for _, _, thread in begun}) == 3
    assert not team.crew.has_free
    team.go.release(3)
    for _ in range(3):
        team.crew.release(team.ended.get(timeout=WAIT_S).hand)
    assert team.crew.is_idle
    team.crew.close()


@pytest.mark.parametrize(
    ("num_lanes", "threads", "share"), [(1, 6, 1.0), (2, 3, 0.5), (3, 2, 1 / 3), (8, 2, 1 / 3)]
)
def test_the_lanes_of_a_stage_share_its_threads(num_lanes: int, threads: int, share: float) -> None:
    team = Team(3, 6)
    team.go.release()
    team.crew.start([], num_lanes=num_lanes)
    assert team.begun.get(timeout=WAIT_S)[1] == threads
    ended = team.ended.get(timeout=WAIT_S)
    assert ended.busy_s == pytest.approx(ended.elapsed_s * share)
    team.crew.close()


@pytest.mark.parametrize("num_hands", [1, 2])
@pytest.mark.parametrize(
    ("failure", "kind"),
    [(PeerUnavailable("gone"), PeerUnavailable), (RuntimeError("no memory"), InvariantBroken)],
)
def test_a_segment_that_fails_says_so_and_its_hand_goes_on(
    num_hands: int, failure: Exception, kind: type[GlinthawkError]
) -> None:
    team = Team(num_hands, 2, failure)
    for _ in range(3):
        team.go.release()
        team.crew.start([], num_lanes=1)
        ended = team.ended.get(timeout=WAIT_S)
        assert isinstance(ended.error, kind)
        assert str(failure) in str(ended.error)
        team.crew.release(ended.hand)
    team.crew.close()


@pytest.mark.parametrize("num_hands", [1, 2])
def test_a_defect_is_handed_over_as_it_is(num_hands: int) -> None:
    defect = ValueError("not a number")
    team = Team(num_hands, 2, defect)
    team.go.release()
    team.crew.start([], num_lanes=1)
    ended = team.ended.get(timeout=WAIT_S)
    assert (ended.error, ended.defect) == (None, defect)
    team.crew.close()


def test_closing_waits_for_what_runs() -> None:
    team = Team(2, 2)
    team.crew.start([], num_lanes=2)
    team.begun.get(timeout=WAIT_S)
    closing = threading.Thread(target=team.crew.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    team.go.release()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    assert team.ended.get(timeout=WAIT_S).error is None
