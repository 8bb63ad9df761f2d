"""The way out of a stage: to the next stage, or as a result or an error to the gateway."""

from collections.abc import Sequence

import torch

from glinthawk.core.step import StepResult
from glinthawk.errors import GlinthawkError, InvariantBroken, PeerUnavailable
from glinthawk.stage.tail import Tail
from glinthawk.stage.work import Passage, host_copy, tensor_bytes
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.composition import encode_step
from glinthawk.wire.failures import encode_failure
from glinthawk.wire.frames import FrameFlags, FrameHeader, FrameKind
from glinthawk.wire.outbox import Outbox
from glinthawk.wire.results import encode_result

log = get_logger("stage.exits")


class Exits:
    """Where finished and failed steps go. `tail` is None on all stages but the last."""

    def __init__(self, tail: Tail | None, metrics: ServiceMetrics) -> None:
        self._tail = tail
        self._metrics = metrics
        self.next_stage: Outbox | None = None
        self.gateway: Outbox | None = None

    def forget_worker(self, worker: str) -> None:
        """Drop what is known of the sequences of a worker whose cache is void."""
        if self._tail is not None:
            self._tail.forget_worker(worker)

    def end_run(self) -> None:
        """Drop all that belongs to the gateway's run."""
        self.next_stage = self.gateway = None
        if self._tail is not None:
            self._tail.forget_all()

    def leave(self, passages: Sequence[Passage], *, prefill_first: bool) -> None:
        """Pass steps on that are through this stage's layers; all are of one kind.

        Raises:
            PeerUnavailable: the next stage is not connected.
            InvariantBroken: no gateway is connected.
        """
        if self._tail is None:
            for passage in passages:
                self._forward(passage, prefill_first=prefill_first)
            return
        for passage, result in zip(passages, self._tail.finish(passages), strict=True):
            self._answer(passage, result)

    def fail(self, header: FrameHeader, error: GlinthawkError) -> None:
        """Tell the gateway that the step of `header` ended with an error."""
        log.error("step_failed", lane=header.lane, step=header.step, error=str(error))
        if self.gateway is not None:
            failed = FrameHeader(
                FrameKind.FAILED, epoch=header.epoch, lane=header.lane, step=header.step
            )
            self.gateway.post(failed, encode_failure(error))

    def pass_failure(self, header: FrameHeader, payload: memoryview) -> None:
        """Hand a worker's FAILED frame to the gateway as it is."""
        log.error("worker_refused_step", lane=header.lane, step=header.step)
        if self.gateway is not None:
            self.gateway.post(header, payload)

    def _forward(self, passage: Passage, *, prefill_first: bool) -> None:
        if self.next_stage is None:
            raise PeerUnavailable("the next stage is not connected to this one")
        plan = passage.plan
        header = FrameHeader(
            FrameKind.STEP,
            epoch=passage.epoch,
            lane=plan.lane,
            step=plan.step,
            rows=plan.num_rows,
            flags=FrameFlags.PREFILL_FIRST if prefill_first else FrameFlags.NONE,
        )
        composition = encode_step(plan, include_tokens_and_registrations=True)
        activations = host_copy(passage.residual) if plan.num_rows else torch.empty(0)
        self.next_stage.post(header, composition, tensor_bytes(activations))

    def _answer(self, passage: Passage, result: StepResult) -> None:
        if self.gateway is None:
            raise InvariantBroken("a step ended, and no gateway is connected to take its result")
        self._metrics.steps.inc()
        header = FrameHeader(
            FrameKind.RESULT,
            epoch=passage.epoch,
            lane=passage.plan.lane,
            step=passage.plan.step,
            rows=len(result.sampled),
        )
        self.gateway.post(header, encode_result(result))
