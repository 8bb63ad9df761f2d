"""The stage's compute thread: takes events, chooses the next segment, runs it.

    reader threads --events--> [ loop: choose_segment -> runner ] --outboxes--> workers,
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
    row_positions,
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
        self._passages: dict[int, Passage] = {}
        self._ready: dict[int, Passage] = {}
        self._routes = Routes()
        self._early: list[StepArrived] = []
        self._order = 0
        self._prefill_first = False
        self.busy_s = 0.0

    # --- called from other threads

    def post(self, event: Event) -> None:
        """Hand an event to the loop, from any thread."""
        self._events.put(event)

    def receive_buffer(self, worker: str, header: FrameHeader) -> memoryview | None:
        """Return where a worker's OUTPUT belongs, or None for a frame that nobody awaits."""
        passage = self._passages.get(header.lane)
        if (
            passage is None
            or header.kind is not FrameKind.OUTPUT
            or passage.worker.peer != worker
            or (passage.epoch, passage.plan.step) != (header.epoch, header.step)
            or passage.layer != header.layer + 1
            or not passage.is_waiting
        ):
            return None
        buffer = passage.output_bytes()
        return buffer if buffer.nbytes == header.payload_bytes else None

    # --- the loop

    def run(self) -> None:
        """Serve until `Stop` is posted."""
        with torch.inference_mode():
            while True:
                try:
                    event = self._events.get(block=not self._ready)
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
        for passage in [p for p in self._passages.values() if p.plan.worker == worker]:
            self._drop(passage)
        self._exits.forget_worker(worker)

    def _lose_link(self, event: LinkLost) -> None:
        self._routes.link_lost(event)
        log.warning("link_lost", peer=event.member.name, reason=str(event.error))
        self._close_if_cut_off()
        for passage in [p for p in self._passages.values() if p.plan.worker == event.member.name]:
            self._drop(passage)
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
        self._passages.clear()
        self._ready.clear()

    def _end_run(self) -> None:
        self._routes = Routes()
        self._early.clear()
        self._passages.clear()
        self._ready.clear()
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
        positions = torch.from_numpy(row_positions(plan)).to(self._runner.device)
        passage = Passage(
            plan=plan,
            epoch=header.epoch,
            worker=worker,
            layer=self._runner.first_layer,
            residual=self._first_residual(event),
            positions=positions,
            output=self._output_buffer(plan.kind, plan.num_rows),
            is_composed=not self._runner.is_first,
        )
        self._passages[plan.lane] = passage
        if self._runner.is_first:
            composition = encode_step(plan, include_tokens_and_registrations=False)
            worker.post(self._segments.header(passage, FrameKind.COMPOSE), composition)
        if plan.kind is StepKind.RELEASE:
            passage.layer = self._runner.last_layer
        for layer in range(passage.layer, passage.layer + FETCH_AHEAD):
            self._segments.fetch(passage, layer)
        self._mark_ready(passage)

    def _first_residual(self, event: StepArrived) -> torch.Tensor:
        plan = event.plan
        if self._runner.is_first:
            tokens = torch.from_numpy(plan.tokens.astype("int64")).to(self._runner.device)
            return self._runner.embed(tokens)
        if event.activations is None:
            return torch.empty(0, self._runner.hidden_size, device=self._runner.device)
        residual = torch.frombuffer(event.activations, dtype=torch.float32)
        return residual.view(plan.num_rows, self._runner.hidden_size).to(self._runner.device)

    def _output_buffer(self, kind: StepKind, rows: int) -> torch.Tensor | None:
        if kind is not StepKind.DECODE:
            return None
        return torch.empty(
            rows,
            self._runner.output_width,
            dtype=self._runner.activation_dtype,
            pin_memory=self._runner.device.type == "cuda",
        )

    def _take_answer(self, event: WorkerAnswered) -> None:
        header = event.header
        passage = self._passages.get(header.lane)
        if passage is None or (passage.epoch, passage.plan.step) != (header.epoch, header.step):
            self._metrics.dropped_frames.inc()
            return
        if header.kind is FrameKind.FAILED:
            self._drop(passage)
            self._exits.pass_failure(header, event.payload)
        elif header.kind is FrameKind.COMPOSED:
            passage.is_composed = True
            self._mark_ready(passage)
        elif header.kind is FrameKind.FETCHED:
            passage.fetched[header.layer] = event.payload
            self._mark_ready(passage)
        elif passage.is_waiting and header.layer + 1 == passage.layer:
            passage.is_waiting = False
            self._metrics.transfer_seconds.observe(self._clock() - passage.sent_at)
            self._mark_ready(passage)

    # --- segments

    def _mark_ready(self, passage: Passage) -> None:
        """Put a step among the ready ones if nothing that it needs is missing."""
        last = self._runner.last_layer
        if passage.is_waiting or (passage.layer >= last and not passage.is_composed):
            return
        awaits_fetch = passage.num_earlier_rows > 0 and passage.layer < last
        if awaits_fetch and passage.layer not in passage.fetched:
            return
        if passage.plan.lane not in self._ready:
            self._order += 1
            passage.order = self._order
            self._ready[passage.plan.lane] = passage

    def _run_segment(self) -> None:
        started = self._clock()
        items = choose_segment(
            [passage.ready_item() for passage in self._ready.values()],
            max_rows=self._max_rows,
            prefill_first=self._prefill_first,
        )
        chosen = [self._ready.pop(item.lane) for item in items]
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
            self._mark_ready(chosen[0])
        if is_leaving:
            for passage in chosen:
                del self._passages[passage.plan.lane]
            self._exits.leave(chosen, prefill_first=self._prefill_first)

    def _fail_all(self, passages: Sequence[Passage], error: GlinthawkError) -> None:
        for passage in passages:
            self._drop(passage)
            self._exits.fail(self._segments.header(passage, FrameKind.FAILED), error)

    def _drop(self, passage: Passage) -> None:
        self._passages.pop(passage.plan.lane, None)
        self._ready.pop(passage.plan.lane, None)
