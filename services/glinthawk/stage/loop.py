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
from glinthawk.errors import GlinthawkError, InvariantBroken, PeerUnavailable
from glinthawk.scheduler import choose_segment
from glinthawk.stage.exits import Exits
from glinthawk.stage.prefill import PrefillAttention
from glinthawk.stage.runner import SegmentRunner
from glinthawk.stage.segments import FETCH_AHEAD, Segments
from glinthawk.stage.tail import Tail
from glinthawk.stage.work import (
    Event,
    GatewayConnected,
    LinksChanged,
    LinksFailed,
    Passage,
    PeerLost,
    StepArrived,
    Stop,
    WorkerAnswered,
    row_positions,
)
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.composition import encode_step
from glinthawk.wire.frames import FrameFlags, FrameHeader, FrameKind
from glinthawk.wire.outbox import Outbox

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
        self._workers: dict[str, Outbox] = {}
        self._early: list[StepArrived] = []
        self._order = 0
        self._epoch = 0
        self._prefill_first = False

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
        elif isinstance(event, PeerLost):
            self._lose(event)
        elif isinstance(event, LinksChanged):
            self._change_links(event)
        elif isinstance(event, LinksFailed):
            for early in self._take_early(event.epoch):
                self._exits.fail(early.header, event.error)
        elif isinstance(event, GatewayConnected):
            self._exits.gateway = event.outbox

    # --- events

    def _change_links(self, event: LinksChanged) -> None:
        self._epoch = event.epoch
        self._workers = event.workers
        self._exits.next_stage = event.next_stage
        for early in self._take_early(event.epoch):
            self._begin(early)

    def _take_early(self, epoch: int) -> list[StepArrived]:
        """Return and forget the steps up to `epoch` that came before the links for them."""
        taken = [event for event in self._early if event.header.epoch <= epoch]
        self._early = [event for event in self._early if event.header.epoch > epoch]
        return taken

    def _begin(self, event: StepArrived) -> None:
        plan, header = event.plan, event.header
        if header.epoch < self._epoch:
            self._metrics.dropped_frames.inc()
            return
        if header.epoch > self._epoch:
            self._early.append(event)
            return
        worker = self._workers.get(plan.worker)
        if worker is None:
            error = PeerUnavailable(
                f"attention worker {plan.worker!r} of lane {plan.lane} is not connected here"
            )
            self._exits.fail(header, error)
            return
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

    def _lose(self, event: PeerLost) -> None:
        if event.epoch < self._epoch:
            return
        log.warning("peer_lost", peer=event.peer, reason=event.reason)
        gateway = self._exits.gateway
        if gateway is not None and gateway.peer == event.peer:
            self._exits.gateway = None
            self._passages.clear()
            self._ready.clear()
            return
        self._workers.pop(event.peer, None)
        for passage in [p for p in self._passages.values() if p.worker.peer == event.peer]:
            self._drop(passage)
            self._exits.fail(
                self._segments.header(passage, FrameKind.FAILED),
                PeerUnavailable(f"attention worker {event.peer!r} went away: {event.reason}"),
            )

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
