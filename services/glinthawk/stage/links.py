"""A stage's data connections: it dials the workers and the next stage, and is dialled by the
gateway and the stage before it.

    gateway, stage k - 1 --STEP--> [ accept ] --events--> loop
    worker  --OUTPUT, COMPOSED, FETCHED, FAILED--> [ reader ] --events--> loop

Each member of a view is dialled on a thread of its own, so that one who does not answer holds up
nobody else. A connection is kept as long as name, address and epoch stay the same.
"""

import threading
from functools import partial

from glinthawk.errors import GlinthawkError, PeerUnavailable
from glinthawk.stage.loop import StageLoop
from glinthawk.stage.work import (
    GatewayConnected,
    GatewayLost,
    LinkLost,
    LinkUp,
    RunEnded,
    StepArrived,
    ViewChanged,
    WorkerAnswered,
)
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.composition import decode_step
from glinthawk.wire.dial import DialOptions, dial
from glinthawk.wire.frames import FrameError, FrameHeader, FrameKind
from glinthawk.wire.messages import Member, Role, View
from glinthawk.wire.outbox import Outbox
from glinthawk.wire.tickets import Hello
from glinthawk.wire.transport import Connection, allocate_fresh

log = get_logger("stage.links")

GATEWAY_ROLE = "gateway"


class _Link:
    """One member that this stage sends to. outbox: None until it is dialled."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.outbox: Outbox | None = None
        self.is_broken = False


class StageLinks:
    """Turns what comes over data connections into events of the loop."""

    def __init__(
        self, name: str, loop: StageLoop, dial_options: DialOptions, metrics: ServiceMetrics
    ) -> None:
        self._name = name
        self._loop = loop
        self._dial_options = dial_options
        self._metrics = metrics
        self._lock = threading.Lock()
        self._links: dict[Member, _Link] = {}
        self._gateways: set[Outbox] = set()

    def follow(self, view: View) -> None:
        """Dial whom this stage sends to and has no connection to, and close what is not wanted
        any more; the loop learns of it. Does not wait for the dialling."""
        names = [stage.name for stage in view.stages]
        if self._name not in names:
            log.warning("view_without_this_stage", epoch=view.epoch)
            return
        place = names.index(self._name) + 1
        next_stage = view.stages[place] if place < len(view.stages) else None
        wanted = [*view.workers, *([] if next_stage is None else [next_stage])]
        with self._lock:
            kept = {m: link for m, link in self._links.items() if m in wanted}
            kept = {m: link for m, link in kept.items() if not link.is_broken}
            dropped = [link for m, link in self._links.items() if m not in kept]
            fresh = [_Link(member) for member in wanted if member not in kept]
            self._links = {**kept, **{link.member: link for link in fresh}}
            self._loop.post(ViewChanged(view.epoch, view.workers, next_stage))
        for link in fresh:
            threading.Thread(
                target=self._hold, args=(link,), name=f"dial-{link.member.name}", daemon=True
            ).start()
        for link in dropped:
            if link.outbox is not None:
                link.outbox.close()

    def accept(self, connection: Connection, hello: Hello) -> None:
        """Serve a connection that was dialled by the gateway or the stage before this one."""
        outbox: Outbox | None = None
        if hello.role == GATEWAY_ROLE:
            # An outbox that cannot send ends the reader below, which tells the loop.
            outbox = Outbox(connection, lambda *_: connection.close(), self._metrics.bytes_sent.inc)
            with self._lock:
                self._gateways.add(outbox)
            self._loop.post(GatewayConnected(outbox))
        try:
            while True:
                header, payload = connection.receive()
                self._metrics.bytes_received.inc(header.payload_bytes)
                if header.kind is FrameKind.STEP:
                    self._loop.post(_read_step(header, payload))
        except (PeerUnavailable, FrameError) as error:
            log.warning("upstream_lost", peer=hello.name, role=hello.role, reason=str(error))
            self._lose_upstream(connection, outbox, str(error))
        except Exception as error:
            self._lose_upstream(connection, outbox, f"a defect ({type(error).__name__})")
            raise

    def close(self) -> None:
        """Close every connection, after what is queued has been sent; the loop forgets."""
        with self._lock:
            links = [link.outbox for link in self._links.values() if link.outbox is not None]
            outboxes = [*links, *self._gateways]
            self._links = {}
            self._gateways = set()
            self._loop.post(RunEnded())
        for outbox in outboxes:
            outbox.close(flush_s=1.0)

    def _lose_upstream(self, connection: Connection, outbox: Outbox | None, reason: str) -> None:
        """Close an accepted connection; the loop learns of a gateway, which has an outbox."""
        if outbox is None:
            connection.close()
            return
        with self._lock:
            self._gateways.discard(outbox)
        self._loop.post(GatewayLost(outbox, reason))
        outbox.close()

    def _hold(self, link: _Link) -> None:
        """Have a connection to a member; whatever ends it, the loop learns of it."""
        try:
            self._open(link)
        except Exception as error:
            log.error("link_defect", peer=link.member.name, exc_info=error)
            self._lose(link, f"a defect ({type(error).__name__}); the log says where")

    def _open(self, link: _Link) -> None:
        """Dial a member, and read what it answers until the connection breaks."""
        member = link.member
        try:
            connection = dial(member.address, self._name, member.epoch, self._dial_options)
        except GlinthawkError as error:
            self._lose(link, f"it could not be reached: {error}")
            return
        with self._lock:
            is_wanted = self._links.get(member) is link
            if is_wanted:
                link.outbox = Outbox(
                    connection,
                    lambda _, reason: self._lose(link, reason),
                    self._metrics.bytes_sent.inc,
                )
                self._loop.post(LinkUp(member, link.outbox))
        if not is_wanted:
            connection.close()
            return
        log.info("linked", peer=member.name, role=member.role.value, epoch=member.epoch)
        self._read(link, connection)

    def _read(self, link: _Link, connection: Connection) -> None:
        worker = link.member.name
        allocate = partial(self._allocate, worker)
        try:
            while True:
                header, payload = connection.receive(allocate)
                self._metrics.bytes_received.inc(header.payload_bytes)
                self._loop.post(WorkerAnswered(worker, header, payload))
        except (PeerUnavailable, FrameError) as error:
            self._lose(link, str(error))

    def _allocate(self, worker: str, header: FrameHeader) -> memoryview:
        buffer = self._loop.receive_buffer(worker, header)
        fresh = allocate_fresh(header) if buffer is None else buffer
        return memoryview(fresh)

    def _lose(self, link: _Link, reason: str) -> None:
        """Tell the loop of a connection that broke, once, unless nobody wants it any more."""
        member = link.member
        with self._lock:
            if self._links.get(member) is link and not link.is_broken:
                link.is_broken = True
                role = "attention worker" if member.role is Role.ATTENTION else "next stage"
                error = PeerUnavailable(f"{role} {member.name!r} went away: {reason}")
                self._loop.post(LinkLost(member, error))
        if link.outbox is not None:
            link.outbox.close()


def _read_step(header: FrameHeader, payload: memoryview) -> StepArrived:
    """Return a STEP frame as an event; activations are what stands behind the composition."""
    plan, length = decode_step(payload, header)
    rest = payload[length:]
    return StepArrived(header, plan, rest if rest.nbytes else None)
