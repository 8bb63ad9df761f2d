"""Who the gateway works with: it admits stages and workers, and holds the lines to the stages.

                      Membership (gRPC)                 data connections
    stage, worker --Registration--> [ Cluster ] --STEP--> stage 0      last stage --RESULT-->
                  <--View---------

When every stage and the wanted number of workers are there, all get one view, and each process
dials whom it must send to. Nothing here knows requests or KV pages.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.step import StepPlan, StepResult
from glinthawk.errors import GlinthawkError, PeerUnavailable
from glinthawk.gateway.roster import Roster
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.composition import encode_step
from glinthawk.wire.dial import DialOptions, dial
from glinthawk.wire.failures import decode_failure
from glinthawk.wire.frames import FrameError, FrameFlags, FrameHeader, FrameKind
from glinthawk.wire.grpc_server import GrpcServer
from glinthawk.wire.membership_server import MembershipServer
from glinthawk.wire.messages import Accepted, Heartbeat, Refused, Registration
from glinthawk.wire.outbox import Outbox
from glinthawk.wire.results import decode_result
from glinthawk.wire.transport import Connection

log = get_logger("gateway.cluster")

OnResult = Callable[[StepResult], None]
OnFailed = Callable[[int, int, GlinthawkError], None]
OnLost = Callable[[GlinthawkError], None]


@dataclass(frozen=True)
class ClusterEvents:
    """Where news goes; called from threads of the cluster, must not block."""

    on_result: OnResult
    on_failed: OnFailed
    on_lost: OnLost


class Cluster:
    """The members of one gateway.

    Args:
        roster: decides who may join, and tells when all are there.
        next_epoch: raises the counter that is kept beside the jobs, and returns it.
        dial_options: transport and deadline of data connections.
        lease_s: seconds of silence after which a member is lost.
    """

    def __init__(
        self,
        roster: Roster,
        *,
        next_epoch: Callable[[], int],
        dial_options: DialOptions,
        metrics: ServiceMetrics,
        lease_s: float = 6.0,
    ) -> None:
        self._roster = roster
        self._next_epoch = next_epoch
        self._dial_options = dial_options
        self._metrics = metrics
        self._lease_s = lease_s
        self._membership = MembershipServer(self)
        self._changed = threading.Condition()
        self._events: ClusterEvents | None = None
        self._outboxes: list[Outbox] = []
        self._epoch = 0
        self._lost: PeerUnavailable | None = None
        self._is_closing = False

    def attach(self, server: GrpcServer) -> None:
        """Offer membership on the gateway's gRPC server, before that starts."""
        self._membership.attach(server)

    def start(self) -> None:
        """Take in members."""
        self._membership.start()

    def wait_until_complete(
        self, timeout_s: float | None, check: Callable[[], None], *, every_s: float = 0.2
    ) -> None:
        """Return once all members are there; `check` may raise meanwhile.

        Raises:
            PeerUnavailable: the time is over; the message says who is missing.
        """
        waited = 0.0
        with self._changed:
            while not self._roster.is_complete:
                if timeout_s is not None and waited >= timeout_s:
                    raise PeerUnavailable(f"after {waited:.0f} s {self._roster.describe_missing()}")
                self._changed.wait(every_s)
                waited += every_s
                check()

    def connect(self, events: ClusterEvents) -> None:
        """Tell all members of each other and open the data connections to the stages.

        Raises:
            PeerUnavailable: a stage does not answer.
        """
        self._events = events
        with self._changed:
            self._epoch = self._next_epoch()
            view = self._roster.build_view(self._epoch)
        self._membership.broadcast(view)
        for stage in view.stages:
            connection = dial(stage.address, "gateway", self._epoch, self._dial_options)
            self._outboxes.append(Outbox(connection, self._on_broken, self._metrics.bytes_sent.inc))
            threading.Thread(
                target=self._receive, args=(connection,), name=f"from-{stage.name}", daemon=True
            ).start()

    def send_step(self, plan: StepPlan, prefill_first: bool) -> None:
        """Put a step on its way through the stages."""
        header = FrameHeader(
            FrameKind.STEP,
            epoch=self._epoch,
            lane=plan.lane,
            step=plan.step,
            rows=plan.num_rows,
            flags=FrameFlags.PREFILL_FIRST if prefill_first else FrameFlags.NONE,
        )
        payload = encode_step(plan, include_tokens_and_registrations=True)
        self._outboxes[0].post(header, payload)

    @property
    def geometry(self) -> KVGeometry:
        """Shape of the KV pages; known once a stage is there."""
        return self._roster.geometry()

    @property
    def wire_dtype(self) -> DType | None:
        """Format in which the stages compute; None before the first is there."""
        return self._roster.wire_dtype

    def worker_memory(self) -> dict[str, int]:
        """Return the KV memory of each worker, in bytes, by name."""
        return self._roster.worker_memory()

    def stop(self, reason: str) -> None:
        """Ask every member to end, and close the connections."""
        self._is_closing = True
        self._membership.stop(reason)
        for outbox in self._outboxes:
            outbox.close()

    # --- MembershipHandler

    def on_join(self, registration: Registration) -> Accepted | Refused:
        """Admit a process, or say why not."""
        with self._changed:
            reason = self._roster.reason_to_refuse(registration)
            if reason is not None:
                return Refused(reason)
            self._roster.add(registration)
            epoch = self._next_epoch()
            self._changed.notify_all()
        return Accepted(epoch, self._lease_s)

    def on_joined(self, registration: Registration) -> None:
        """A member can be reached; views go out when all are there."""

    def on_heartbeat(self, name: str, heartbeat: Heartbeat) -> None:
        """Figures of a member; nothing here needs them yet."""

    def on_leave(self, name: str, reason: str, lost: bool) -> None:
        """A member is gone, and with it the run."""
        with self._changed:
            role = self._roster.remove(name)
            self._changed.notify_all()
        self._report(f"{role} {name!r} {'went away' if lost else 'left'}: {reason}")

    # --- data

    def _receive(self, connection: Connection) -> None:
        events = self._events
        assert events is not None
        try:
            while True:
                header, payload = connection.receive()
                self._metrics.bytes_received.inc(header.payload_bytes)
                if header.epoch < self._epoch:
                    self._metrics.dropped_frames.inc()
                elif header.kind is FrameKind.RESULT:
                    events.on_result(decode_result(payload, header))
                elif header.kind is FrameKind.FAILED:
                    events.on_failed(header.lane, header.step, decode_failure(payload))
        except (PeerUnavailable, FrameError) as error:
            self._on_broken(connection.peer, str(error))

    def _on_broken(self, peer: str, reason: str) -> None:
        self._report(f"the data connection to stage {peer!r} broke: {reason}")

    def _report(self, message: str) -> None:
        if self._is_closing:
            return
        log.error("peer_lost", reason=message)
        if self._events is not None:
            self._events.on_lost(PeerUnavailable(message))
