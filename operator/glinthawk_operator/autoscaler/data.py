"""What a decision is made from, and what it is: frozen data, in bytes, seconds and shares."""

import math
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class StepLimit:
    """Within period_s the tier changes by the larger of so many replicas and such a share of it."""

    replicas: int
    share: float
    period_s: float

    def most(self, size: int) -> int:
        """Return by how many replicas a tier of `size` may change."""
        return max(self.replicas, math.floor(size * self.share))


@dataclass(frozen=True)
class Rules:
    """The numbers of the resource that bound and steer the memory tier.

    target_share: of the capacity that demand should fill, 0.8 for 80%. tolerance: deviations from
    the present size up to this share are left alone. up_window_s, down_window_s: how long a need
    must have lasted. up, down: how far the tier may grow and shrink in a time. idle_threshold: only
    while stages idle more than this does busy time count. busy_target: the busy share of workers
    aimed at then. stale_after_s: older figures are worth nothing.
    """

    min_replicas: int
    max_replicas: int
    capacity_per_worker_bytes: int
    target_share: float = 0.8
    tolerance: float = 0.1
    up_window_s: float = 0.0
    down_window_s: float = 300.0
    up: StepLimit = StepLimit(4, 1.0, 15.0)
    down: StepLimit = StepLimit(1, 0.1, 60.0)
    idle_threshold: float = 0.10
    busy_target: float = 0.85
    stale_after_s: float = 60.0


@dataclass(frozen=True)
class Figures:
    """What the gateway said at measured_at_s.

    busy_shares: of the workers that are ready, those that are known. stage_idle_share: of the GPU
    tier, None while it is not known.
    """

    measured_at_s: float
    used_bytes: int
    demanded_bytes: int
    busy_shares: tuple[float, ...] = ()
    stage_idle_share: float | None = None


@dataclass(frozen=True)
class Tier:
    """The memory tier as it is: replicas that are wanted now, and those that are ready."""

    replicas: int
    ready_replicas: int


@dataclass(frozen=True)
class History:
    """What was recommended lately, and how large the tier was: (when, replicas), oldest first."""

    recommendations: tuple[tuple[float, int], ...] = ()
    sizes: tuple[tuple[float, int], ...] = ()


class Reason(StrEnum):
    """Why a decision came out as it did; a word for events, metrics and the status."""

    DEMAND_ABOVE = "DemandAbove"
    DEMAND_BELOW = "DemandBelow"
    WORKERS_BUSY = "WorkersBusy"
    STEADY = "Steady"
    WITHIN_TOLERANCE = "WithinTolerance"
    STABILIZING_UP = "StabilizingUp"
    STABILIZING_DOWN = "StabilizingDown"
    STEP_LIMITED = "StepLimited"
    AT_MINIMUM = "AtMinimum"
    AT_MAXIMUM = "AtMaximum"
    FIGURES_MISSING = "FiguresMissing"
    FIGURES_STALE = "FiguresStale"
    AS_SPECIFIED = "AsSpecified"


@dataclass(frozen=True)
class Decision:
    """How many replicas there should be, why, and from what.

    needed: what the formula asks for, before windows, steps and bounds; None where the figures
    are of no use. figures: those that it was made from.
    """

    replicas: int
    reason: Reason
    needed: float | None
    figures: Figures | None
    history: History

    @property
    def is_frozen(self) -> bool:
        """Whether it was made without figures."""
        return self.reason in (Reason.FIGURES_MISSING, Reason.FIGURES_STALE)
