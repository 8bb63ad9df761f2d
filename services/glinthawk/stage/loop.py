"""The stage's compute thread: takes events, chooses the next segment, runs it.

    reader threads --events--> [ loop: choose_segment -> segments ] --outboxes--> workers,
                                                                       next stage, gateway

All state of steps belongs to this thread. Readers only receive into buffers and post events;
outboxes only send. It knows no sockets and no grpc.

A decode step visits every layer twice: `before_attention(l)` sends q, k, v to the worker of its
lane, and when o has come back `after_attention(l)` and `before_attention(l + 1)` run as one
segment, together with every other lane that is ready at that layer. A prefill step computes
attention here, ships K and V, and gives way to decode after each layer.
"""

import queue
import time
from collections.abc import Callable, Sequence

import torch

from glinthawk.core.step import StepKind
from glinthawk.errors import GlinthawkError, InvariantBroken
from glinthawk.scheduler import choose_segment
from glinthawk.stage.exits import Exits
from glinthawk.stage.lanes import Lanes
from glinthawk.stage.prefill import PrefillAttention
from glinthawk.stage.routes import Fate, Routes
from glinthawk.stage.runner import SegmentRunner
from glinthawk.stage.segments import FETCH_AHEAD, Segments
from glinthawk.stage.tail import Tail
from glinthawk.stage.work import (
    Event,
    GatewayConnected,
    GatewayLost,
    LinkLost,
    LinkUp,
    Passage,
    RunEnded,
    StepArrived,
    Stop,
    ViewChanged,
    WorkerAnswered,
)
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.composition import encode_step
from glinthawk.wire.frames import FrameFlags, FrameHeader, FrameKind

log = get_logger("stage.loop")


class StageLoop:
    """Runs the steps of one stage. `tail` is None on all stages but the last."""

    def __init__(
        self,
        runner: SegmentRunner,
        prefill: PrefillAttention,
        tail: Tail | None,
        *,
        max_rows: int,
        metrics: ServiceMetrics,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._runner = runner
        self._segments = Segments(runner, prefill, clock)
        self._exits = Exits(tail, metrics)
        self._max_rows = max_rows
        self._metrics = metrics
        self._clock = clock
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._lanes = Lanes(runner.last_layer)
        self._routes = Routes()
        self._early: list[StepArrived] = []
        self._prefill_first = False
        self.busy_s = 0.0

    # --- called from other threads

    def post(self, event: Event) -> None:
        """Hand an event to the loop, from any thread."""
        self._events.put(event)

    def receive_buffer(self, worker: str, header: FrameHeader) -> memoryview | None:
        """Return where a worker's OUTPUT belongs, or None for a frame that nobody awaits."""
        return self._lanes.receive_buffer(worker, header)

    # --- the loop

    def run(self) -> None:
        """Serve until `Stop` is posted."""
        with torch.inference_mode():
            while True:
                try:
                    event = self._events.get(block=not self._lanes.has_ready)
                except queue.Empty:
                    self._run_segment()
                    continue
                if isinstance(event, Stop):
                    return
                self._handle(event)

    def _handle(self, event: Event) -> None:
        if isinstance(event, StepArrived):
            self._begin(event)
        elif isinstance(event, WorkerAnswered):
            self._take_answer(event)
        elif isinstance(event, GatewayConnected):
            self._exits.gateway = event.outbox
            self._close_if_cut_off()
        elif isinstance(event, GatewayLost):
            self._lose_gateway(event)
        elif isinstance(event, RunEnded):
            self._end_run()
        elif isinstance(event, ViewChanged | LinkUp | LinkLost):
            self._change_routes(event)

    # --- events

    def _change_routes(self, event: ViewChanged | LinkUp | LinkLost) -> None:
        """Follow the view and its connections, then look again at the steps that waited."""
        if isinstance(event, ViewChanged):
            for worker in self._routes.change(event):
                self._forget_worker(worker)
        elif isinstance(event, LinkUp):
            self._routes.link_up(event)
        else:
            self._lose_link(event)
        self._exits.next_stage = self._routes.next_stage
        early, self._early = self._early, []
        for step in early:
            self._begin(step)

    def _forget_worker(self, worker: str) -> None:
        """Drop what belongs to a worker's past epoch; the gateway has counted it as lost."""
        for passage in self._lanes.of_worker(worker):
            self._lanes.drop(passage)
        self._exits.forget_worker(worker)

    def _lose_link(self, event: LinkLost) -> None:
        self._routes.link_lost(event)
        log.warning("link_lost", peer=event.member.name, reason=str(event.error))
        self._close_if_cut_off()
        for passage in self._lanes.of_worker(event.member.name):
            self._lanes.drop(passage)
            self._exits.fail(self._segments.header(passage, FrameKind.FAILED), event.error)

    def _close_if_cut_off(self) -> None:
        """Without the next stage, steps that left here may be lost: the gateway must know, and
        begins anew when it finds its connection closed."""
        if self._routes.is_cut_off and self._exits.gateway is not None:
            self._exits.gateway.close()

    def _lose_gateway(self, event: GatewayLost) -> None:
        if self._exits.gateway is not event.outbox:
            return
        log.warning("gateway_connection_lost", reason=event.reason)
        self._exits.gateway = None
        self._lanes.clear()

    def _end_run(self) -> None:
        self._routes = Routes()
        self._early.clear()
        self._lanes.clear()
        self._exits.end_run()

    def _begin(self, event: StepArrived) -> None:
        plan, header = event.plan, event.header
        fate = self._routes.judge(plan.worker, header.epoch)
        if fate is Fate.DROP:
            self._metrics.dropped_frames.inc()
            return
        if fate is Fate.HOLD:
            self._early.append(event)
            return
        if fate is Fate.FAIL:
            self._exits.fail(header, self._routes.failure(plan.worker))
            return
        worker = self._routes.outbox(plan.worker)
        self._prefill_first = bool(header.flags & FrameFlags.PREFILL_FIRST)
        passage = self._segments.open(event, worker)
        self._lanes.add(passage)
        if self._runner.is_first:
            composition = encode_step(plan, include_tokens_and_registrations=False)
            worker.post(self._segments.header(passage, FrameKind.COMPOSE), composition)
        if plan.kind is StepKind.RELEASE:
            passage.layer = self._runner.last_layer
        for layer in range(passage.layer, passage.layer + FETCH_AHEAD):
            self._segments.fetch(passage, layer)
        self._lanes.look_at(passage)

    def _take_answer(self, event: WorkerAnswered) -> None:
        header = event.header
        passage = self._lanes.find(header)
        if passage is None:
            self._metrics.dropped_frames.inc()
            return
        if header.kind is FrameKind.FAILED:
            self._lanes.drop(passage)
            self._exits.pass_failure(header, event.payload)
        elif header.kind is FrameKind.COMPOSED:
            passage.is_composed = True
            self._lanes.look_at(passage)
        elif header.kind is FrameKind.FETCHED:
            passage.fetched[header.layer] = event.payload
            self._lanes.look_at(passage)
        elif passage.is_waiting and header.layer + 1 == passage.layer:
            passage.is_waiting = False
            self._metrics.transfer_seconds.observe(self._clock() - passage.sent_at)
            self._lanes.look_at(passage)

    # --- segments

    def _run_segment(self) -> None:
        started = self._clock()
        items = choose_segment(
            self._lanes.ready_items(), max_rows=self._max_rows, prefill_first=self._prefill_first
        )
        chosen = self._lanes.take(items)
        try:
            self._run(chosen)
        except GlinthawkError as error:
            self._fail_all(chosen, error)
        except RuntimeError as error:
            # torch has no other error: out of memory, above all.
            self._fail_all(chosen, InvariantBroken(f"a segment failed: {error}"))
        elapsed = self._clock() - started
        self._metrics.segment_seconds.observe(elapsed)
        self._metrics.stage_busy_seconds.inc(elapsed)
        self.busy_s += elapsed
        if chosen[0].plan.kind is StepKind.DECODE:
            self._metrics.batch_rows.observe(sum(item.rows for item in items))

    def _run(self, chosen: Sequence[Passage]) -> None:
        kind = chosen[0].plan.kind
        is_leaving = chosen[0].layer == self._runner.last_layer
        if kind is StepKind.DECODE:
            self._segments.decode(chosen)
        elif kind is StepKind.PREFILL and not is_leaving:
            self._segments.prefill(chosen[0])
            self._lanes.look_at(chosen[0])
        if is_leaving:
            for passage in chosen:
                self._lanes.drop(passage)
            self._exits.leave(chosen, prefill_first=self._prefill_first)

    def _fail_all(self, passages: Sequence[Passage], error: GlinthawkError) -> None:
        for passage in passages:
            self._lanes.drop(passage)
            self._exits.fail(self._segments.header(passage, FrameKind.FAILED), error)
