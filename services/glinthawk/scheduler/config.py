"""What the scheduler is told once: the shape of the KV cache and the sizes of steps."""

import math
from dataclasses import dataclass

from glinthawk.core.geometry import KVGeometry
from glinthawk.errors import InvalidConfig
from glinthawk.scheduler.lengths import DEFAULT_TOKENS


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits and targets of the scheduler.

    num_lanes: decode lanes wanted in flight, over all workers (see `required_lanes`).
    max_lane_rows: sequences of one lane (the buffer of a stage).
    min_lane_rows: a worker opens another lane only when each would have this many rows:
        below it, a second lane costs a second reading of the weights and hides nothing.
    prefill_tokens: rows of one prefill step.
    prefills_per_worker: prefill steps in flight for one worker.
    prefills_in_flight: prefill steps in flight in all.
    max_sequence_length: tokens of prompt and output together.
    watermark: share of a worker's pages that admission leaves free for running sequences.
    lone_tokens: a sequence shorter than this never gets a lane of its own.
    default_expected_tokens: output expected of a sequence while nothing better is known.
    """

    geometry: KVGeometry
    num_lanes: int = 2
    max_lane_rows: int = 256
    min_lane_rows: int = 16
    prefill_tokens: int = 2048
    prefills_per_worker: int = 1
    prefills_in_flight: int = 4
    max_sequence_length: int = 8192
    watermark: float = 0.02
    lone_tokens: int = 1024
    default_expected_tokens: int = DEFAULT_TOKENS

    def __post_init__(self) -> None:
        minima = {
            "num_lanes": 2,
            "max_lane_rows": 1,
            "min_lane_rows": 1,
            "prefill_tokens": 1,
            "prefills_per_worker": 1,
            "prefills_in_flight": 1,
            "max_sequence_length": 2,
            "default_expected_tokens": 1,
        }
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise InvalidConfig(f"{name} is {getattr(self, name)}; use at least {minimum}")
        if not 0.0 <= self.watermark < 0.5:
            raise InvalidConfig(f"watermark is {self.watermark}; use a share in [0, 0.5)")


@dataclass(frozen=True)
class LaneTimings:
    """Mean seconds of one layer of one lane: rows out to the worker, attention, rows back,
    the network's round trip, and the stage's segment."""

    out_s: float
    attention_s: float
    back_s: float
    round_trip_s: float
    segment_s: float


def required_lanes(num_stages: int, timings: LaneTimings) -> int:
    """Return the fewest lanes that keep `num_stages` stages busy, and at least two.

    While one lane's rows are away for out + attention + back + round trip, other lanes must
    fill the stage with segments: stages x (1 + ceil(away / segment)).
    """
    if num_stages < 1 or timings.segment_s <= 0:
        raise InvalidConfig(
            f"{num_stages} stages with segments of {timings.segment_s} s; both must be positive"
        )
    away = timings.out_s + timings.attention_s + timings.back_s + timings.round_trip_s
    return max(2, num_stages * (1 + math.ceil(away / timings.segment_s)))
