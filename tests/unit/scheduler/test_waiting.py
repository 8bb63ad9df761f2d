"""Flows share what is served by their weights, whatever the size of their requests."""

import itertools
import random

import pytest

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.ids import SequenceId
from glinthawk.core.sampling import SamplingParams
from glinthawk.core.step import SequenceStart
from glinthawk.errors import InvalidRequest
from glinthawk.scheduler import Flow, Scheduler, SchedulerConfig, SequenceGroup
from glinthawk.scheduler.sequence import Group, Sequence
from glinthawk.scheduler.simulation import ClusterModel, Simulation
from glinthawk.scheduler.waiting import WaitingQueue

GEOMETRY = KVGeometry(8, 8, 2, 64, DType.FLOAT16, (None,) * 8)
NUMBERS = itertools.count(1)


def sequence_of(flow: Flow, prompt: int = 10) -> Sequence:
    number = next(NUMBERS)
    start = SequenceStart(SequenceId(number), (5,) * prompt, prompt, SamplingParams())
    return Sequence(start, Group(prompt, 10, None, flow), number, [5] * prompt, prompt + 10)


def serve_next(queue: WaitingQueue, tokens: int) -> Sequence:
    sequence = next(iter(queue))
    queue.serve(sequence, tokens)
    return sequence


def test_one_flow_is_served_as_it_came() -> None:
    queue = WaitingQueue()
    sequences = [sequence_of(Flow("a")) for _ in range(50)]
    for sequence in sequences:
        queue.append(sequence)
    assert list(queue) == sequences
    assert [serve_next(queue, 20) for _ in sequences] == sequences
    assert len(queue) == 0


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0), (8.0, 1.0)])
def test_tokens_are_shared_by_weight_within_a_twentieth(weights: tuple[float, float]) -> None:
    """Requests of the one flow are ten times those of the other."""
    queue = WaitingQueue()
    flows = [Flow(f"flow{index}", weight) for index, weight in enumerate(weights)]
    sizes, served = {"flow0": 30, "flow1": 300}, {"flow0": 0, "flow1": 0}
    for flow in flows:
        for _ in range(5000):
            queue.append(sequence_of(flow))
    while max(served.values()) < 100_000:
        name = next(iter(queue)).group.flow.name
        serve_next(queue, sizes[name])
        served[name] += sizes[name]
    expected = weights[0] / sum(weights)
    assert abs(served["flow0"] / sum(served.values()) - expected) <= 0.05 * expected


def test_a_flow_that_was_idle_is_next_but_has_saved_up_nothing() -> None:
    queue = WaitingQueue()
    for _ in range(2000):
        queue.append(sequence_of(Flow("job")))
    for _ in range(1000):
        serve_next(queue, 100)
    late = [sequence_of(Flow("late")) for _ in range(500)]
    for sequence in late:
        queue.append(sequence)
    order = [serve_next(queue, 100).group.flow.name for _ in range(200)]
    assert "late" in order[:2]
    assert 95 <= order.count("late") <= 105


def test_what_was_charged_too_much_is_given_back() -> None:
    queue = WaitingQueue()
    flows = {name: Flow(name) for name in ("long", "short")}
    served = {"long": 0, "short": 0}
    for flow in flows.values():
        for _ in range(3000):
            queue.append(sequence_of(flow))
    for _ in range(2000):
        sequence = serve_next(queue, 100)
        flow = sequence.group.flow
        actual = 100 if flow.name == "long" else 25
        queue.charge(flow, actual - 100)
        served[flow.name] += actual
    assert abs(served["long"] / served["short"] - 1) <= 0.05


def test_random_operations_keep_count_and_order() -> None:
    random_ = random.Random(7)
    queue = WaitingQueue()
    flows = [Flow(f"f{index}", random_.choice((0.5, 1.0, 4.0))) for index in range(5)]
    waiting: list[Sequence] = []
    running: list[Sequence] = []
    for _ in range(5000):
        action = random_.random()
        if action < 0.4 or not waiting:
            waiting.append(sequence_of(random_.choice(flows)))
            queue.append(waiting[-1])
        elif action < 0.7:
            sequence = next(itertools.islice(queue, random_.randrange(min(3, len(queue))), None))
            queue.serve(sequence, random_.randint(1, 50))
            waiting.remove(sequence)
            running.append(sequence)
        elif action < 0.85:
            sequence = random_.choice(waiting)
            queue.remove(sequence)
            waiting.remove(sequence)
        elif running:
            sequence = running.pop(random_.randrange(len(running)))
            queue.put_back(sequence)
            waiting.append(sequence)
        order = list(queue)
        assert len(order) == len(queue) == len(waiting)
        assert set(map(id, order)) == set(map(id, waiting))
        for flow in flows:
            fresh = [s.order for s in order if s.group.flow is flow and not s.charged]
            assert fresh == sorted(fresh)


def test_a_weight_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="weight 0"):
        Flow("a", 0.0)


def group_of(flow: Flow, prompt: int, output: int) -> SequenceGroup:
    start = SequenceStart(SequenceId(next(NUMBERS)), (5,) * prompt, prompt, SamplingParams())
    return SequenceGroup((start,), output, flow=flow)


def test_jobs_share_a_busy_cluster_by_weight_and_a_caller_is_not_kept_waiting() -> None:
    """Lengths are not known beforehand: each job is learned by its outputs."""
    scheduler = Scheduler(
        SchedulerConfig(geometry=GEOMETRY, num_lanes=2, max_lane_rows=32, prefill_tokens=512)
    )
    jobs = {"large": (Flow("large", 1.0), 100, 200), "small": (Flow("small", 3.0), 20, 40)}
    flow_of: dict[SequenceId, str] = {}
    asked_at: dict[SequenceId, float] = {}

    def add(flow: Flow, prompt: int, output: int) -> SequenceId:
        group = group_of(flow, prompt, output)
        scheduler.add(group)
        identity = group.starts[0].sequence
        flow_of[identity] = flow.name
        return identity

    def refill(now: float) -> None:
        counts = dict.fromkeys(jobs, 0)
        for sequence in scheduler._books.queue:
            counts[sequence.group.flow.name] = counts.get(sequence.group.flow.name, 0) + 1
        for name, (flow, prompt, output) in jobs.items():
            for _ in range(60 - counts[name]):
                add(flow, prompt, output)
        if len(asked_at) < now * 2:
            asked_at[add(Flow("caller", 8.0), 30, 20)] = now

    simulation = Simulation(scheduler, ClusterModel(), refill=refill)
    simulation.add_worker("w0", 4000)
    simulation.run(5.0)
    began = simulation.now
    report = simulation.run(60.0)
    tokens = dict.fromkeys(jobs, 0)
    for identity, at in report.finished_at.items():
        name = flow_of[identity]
        if at >= began and name in jobs:
            tokens[name] += sum(jobs[name][1:])
    assert abs(tokens["small"] / tokens["large"] - 3) <= 0.15
    waits = [
        report.finished_at[identity] - asked
        for identity, asked in asked_at.items()
        if identity in report.finished_at
    ]
    assert len(waits) >= len(asked_at) - 2
    assert max(waits) < 2.0
