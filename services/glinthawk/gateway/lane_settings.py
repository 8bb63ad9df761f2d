"""How many lanes a run has, and from how many sequences on.

Two lanes a stage let one be computed while the other is attended, and their rows are merged where
they meet. Where stages and workers share the cores of one machine a second lane overlaps nothing:
its threads and the first one's wait for each other, and each product has half of the rows. So a
lane is large there before another is opened.
"""

from dataclasses import dataclass

from glinthawk.config.batch import BatchConfig
from glinthawk.config.fields import APART_LANE_ROWS, SHARED_LANE_ROWS
from glinthawk.config.gateway import GatewayConfig


@dataclass(frozen=True)
class LaneSettings:
    """Sizes of lanes and steps, as `SchedulerConfig` explains them."""

    num_lanes: int
    max_lane_rows: int
    min_lane_rows: int
    prefill_tokens: int


def choose_lanes(config: BatchConfig | GatewayConfig) -> LaneSettings:
    """Return what `config` says of lanes, and the default for where the members are."""
    is_shared = isinstance(config, BatchConfig) and config.listen is None
    return LaneSettings(
        num_lanes=config.lanes or max(2, 2 * config.stages),
        max_lane_rows=config.max_lane_rows,
        min_lane_rows=config.min_lane_rows or (SHARED_LANE_ROWS if is_shared else APART_LANE_ROWS),
        prefill_tokens=config.prefill_tokens,
    )
