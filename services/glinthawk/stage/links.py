"""A stage's data connections: it dials the workers and the next stage, and is dialled by the
gateway and the stage before it.

    gateway, stage k - 1 --STEP--> [ accept ] --events--> loop
    worker  --OUTPUT, COMPOSED, FETCHED, FAILED--> [ reader ] --events--> loop
"""

import threading
from dataclasses import dataclass
from functools import partial

from glinthawk.errors import GlinthawkError, PeerUnavailable
from glinthawk.stage.loop import StageLoop
from glinthawk.stage.work import (
    GatewayConnected,
    LinksChanged,
    LinksFailed,
    PeerLost,
    StepArrived,
    WorkerAnswered,
)
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.composition import decode_step
from glinthawk.wire.dial import DialOptions, dial
from glinthawk.wire.frames import EpochFence, FrameError, FrameHeader, FrameKind
from glinthawk.wire.messages import Member, View
from glinthawk.wire.outbox import Outbox
from glinthawk.wire.tickets import Hello
from glinthawk.wire.transport import Connection, allocate_fresh

log = get_logger("stage.links")

GATEWAY_ROLE = "gateway"


@dataclass(frozen=True)
class _Neighbours:
    workers: tuple[Member, ...]
    next_stage: Member | None


class StageLinks:
    """Turns what comes over data connections into events of the loop."""

    def __init__(
        self, name: str, loop: StageLoop, dial_options: DialOptions, metrics: ServiceMetrics
    ) -> None:
        self._name = name
        self._loop = loop
        self._dial_options = dial_options
        self._metrics = metrics
        self._outboxes: list[Outbox] = []

    def follow(self, view: View) -> None:
        """Dial everyone whom this stage sends to; the loop learns of it, or of the failure."""
        try:
            self._dial_all(view.epoch, self._find_neighbours(view))
        except GlinthawkError as error:
            log.error("links_failed", epoch=view.epoch, error=str(error))
            self._loop.post(LinksFailed(view.epoch, error))

    def accept(self, connection: Connection, hello: Hello) -> None:
        """Serve a connection that was dialled by the gateway or the stage before this one."""
        if hello.role == GATEWAY_ROLE:
            outbox = Outbox(
                connection, partial(self._lose, hello.epoch), self._metrics.bytes_sent.inc
            )
            self._outboxes.append(outbox)
            self._loop.post(GatewayConnected(outbox))
        fence = EpochFence()
        try:
            while True:
                header, payload = connection.receive()
                self._metrics.bytes_received.inc(header.payload_bytes)
                if not fence.admits(header):
                    self._metrics.dropped_frames.inc()
                elif header.kind is FrameKind.STEP:
                    self._loop.post(_read_step(header, payload))
        except (PeerUnavailable, FrameError) as error:
            self._lose(hello.epoch, hello.name, str(error))

    def close(self) -> None:
        """Close every connection, after what is queued has been sent."""
        for outbox in self._outboxes:
            outbox.close(flush_s=1.0)
        self._outboxes.clear()

    def _find_neighbours(self, view: View) -> _Neighbours:
        names = [stage.name for stage in view.stages]
        if self._name not in names:
            raise PeerUnavailable(f"the gateway's view does not have this stage {self._name!r}")
        place = names.index(self._name) + 1
        next_stage = view.stages[place] if place < len(view.stages) else None
        return _Neighbours(view.workers, next_stage)

    def _dial_all(self, epoch: int, neighbours: _Neighbours) -> None:
        workers = {}
        for member in neighbours.workers:
            outbox = self._dial(member, epoch)
            workers[member.name] = outbox
            threading.Thread(
                target=self._read_worker,
                args=(member.name, outbox.connection, epoch),
                name=f"from-{member.name}",
                daemon=True,
            ).start()
        next_stage = None
        if neighbours.next_stage is not None:
            next_stage = self._dial(neighbours.next_stage, epoch)
        self._loop.post(LinksChanged(epoch, workers, next_stage))

    def _dial(self, member: Member, epoch: int) -> Outbox:
        connection = dial(member.address, self._name, epoch, self._dial_options)
        outbox = Outbox(connection, partial(self._lose, epoch), self._metrics.bytes_sent.inc)
        self._outboxes.append(outbox)
        log.info("linked", peer=member.name, role=member.role.value, epoch=epoch)
        return outbox

    def _read_worker(self, worker: str, connection: Connection, epoch: int) -> None:
        def allocate(header: FrameHeader) -> memoryview:
            buffer = self._loop.receive_buffer(worker, header)
            fresh = allocate_fresh(header) if buffer is None else buffer
            return memoryview(fresh)

        try:
            while True:
                header, payload = connection.receive(allocate)
                self._metrics.bytes_received.inc(header.payload_bytes)
                self._loop.post(WorkerAnswered(worker, header, payload))
        except (PeerUnavailable, FrameError) as error:
            self._lose(epoch, worker, str(error))

    def _lose(self, epoch: int, peer: str, reason: str) -> None:
        self._loop.post(PeerLost(epoch, peer, reason))


def _read_step(header: FrameHeader, payload: memoryview) -> StepArrived:
    """Return a STEP frame as an event; activations are what stands behind the composition."""
    plan, length = decode_step(payload, header)
    rest = payload[length:]
    return StepArrived(header, plan, rest if rest.nbytes else None)
