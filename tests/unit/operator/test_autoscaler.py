"""The autoscaler: bounds, monotony, windows, steps, and what happens without figures."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glinthawk_operator.autoscaler import (
    Decision,
    Figures,
    History,
    Reason,
    Rules,
    StepLimit,
    Tier,
    decide,
    follow_replicas,
)

GIB = 1 << 30
RULES = Rules(
    min_replicas=1,
    max_replicas=10,
    capacity_per_worker_bytes=GIB,
    up=StepLimit(4, 1.0, 60.0),
    down=StepLimit(100, 0.0, 60.0),
)

bounds = st.tuples(st.integers(0, 50), st.integers(0, 50)).map(sorted)
shares = st.floats(0, 1)


step_limits = st.builds(
    StepLimit, st.integers(1, 5), st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([15.0, 60.0])
)


@st.composite
def rules_of_any_kind(draw: st.DrawFn) -> Rules:
    low, high = draw(bounds)
    return Rules(
        min_replicas=low,
        max_replicas=max(high, 1),
        capacity_per_worker_bytes=draw(st.integers(1, 1 << 40)),
        target_share=draw(st.floats(0.1, 1)),
        up_window_s=draw(st.sampled_from([0.0, 30.0])),
        down_window_s=draw(st.sampled_from([0.0, 60.0, 300.0])),
        up=draw(step_limits),
        down=draw(step_limits),
    )


@st.composite
def figures_at(draw: st.DrawFn, measured_at_s: float) -> Figures:
    return Figures(
        measured_at_s,
        used_bytes=draw(st.integers(0, 1 << 44)),
        demanded_bytes=draw(st.integers(0, 1 << 44)),
        busy_shares=tuple(draw(st.lists(shares, max_size=5))),
        stage_idle_share=draw(st.none() | shares),
    )


def wants(demanded: float, *, at_s: float = 0.0) -> Figures:
    return Figures(at_s, used_bytes=0, demanded_bytes=int(demanded))


def run(
    rules: Rules, demand: list[float], *, replicas: int = 1, every_s: float = 5.0
) -> list[Decision]:
    """Decide again and again, the tier following at once."""
    history, decisions = History(), []
    for turn, demanded in enumerate(demand):
        now_s = turn * every_s
        tier = Tier(replicas, replicas)
        decision = decide(rules, tier, wants(demanded, at_s=now_s), history, now_s=now_s)
        decisions.append(decision)
        history, replicas = decision.history, decision.replicas
    return decisions


@given(st.data(), rules_of_any_kind(), st.integers(0, 60))
def test_never_leaves_its_bounds(data: st.DataObject, rules: Rules, replicas: int) -> None:
    history = History()
    for turn in range(6):
        now_s = turn * 20.0
        figures = data.draw(st.none() | figures_at(now_s - data.draw(st.sampled_from([0, 100]))))
        tier = Tier(replicas, data.draw(st.integers(0, replicas)))
        decision = decide(rules, tier, figures, history, now_s=now_s)
        assert rules.min_replicas <= decision.replicas <= rules.max_replicas
        history, replicas = decision.history, decision.replicas


@given(st.data(), rules_of_any_kind(), st.integers(1, 40))
def test_more_demand_never_gives_fewer(data: st.DataObject, rules: Rules, replicas: int) -> None:
    less = data.draw(figures_at(0.0))
    more = replace(less, demanded_bytes=less.demanded_bytes + data.draw(st.integers(0, 1 << 44)))
    tier = Tier(replicas, replicas)
    past = History(((-10.0, data.draw(st.integers(0, 40))),), ((-10.0, replicas),))
    low = decide(rules, tier, less, past, now_s=0.0)
    high = decide(rules, tier, more, past, now_s=0.0)
    assert low.replicas <= high.replicas


@given(rules_of_any_kind(), st.integers(1, 40), st.integers(0, 1 << 42))
def test_constant_demand_settles_and_stays(rules: Rules, replicas: int, demanded: int) -> None:
    decisions = run(rules, [demanded] * 400, replicas=replicas, every_s=10)
    sizes = [decision.replicas for decision in decisions]
    changes = [after - before for before, after in pairwise(sizes)]
    assert not (any(change > 0 for change in changes) and any(change < 0 for change in changes))
    final = sizes[-1]
    assert sizes[-50:] == [final] * 50
    exact = demanded / (rules.target_share * rules.capacity_per_worker_bytes)
    if rules.min_replicas < exact < rules.max_replicas - 1:
        assert exact / (1 + rules.tolerance) - 1e-6 <= final
        assert final <= exact / (1 - rules.tolerance) + 1


@given(rules_of_any_kind(), st.integers(0, 60), st.floats(61, 1e6))
def test_stale_or_missing_figures_freeze(rules: Rules, replicas: int, age_s: float) -> None:
    held = max(rules.min_replicas, min(rules.max_replicas, replicas))
    history = History(((0.0, 0), (500.0, 0)), ((0.0, replicas),))
    for figures, reason in (
        (None, Reason.FIGURES_MISSING),
        (wants(0, at_s=1000.0 - age_s), Reason.FIGURES_STALE),
    ):
        decision = decide(rules, Tier(replicas, 0), figures, history, now_s=1000.0)
        assert decision.replicas == held
        assert decision.reason is reason
        assert decision.is_frozen


def test_follows_the_formula_of_the_worked_example() -> None:
    # 2.0 GiB of 0.8 x 1 GiB a worker: 2.5, so three.
    decision = decide(RULES, Tier(1, 1), wants(2 * GIB), History(), now_s=0.0)
    assert decision.replicas == 3
    assert decision.needed == pytest.approx(2.5)
    assert decision.reason is Reason.DEMAND_ABOVE


def test_an_exact_multiple_needs_no_further_worker() -> None:
    rules = replace(RULES, target_share=0.7)
    assert decide(rules, Tier(1, 1), wants(2.1 * GIB), History(), now_s=0.0).replicas == 3


def test_what_is_held_counts_even_if_demand_is_said_to_be_less() -> None:
    figures = Figures(0.0, used_bytes=4 * GIB, demanded_bytes=0)
    assert decide(RULES, Tier(1, 1), figures, History(), now_s=0.0).replicas == 5


@pytest.mark.parametrize(("idle", "replicas"), [(0.05, 2), (0.10, 2), (0.11, 3), (None, 2)])
def test_busy_workers_count_only_while_stages_idle(idle: float | None, replicas: int) -> None:
    figures = Figures(0.0, 0, int(1.6 * GIB), busy_shares=(1.0, 1.0), stage_idle_share=idle)
    decision = decide(RULES, Tier(2, 2), figures, History(), now_s=0.0)
    assert decision.replicas == replicas
    assert (decision.reason is Reason.WORKERS_BUSY) == (replicas == 3)


def test_workers_that_are_less_busy_are_no_cause_to_shrink() -> None:
    figures = Figures(0.0, 0, 0, busy_shares=(0.1, 0.1), stage_idle_share=0.9)
    recommended = ((-1000.0, 1),)
    decision = decide(RULES, Tier(3, 3), figures, History(recommended), now_s=0.0)
    assert decision.replicas < 3
    assert decision.reason is not Reason.WORKERS_BUSY


def test_small_deviations_are_left_alone() -> None:
    decision = decide(RULES, Tier(4, 4), wants(4.3 * 0.8 * GIB), History(), now_s=0.0)
    assert (decision.replicas, decision.reason) == (4, Reason.WITHIN_TOLERANCE)


def test_shrinks_only_after_the_whole_window() -> None:
    decisions = run(RULES, [4 * GIB] * 4 + [0.0] * 80, replicas=5)
    sizes = [decision.replicas for decision in decisions]
    assert sizes[:62] == [5] * 62
    assert sizes[-1] == 1
    assert decisions[20].reason is Reason.STABILIZING_DOWN


def test_demand_that_returns_within_the_window_keeps_the_workers() -> None:
    demand = [4 * GIB] * 4 + [0.0] * 50 + [4 * GIB] * 4 + [0.0] * 50
    assert {decision.replicas for decision in run(RULES, demand, replicas=5)} == {5}


def test_a_restart_does_not_shrink_early() -> None:
    """Without a history the present size counts as just recommended."""
    decisions = run(RULES, [0.0] * 70, replicas=5)
    assert decisions[0].replicas == 5
    assert decisions[59].replicas == 5
    assert decisions[-1].replicas == 1


def test_figures_that_were_missing_begin_the_window_anew() -> None:
    history = History(((0.0, 1), (295.0, 1)), ((0.0, 5),))
    frozen = decide(RULES, Tier(5, 5), None, history, now_s=300.0)
    after = decide(RULES, Tier(5, 5), wants(0, at_s=305), frozen.history, now_s=305.0)
    assert (frozen.replicas, after.replicas) == (5, 5)


def test_an_up_window_waits_for_a_need_that_lasts() -> None:
    rules = replace(RULES, up_window_s=30.0)
    sizes = [decision.replicas for decision in run(rules, [2 * GIB] * 10)]
    assert sizes[:6] == [1] * 6
    assert sizes[-1] == 3
    burst = run(rules, [2 * GIB, 2 * GIB, 0, 0, 2 * GIB, 2 * GIB, 0, 0])
    assert {decision.replicas for decision in burst} == {1}


def test_grows_by_steps() -> None:
    rules = replace(RULES, max_replicas=100, up=StepLimit(2, 1.0, 60.0))
    decisions = run(rules, [80 * GIB] * 60)
    sizes = [decision.replicas for decision in decisions]
    assert sizes[0] == 3
    assert decisions[0].reason is Reason.STEP_LIMITED
    assert sizes[11] == 3
    assert sizes[13] == 6  # by its own size, once that is more
    assert sizes[-1] == 48


def test_shrinks_by_steps_too() -> None:
    rules = replace(RULES, down=StepLimit(1, 0.1, 60.0), down_window_s=0.0)
    sizes = [decision.replicas for decision in run(rules, [0.0] * 80, replicas=5)]
    assert sizes[0] == 4
    assert sizes[11] == 4
    assert sizes[-1] == 1


def test_pods_that_are_pending_neither_stop_growth_nor_hold_shrinking() -> None:
    pending = Tier(replicas=4, ready_replicas=1)
    assert decide(RULES, pending, wants(6 * GIB), History(), now_s=0.0).replicas == 8
    history = History(((-400.0, 1), (-1.0, 1)), ((-400.0, 4),))
    assert decide(RULES, pending, wants(0), history, now_s=0.0).replicas == 1


@pytest.mark.parametrize(
    ("demanded", "reason", "replicas"),
    [(100 * GIB, Reason.AT_MAXIMUM, 3), (0, Reason.AT_MINIMUM, 2)],
)
def test_bounds_are_named(demanded: int, reason: Reason, replicas: int) -> None:
    rules = replace(RULES, min_replicas=2, max_replicas=3, down_window_s=0.0)
    decision = decide(rules, Tier(2, 2), wants(demanded), History(), now_s=0.0)
    assert (decision.replicas, decision.reason) == (replicas, reason)


@pytest.mark.parametrize(
    ("asked", "given", "reason"),
    [(2, 2, Reason.AS_SPECIFIED), (0, 1, Reason.AT_MINIMUM), (99, 10, Reason.AT_MAXIMUM)],
)
def test_replicas_that_others_set_are_bounded(asked: int, given: int, reason: Reason) -> None:
    decision = follow_replicas(RULES, asked)
    assert (decision.replicas, decision.reason) == (given, reason)


def test_the_history_stays_small() -> None:
    decisions = run(RULES, [4 * GIB] * 3000, every_s=1.0)
    assert len(decisions[-1].history.recommendations) <= 4
    assert len(decisions[-1].history.sizes) <= 2
