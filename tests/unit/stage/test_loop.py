"""The loop of a real small stage, whose peers the test plays over real connections.

A release step has no rows, so it shows the ways of a step without the layers: to the worker, and
with its answer to the gateway.
"""

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from glinthawk.core.ids import LaneId, SequenceId
from glinthawk.core.sampling import SamplingParams
from glinthawk.core.step import SequenceStart, StepKind, StepPlan
from glinthawk.errors import GlinthawkError, PeerUnavailable
from glinthawk.stage.loop import StageLoop
from glinthawk.stage.prefill import PrefillAttention
from glinthawk.stage.runner import SegmentRunner
from glinthawk.stage.sampler import Sampler
from glinthawk.stage.tail import Tail
from glinthawk.stage.work import (
    Event,
    GatewayConnected,
    GatewayLost,
    LinkLost,
    LinkUp,
    RunEnded,
    StepArrived,
    Stop,
    ViewChanged,
    WorkerAnswered,
)
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.failures import decode_failure
from glinthawk.wire.frames import FrameHeader, FrameKind
from glinthawk.wire.messages import Member, Role
from glinthawk.wire.results import decode_result
from unit.stage.connections import Link
from unit.stage.factories import FLOAT32, build_reference, build_weights

W0 = Member(Role.ATTENTION, "w0", "a:1", epoch=3)
W1 = Member(Role.ATTENTION, "w1", "b:1", epoch=4)
NEXT = Member(Role.STAGE, "s1", "c:1", 2, 3, epoch=2)


class Stage:
    """A loop on its thread, with a gateway and two workers at the far ends."""

    def __init__(self, *, last_layer: int = 3) -> None:
        model, config = build_reference("llama")
        weights = build_weights(model, 0, last_layer)
        runner = SegmentRunner(config, weights, FLOAT32, num_positions=64)
        self.sampler = Sampler(config.vocab_size, runner.device)
        self.loop = StageLoop(
            runner,
            PrefillAttention(config, FLOAT32),
            Tail(runner, self.sampler) if runner.is_last else None,
            max_rows=64,
            metrics=ServiceMetrics(CollectorRegistry()),
        )
        self.gateway = Link("gateway")
        self.links = {member: Link(member.name) for member in (W0, W1, NEXT)}
        self.thread = threading.Thread(target=self.loop.run, daemon=True)
        self.thread.start()
        self.post(GatewayConnected(self.gateway.outbox))

    def post(self, *events: Event) -> None:
        for event in events:
            self.loop.post(event)

    def connect(self, *members: Member) -> None:
        self.post(*(LinkUp(member, self.links[member].outbox) for member in members))

    def close(self) -> None:
        self.post(Stop())
        self.thread.join(10.0)
        for link in (self.gateway, *self.links.values()):
            link.close()

    def next_composed(self, member: Member) -> int:
        """Return the step of the next COMPOSE frame that a worker gets."""
        header, _ = self.links[member].far.receive()
        assert (header.kind, header.epoch) == (FrameKind.COMPOSE, member.epoch)
        return header.step

    def answer(self, member: Member, lane: int, step: int) -> None:
        """Answer a composition."""
        header = FrameHeader(FrameKind.COMPOSED, epoch=member.epoch, lane=lane, step=step)
        self.post(WorkerAnswered(member.name, header, memoryview(b"")))

    def next_result(self) -> int:
        """Return the step of the next frame to the gateway, which must be a result."""
        header, payload = self.gateway.far.receive()
        assert header.kind is FrameKind.RESULT
        return decode_result(payload, header).step

    def next_failure(self) -> tuple[int, GlinthawkError]:
        """Return step and error of the next frame to the gateway, which must be a failure."""
        header, payload = self.gateway.far.receive()
        assert header.kind is FrameKind.FAILED
        return header.step, decode_failure(payload)


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def release(worker: Member, step: int, *, epoch: int | None = None, lane: int = 0) -> StepArrived:
    """Return a step without rows, in a lane of its own unless one is given."""
    plan = StepPlan(
        kind=StepKind.RELEASE,
        lane=LaneId(lane or step),
        step=step,
        worker=worker.name,
        sequences=np.zeros(0, dtype=np.uint64),
        starts=np.zeros(0, dtype=np.uint32),
        counts=np.zeros(0, dtype=np.uint32),
        samples=np.zeros(0, dtype=np.bool_),
        tokens=np.zeros(0, dtype=np.uint32),
    )
    header = FrameHeader(
        FrameKind.STEP, epoch=worker.epoch if epoch is None else epoch, lane=plan.lane, step=step
    )
    return StepArrived(header, plan, None)


def registering(step: StepArrived, *sequences: int, releases: tuple[int, ...] = ()) -> StepArrived:
    starts = tuple(SequenceStart(SequenceId(s), (1, 2), 2, SamplingParams()) for s in sequences)
    released = tuple(SequenceId(item) for item in releases)
    return replace(step, plan=replace(step.plan, registrations=starts, releases=released))


def test_steps_that_come_before_their_links_run_in_their_order_when_those_are_there(
    stage: Stage,
) -> None:
    stage.post(release(W0, 1), release(W0, 2))
    stage.post(ViewChanged(9, (W0, W1), None), release(W0, 3))
    stage.connect(W0)
    assert [stage.next_composed(W0) for _ in range(3)] == [1, 2, 3]
    stage.answer(W0, 2, 2)
    assert stage.next_result() == 2


def test_a_worker_that_cannot_be_reached_holds_up_nobody_else(stage: Stage) -> None:
    stage.post(ViewChanged(9, (W0, W1), None), release(W1, 1), release(W0, 2))
    stage.connect(W0)
    assert stage.next_composed(W0) == 2
    stage.answer(W0, 2, 2)
    assert stage.next_result() == 2
    stage.post(LinkLost(W1, PeerUnavailable("w1 does not answer")))
    step, error = stage.next_failure()
    assert step == 1
    assert "w1 does not answer" in str(error)
    stage.post(release(W1, 3))
    assert stage.next_failure()[0] == 3


def test_a_worker_that_is_lost_fails_its_own_steps_only(stage: Stage) -> None:
    stage.post(ViewChanged(9, (W0, W1), None))
    stage.connect(W0, W1)
    stage.post(release(W0, 1), release(W1, 2))
    assert stage.next_composed(W1) == 2
    stage.post(LinkLost(W1, PeerUnavailable("broken")))
    assert stage.next_failure()[0] == 2
    stage.answer(W0, 1, 1)
    assert stage.next_result() == 1


def test_a_later_epoch_drops_the_steps_of_the_one_before_without_a_word(stage: Stage) -> None:
    stage.post(ViewChanged(9, (W0,), None))
    stage.connect(W0)
    stage.post(release(W0, 1))
    assert stage.next_composed(W0) == 1
    again = replace(W0, epoch=11)
    stage.links[again] = Link("w0")
    stage.post(ViewChanged(12, (again,), None))
    stage.connect(again)
    stage.answer(W0, 1, 1)
    stage.post(release(W0, 2), release(again, 3))
    assert stage.next_composed(again) == 3
    stage.answer(again, 3, 3)
    assert stage.next_result() == 3


def test_steps_of_a_worker_that_left_are_dropped(stage: Stage) -> None:
    stage.post(ViewChanged(9, (W0, W1), None))
    stage.connect(W0)
    stage.post(release(W1, 1), ViewChanged(12, (W0,), None), release(W1, 2), release(W0, 3))
    assert stage.next_composed(W0) == 3
    stage.answer(W0, 3, 3)
    assert stage.next_result() == 3


def test_what_a_new_gateway_connection_gets_is_not_of_the_one_before(stage: Stage) -> None:
    stage.post(ViewChanged(9, (W0,), None))
    stage.connect(W0)
    stage.post(release(W0, 1))
    assert stage.next_composed(W0) == 1
    stage.post(GatewayLost(stage.gateway.outbox, "gone"))
    stage.gateway.close()
    stage.gateway = Link("gateway")
    stage.post(GatewayConnected(stage.gateway.outbox))
    stage.answer(W0, 1, 1)
    stage.post(release(W0, 2))
    assert stage.next_composed(W0) == 2
    stage.answer(W0, 2, 2)
    assert stage.next_result() == 2


def test_after_a_run_the_next_one_may_have_the_same_epochs(stage: Stage) -> None:
    stage.post(ViewChanged(9, (W0,), None))
    stage.connect(W0)
    stage.post(release(W0, 1))
    assert stage.next_composed(W0) == 1
    stage.post(RunEnded(), ViewChanged(9, (W0,), None), GatewayConnected(stage.gateway.outbox))
    stage.links[W0].close()
    stage.links[W0] = Link("w0")
    stage.post(release(W0, 1))
    stage.connect(W0)
    assert stage.next_composed(W0) == 1


def test_a_sequence_that_runs_elsewhere_by_now_is_not_forgotten_with_its_former_worker(
    stage: Stage,
) -> None:
    stage.post(ViewChanged(9, (W0, W1), None))
    stage.connect(W0, W1)
    steps = [
        registering(release(W0, 1), 7, 8),
        registering(release(W1, 2), 7),
        registering(release(W0, 3), releases=(7,)),
    ]
    for number, (member, step) in enumerate(zip((W0, W1, W0), steps, strict=True), 1):
        stage.post(step)
        assert stage.next_composed(member) == number
        stage.answer(member, number, number)
        assert stage.next_result() == number
    assert stage.sampler.start_of(SequenceId(7)).sequence == 7
    stage.post(ViewChanged(12, (W1,), None), release(W1, 4))
    assert stage.next_composed(W1) == 4
    assert stage.sampler.start_of(SequenceId(7)).sequence == 7
    with pytest.raises(GlinthawkError, match="8 is not registered"):
        stage.sampler.start_of(SequenceId(8))


def test_without_its_next_stage_it_lets_go_of_the_gateway() -> None:
    stage = Stage(last_layer=2)
    try:
        stage.post(ViewChanged(9, (W0,), NEXT))
        stage.connect(W0, NEXT)
        stage.post(release(W0, 1))
        assert stage.next_composed(W0) == 1
        stage.post(LinkLost(NEXT, PeerUnavailable("broken")))
        with pytest.raises(PeerUnavailable, match="closed"):
            stage.gateway.far.receive()
    finally:
        stage.close()
