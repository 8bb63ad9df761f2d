"""The formula, and what keeps it from flapping.

    needed   = demanded / (target share x capacity of a worker)
               and, only while stages idle more than 10%, ready workers x busy share / 0.85
    tolerance: as large as now if needed deviates little
    windows:   grow to the least, shrink to the most that was recommended in the window
    steps:     at most so much in a period
    bounds:    min, max

Figures that are missing or old freeze the tier: they are no reason to shrink it.
"""

import math

from glinthawk_operator.autoscaler.data import Decision, Figures, History, Reason, Rules, Tier

_ROUNDING = 1e-9
"""A need of 3.0000000001 replicas is three: a product of shares is not exact."""


def decide(
    rules: Rules, tier: Tier, figures: Figures | None, history: History, *, now_s: float
) -> Decision:
    """Return how many replicas the memory tier should have now.

    The history that comes out goes in at the next call; an empty one, such as after a restart,
    counts as if the present size had just been recommended, so that nothing shrinks early.
    """
    held = _clamp(rules, tier.replicas)
    if figures is None:
        return Decision(held, Reason.FIGURES_MISSING, None, None, History())
    if now_s - figures.measured_at_s > rules.stale_after_s:
        return Decision(held, Reason.FIGURES_STALE, None, figures, History())
    needed, needed_reason = _needed(rules, tier, figures)
    recommended, reason = _recommend(rules, tier, needed, needed_reason)
    history = _remember(rules, tier, history, recommended, now_s=now_s)
    replicas, reason = _stabilize(rules, tier, history, (recommended, reason), now_s=now_s)
    replicas, reason = _limit_step(rules, tier, history, (replicas, reason), now_s=now_s)
    bounded = _clamp(rules, replicas)
    if bounded < replicas or (bounded == rules.max_replicas < recommended):
        reason = Reason.AT_MAXIMUM
    elif bounded > replicas or (bounded == rules.min_replicas > recommended):
        reason = Reason.AT_MINIMUM
    return Decision(bounded, reason, needed, figures, history)


def follow_replicas(rules: Rules, replicas: int) -> Decision:
    """Return the decision where someone else sets the replicas: theirs, within min and max."""
    bounded = _clamp(rules, replicas)
    reason = Reason.AS_SPECIFIED
    if bounded != replicas:
        reason = Reason.AT_MAXIMUM if bounded < replicas else Reason.AT_MINIMUM
    return Decision(bounded, reason, None, None, History())


def _clamp(rules: Rules, replicas: int) -> int:
    return max(rules.min_replicas, min(rules.max_replicas, replicas))


def _needed(rules: Rules, tier: Tier, figures: Figures) -> tuple[float, Reason]:
    """Return how many replicas the figures ask for, not rounded, and which part asks for most."""
    # What is held is wanted too, whatever the estimate says.
    demanded = max(figures.demanded_bytes, figures.used_bytes)
    by_demand = demanded / (rules.target_share * rules.capacity_per_worker_bytes)
    reason = Reason.DEMAND_ABOVE if by_demand > tier.replicas else Reason.DEMAND_BELOW
    idle = figures.stage_idle_share
    if idle is None or idle <= rules.idle_threshold or not figures.busy_shares:
        return by_demand, reason
    busy_share = sum(figures.busy_shares) / len(figures.busy_shares)
    by_time = tier.ready_replicas * busy_share / rules.busy_target
    if by_time <= by_demand:
        return by_demand, reason
    return by_time, Reason.WORKERS_BUSY if by_time > tier.replicas else Reason.DEMAND_BELOW


def _recommend(
    rules: Rules, tier: Tier, needed: float, needed_reason: Reason
) -> tuple[int, Reason]:
    if tier.replicas and abs(needed / tier.replicas - 1) <= rules.tolerance:
        return tier.replicas, Reason.WITHIN_TOLERANCE
    recommended = math.ceil(needed - _ROUNDING)
    return recommended, Reason.STEADY if recommended == tier.replicas else needed_reason


def _remember(
    rules: Rules, tier: Tier, history: History, recommended: int, *, now_s: float
) -> History:
    horizon_s = max(rules.up_window_s, rules.down_window_s)
    past = history.recommendations or ((now_s, tier.replicas),)
    sizes = history.sizes
    if not sizes or sizes[-1][1] != tier.replicas:
        sizes = (*sizes, (now_s, tier.replicas))
    return History(
        _thin((*_since(past, now_s - horizon_s), (now_s, recommended))),
        _since_with_last(sizes, now_s - max(rules.up.period_s, rules.down.period_s)),
    )


def _since(points: tuple[tuple[float, int], ...], start_s: float) -> tuple[tuple[float, int], ...]:
    return tuple(point for point in points if point[0] > start_s)


def _since_with_last(
    points: tuple[tuple[float, int], ...], start_s: float
) -> tuple[tuple[float, int], ...]:
    """Return the points after start_s, and the last one before it: it held at the start."""
    kept = _since(points, start_s)
    return points[len(points) - len(kept) - 1 :] if len(kept) < len(points) else kept


def _thin(points: tuple[tuple[float, int], ...]) -> tuple[tuple[float, int], ...]:
    """Drop the inner points of runs of one value: their first and last say the same."""
    return tuple(
        point
        for index, point in enumerate(points)
        if index in (0, len(points) - 1)
        or not points[index - 1][1] == point[1] == points[index + 1][1]
    )


def _stabilize(
    rules: Rules,
    tier: Tier,
    history: History,
    recommendation: tuple[int, Reason],
    *,
    now_s: float,
) -> tuple[int, Reason]:
    recommended, reason = recommendation
    if recommended > tier.replicas:
        recent = _since(history.recommendations, now_s - rules.up_window_s)
        least = min((value for _, value in recent), default=recommended)
        settled = max(tier.replicas, min(least, recommended))
        return settled, reason if settled > tier.replicas else Reason.STABILIZING_UP
    if recommended < tier.replicas:
        recent = _since(history.recommendations, now_s - rules.down_window_s)
        most = max((value for _, value in recent), default=recommended)
        settled = min(tier.replicas, max(most, recommended))
        return settled, reason if settled < tier.replicas else Reason.STABILIZING_DOWN
    return recommended, reason


def _limit_step(
    rules: Rules,
    tier: Tier,
    history: History,
    settled: tuple[int, Reason],
    *,
    now_s: float,
) -> tuple[int, Reason]:
    """Bound the change within a period, counted from the sizes that the tier had in it."""
    replicas = settled[0]
    if replicas > tier.replicas:
        start = min(_sizes_since(history, now_s - rules.up.period_s, tier))
        most = max(start + rules.up.most(start), tier.replicas, rules.min_replicas)
        return (most, Reason.STEP_LIMITED) if replicas > most else settled
    if replicas < tier.replicas:
        start = max(_sizes_since(history, now_s - rules.down.period_s, tier))
        least = min(start - rules.down.most(start), tier.replicas)
        return (least, Reason.STEP_LIMITED) if replicas < least else settled
    return settled


def _sizes_since(history: History, start_s: float, tier: Tier) -> list[int]:
    return [size for _, size in _since_with_last(history.sizes, start_s)] or [tier.replicas]
