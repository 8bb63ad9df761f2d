from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glinthawk.bench.disturbances import (
    LONGEST_DRAIN_S,
    LONGEST_FREEZE_S,
    Action,
    Crew,
    Disturbance,
    Fate,
    Part,
)

CREW = Crew(("stage-0", "stage-1"), ("w0", "w1", "w2", "w3"), (), most_workers=5)


def draw(seed: int, num_events: int) -> list[Disturbance]:
    fate = Fate(seed)
    return [fate.draw(CREW) for _ in range(num_events)]


def apply(crew: Crew, event: Disturbance, newcomer: str) -> Crew:
    """Return the crew after an event, as a fleet's would be."""
    target = event.target
    if event.part is not Part.WORKER or event.action is Action.FREEZE:
        return crew
    if target is None:
        return replace(crew, workers=(*crew.workers, newcomer))
    workers = tuple(name for name in crew.workers if name != target)
    draining = tuple(name for name in crew.draining if name != target)
    if event.action is Action.DRAIN:
        draining += (target,)
    if event.action is Action.CANCEL_DRAIN:
        workers += (target,)
    return replace(crew, workers=workers, draining=draining)


def test_a_seed_is_a_story_and_another_seed_another() -> None:
    assert draw(3, 60) == draw(3, 60)
    assert draw(3, 60) != draw(4, 60)


def test_sixty_events_strike_every_part_in_every_way() -> None:
    seen = Counter((event.part, event.action) for event in draw(0, 60))
    strikes = (Action.KILL, Action.FREEZE, Action.FREEZE_AND_KILL, Action.TERMINATE)
    for part in Part:
        for action in strikes:
            assert seen[part, action] >= 2
    assert min(seen[Part.WORKER, one] for one in (Action.JOIN, Action.DRAIN)) >= 2


@given(seed=st.integers(0, 1 << 32), num_workers=st.integers(1, 5), most_workers=st.integers(2, 5))
def test_one_worker_is_always_left_and_targets_are_there(
    seed: int, num_workers: int, most_workers: int
) -> None:
    fate = Fate(seed)
    names = tuple(f"w{index}" for index in range(min(num_workers, most_workers)))
    crew = Crew(("stage-0",), names, (), most_workers)
    for number in range(60):
        event = fate.draw(crew)
        if event.part is Part.WORKER:
            assert (event.target is None) == (event.action is Action.JOIN)
            assert event.target is None or event.target in crew.workers + crew.draining
            assert event.action is not Action.CANCEL_DRAIN or event.target in crew.draining
        else:
            assert event.target in ("gateway", *crew.stages)
            assert event.is_strike
        longest_s = LONGEST_DRAIN_S if event.action is Action.DRAIN else LONGEST_FREEZE_S
        assert 0 < event.for_s <= longest_s
        crew = apply(crew, event, f"new-{number}")
        assert crew.workers
        assert len(crew.workers) + len(crew.draining) <= most_workers


@pytest.mark.parametrize(
    ("action", "is_strike"), [(Action.KILL, True), (Action.JOIN, False), (Action.DRAIN, False)]
)
def test_only_what_takes_a_process_away_needs_recovery(action: Action, is_strike: bool) -> None:
    event = Disturbance(Part.WORKER, action, "w0", for_s=1.0, pause_s=0.0, waits=True)
    assert event.is_strike is is_strike
