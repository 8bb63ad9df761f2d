"""The gateway's data connections to the stages: steps out, results and failures back.

    cluster --send_step--> stage 0        last stage --RESULT--> on_result
                                          any stage  --FAILED--> on_failed

All or nothing: a step visits every stage, so with one line broken none goes out.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from glinthawk.core.step import StepPlan, StepResult
from glinthawk.errors import GlinthawkError, PeerUnavailable
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.composition import encode_step
from glinthawk.wire.dial import DialOptions, dial
from glinthawk.wire.failures import decode_failure
from glinthawk.wire.frames import FrameError, FrameFlags, FrameHeader, FrameKind
from glinthawk.wire.messages import Member
from glinthawk.wire.outbox import Outbox
from glinthawk.wire.results import decode_result
from glinthawk.wire.transport import Connection


@dataclass(frozen=True)
class LineEvents:
    """Where news of the lines goes; called from their threads, must not block."""

    on_result: Callable[[StepResult], None]
    on_failed: Callable[[int, int, GlinthawkError], None]
    on_broken: Callable[[], None]


class _Line:
    """One connection. broken: why it broke."""

    def __init__(self, stage: Member) -> None:
        self.stage = stage
        self.outbox: Outbox | None = None
        self.broken: str | None = None

    def close(self) -> None:
        """End it without news of it."""
        if self.outbox is not None:
            self.outbox.close()


class StageLines:
    """The lines to the stages of one view.

    Args:
        dial_options: transport and deadline.
        metrics: of the process.
        oldest_epoch: frames below it are of a former gateway's life, and dropped.
    """

    def __init__(
        self, dial_options: DialOptions, metrics: ServiceMetrics, *, oldest_epoch: int
    ) -> None:
        self._dial_options = dial_options
        self._metrics = metrics
        self._oldest_epoch = oldest_epoch
        self._lock = threading.Lock()
        self._lines: tuple[_Line, ...] = ()
        self._events: LineEvents | None = None

    @property
    def broken(self) -> str | None:
        """Why no step gets through; None while all lines are whole."""
        return next((line.broken for line in self._lines if line.broken is not None), None)

    def connect(self, stages: Sequence[Member], epoch: int, events: LineEvents) -> None:
        """Have a whole line to each stage: those that are there stay, others are dialled.

        Raises:
            PeerUnavailable: a stage does not answer.
        """
        self._events = events
        kept = {line.stage: line for line in self._lines if line.broken is None}
        for line in self._lines:
            if line.broken is not None or line.stage not in stages:
                line.close()
        lines: list[_Line] = []
        try:
            for stage in stages:
                lines.append(kept.get(stage) or self._dial(stage, epoch))  # noqa: PERF401
        finally:
            # Those of an attempt that failed are there for the next one; no step goes out.
            with self._lock:
                self._lines = tuple(lines)

    def send_step(self, plan: StepPlan, *, epoch: int, prefill_first: bool) -> None:
        """Put a step on its way; it is dropped while there is no line to the first stage."""
        with self._lock:
            outbox = self._lines[0].outbox if self._lines else None
        if outbox is None:
            return
        header = FrameHeader(
            FrameKind.STEP,
            epoch=epoch,
            lane=plan.lane,
            step=plan.step,
            rows=plan.num_rows,
            flags=FrameFlags.PREFILL_FIRST if prefill_first else FrameFlags.NONE,
        )
        outbox.post(header, encode_step(plan, include_tokens_and_registrations=True))

    def close(self) -> None:
        """Close all lines."""
        with self._lock:
            lines, self._lines = self._lines, ()
        for line in lines:
            line.close()

    def _dial(self, stage: Member, epoch: int) -> _Line:
        connection = dial(stage.address, "gateway", epoch, self._dial_options)
        line = _Line(stage)
        line.outbox = Outbox(
            connection, lambda _, reason: self._break(line, reason), self._metrics.bytes_sent.inc
        )
        threading.Thread(
            target=self._receive, args=(line, connection), name=f"from-{stage.name}", daemon=True
        ).start()
        return line

    def _receive(self, line: _Line, connection: Connection) -> None:
        try:
            while True:
                header, payload = connection.receive()
                self._metrics.bytes_received.inc(header.payload_bytes)
                self._take(header, payload)
        except (PeerUnavailable, FrameError) as error:
            self._break(line, str(error))

    def _take(self, header: FrameHeader, payload: memoryview) -> None:
        events = self._events
        assert events is not None, "lines are made by connect"
        if header.epoch < self._oldest_epoch:
            self._metrics.dropped_frames.inc()
        elif header.kind is FrameKind.RESULT:
            events.on_result(decode_result(payload, header))
        elif header.kind is FrameKind.FAILED:
            events.on_failed(header.lane, header.step, decode_failure(payload))

    def _break(self, line: _Line, reason: str) -> None:
        if line.broken is None:
            line.broken = f"the data connection to stage {line.stage.name!r} broke: {reason}"
            line.close()
            if self._events is not None:
                self._events.on_broken()
