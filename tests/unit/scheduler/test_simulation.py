"""The whole scheduler in simulated time: lanes stay full, prefill is fed, nobody is held up."""

import itertools
import random

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.ids import SequenceId
from glinthawk.core.sampling import SamplingParams
from glinthawk.core.step import SequenceStart
from glinthawk.scheduler import Scheduler, SchedulerConfig, SequenceGroup
from glinthawk.scheduler.simulation import ClusterModel, Report, Simulation

GEOMETRY = KVGeometry(8, 8, 2, 64, DType.FLOAT16, (None,) * 8)
NUMBERS = itertools.count(1)


def request(prompt: int, output: int, expected: int | None = None) -> SequenceGroup:
    """Return a request of one choice."""
    start = SequenceStart(SequenceId(next(NUMBERS)), (5,) * prompt, prompt, SamplingParams())
    return SequenceGroup((start,), output, expected)


def config(**changes: object) -> SchedulerConfig:
    """Return a small configuration with some fields changed."""
    fields: dict[str, object] = {
        "geometry": GEOMETRY,
        "num_lanes": 4,
        "max_lane_rows": 32,
        "min_lane_rows": 8,
        "prefill_tokens": 512,
    }
    return SchedulerConfig(**(fields | changes))  # type: ignore[arg-type]


def endless(scheduler: Scheduler, seed: int) -> Simulation:
    """Return a simulation whose queue never empties; lengths vary."""
    lengths = random.Random(seed)

    def refill(now: float) -> None:
        while scheduler.num_waiting < 20:
            scheduler.add(request(lengths.randint(20, 300), lengths.randint(20, 200)))

    model = ClusterModel(num_stages=2, attention_token_s=2e-8, latency_s=2e-4)
    return Simulation(scheduler, model, refill=refill)


def run_endless(scheduler: Scheduler, num_pages: int, num_workers: int, seed: int) -> Report:
    """Warm up, then measure."""
    simulation = endless(scheduler, seed)
    for number in range(num_workers):
        simulation.add_worker(f"w{number}", num_pages)
    simulation.run(4.0)
    scheduler.check_integrity()
    return simulation.run(8.0)


def test_lanes_stay_full_under_an_endless_queue() -> None:
    for num_workers in (1, 2):
        scheduler = Scheduler(config())
        report = run_endless(scheduler, 4000, num_workers, seed=num_workers)
        assert report.mean_rows >= 0.85 * 4 * 32


def test_kv_stays_full_and_little_is_recomputed_when_memory_is_the_limit() -> None:
    scheduler = Scheduler(config())
    simulation = endless(scheduler, seed=3)
    simulation.add_worker("w0", 400)
    simulation.run(4.0)
    used: list[float] = []
    tokens = 0
    for _ in range(60):
        tokens += simulation.run(0.1).tokens
        stats = scheduler.stats()
        used.append(stats.kv_used_bytes / stats.kv_capacity_bytes)
    assert sum(used) / len(used) >= 0.8
    assert scheduler.stats().recomputed_tokens <= 0.02 * tokens


def test_one_long_sequence_does_not_hold_up_the_others() -> None:
    def mean_finish(with_long: bool) -> float:
        scheduler = Scheduler(config(max_sequence_length=40_000, num_lanes=2))
        simulation = Simulation(scheduler, ClusterModel(attention_token_s=2e-7))
        simulation.add_worker("w0", 2000)
        simulation.add_worker("w1", 2000)
        if with_long:
            long = request(20_000, 4000)
            scheduler.add(long)
        short = [request(50, 50) for _ in range(32)]
        simulation.run(4.0)
        began = simulation.now
        for group in short:
            scheduler.add(group)
        report = simulation.run(4.0)
        times = [report.finished_at[group.starts[0].sequence] for group in short]
        return sum(times) / len(times) - began

    assert mean_finish(with_long=True) <= 1.4 * mean_finish(with_long=False)


def test_starts_are_staggered_so_that_memory_holds_more_than_its_peak_allows() -> None:
    scheduler = Scheduler(config(num_lanes=2, max_lane_rows=512))
    simulation = Simulation(scheduler, ClusterModel())
    simulation.add_worker("w0", 640)
    for _ in range(400):
        scheduler.add(request(32, 480, expected=480))
    simulation.run(4.0)
    report = simulation.run(6.0)
    together = 640 // 16
    assert report.mean_rows > 1.4 * together
    assert scheduler.stats().num_set_back <= 20


def test_every_sequence_finishes_when_kv_is_far_too_small() -> None:
    scheduler = Scheduler(config(num_lanes=2))
    simulation = Simulation(scheduler, ClusterModel())
    simulation.add_worker("w0", 9)
    groups = [request(40, 200, expected=4) for _ in range(20)]
    for group in groups:
        scheduler.add(group)
    report = simulation.run(1000.0)
    assert len(report.finished_at) == len(groups)
    assert scheduler.stats().num_set_back > 0
