"""How many lanes a run has, and from how many sequences on.

Where stages and workers have machines of their own, two lanes a stage let one be computed while
the other is attended, and their rows are merged where they meet. Where all share the cores of one
machine, a stage computes several segments at a time, each of another lane (`stage/crew.py`); two
lanes more are with the attention workers meanwhile.
"""

from dataclasses import dataclass

from glinthawk.config.batch import BatchConfig
from glinthawk.config.fields import APART_LANE_ROWS, SHARED_LANE_ROWS
from glinthawk.config.gateway import GatewayConfig, UpConfig
from glinthawk.config.machine import count_cores, count_segments
from glinthawk.gateway.launcher import share_threads


@dataclass(frozen=True)
class LaneSettings:
    """Sizes of lanes and steps, as `SchedulerConfig` explains them."""

    num_lanes: int
    max_lane_rows: int
    min_lane_rows: int
    prefill_tokens: int


def choose_lanes(config: BatchConfig | GatewayConfig) -> LaneSettings:
    """Return what `config` says of lanes, and the default for where the members are."""
    if isinstance(config, UpConfig) or (isinstance(config, BatchConfig) and config.listen is None):
        shares = share_threads(
            config.threads,
            num_cores=count_cores(),
            num_stages=config.stages,
            num_workers=config.attention_workers,
        )
        num_segments = config.stages * count_segments(shares.stage)
        num_lanes, min_lane_rows = num_segments + 2, SHARED_LANE_ROWS
    else:
        num_lanes, min_lane_rows = max(2, 2 * config.stages), APART_LANE_ROWS
    return LaneSettings(
        num_lanes=config.lanes or num_lanes,
        max_lane_rows=config.max_lane_rows,
        min_lane_rows=config.min_lane_rows or min_lane_rows,
        prefill_tokens=config.prefill_tokens,
    )
