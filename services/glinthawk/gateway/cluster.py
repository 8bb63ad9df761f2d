"""Who the gateway works with: it admits stages and workers, and has the tiers kept whole.

                      Membership (gRPC)                 lines (data connections)
    stage, worker --Registration--> [ Cluster ] --STEP--> stage 0      last stage --RESULT-->
                  <--View---------

Who is there is the muster's; what is to be done about it is the keeper's. Nothing here knows
requests or KV pages.
"""

import contextlib
import time
from collections.abc import Callable

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.step import StepPlan
from glinthawk.errors import GlinthawkError, PeerUnavailable, StoreUnavailable
from glinthawk.gateway.busy import BusyMeter
from glinthawk.gateway.copies import PageCopies
from glinthawk.gateway.epochs import Epochs
from glinthawk.gateway.keeper import CHECK_EVERY_S, ClusterEvents, Keeper
from glinthawk.gateway.lines import StageLines
from glinthawk.gateway.muster import Muster
from glinthawk.gateway.roster import Roster
from glinthawk.scheduler import MoveOrder
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.dial import DialOptions
from glinthawk.wire.grpc_server import GrpcServer
from glinthawk.wire.membership_server import MembershipServer
from glinthawk.wire.messages import (
    Accepted,
    AttentionOffer,
    Heartbeat,
    Member,
    Refused,
    Registration,
    Shutdown,
)

log = get_logger("gateway.cluster")


class Cluster:
    """The members of one gateway.

    Args:
        roster: decides who may join, and tells when all are there.
        reserve_epochs: raises the counter that is kept beside the jobs by so many, and returns
            the first of the new numbers.
        dial_options: transport and deadline of data connections.
        lease_s: seconds of silence after which a member is lost.
    """

    def __init__(
        self,
        roster: Roster,
        *,
        reserve_epochs: Callable[[int], int],
        dial_options: DialOptions,
        metrics: ServiceMetrics,
        lease_s: float = 6.0,
    ) -> None:
        epochs = Epochs(reserve_epochs)
        epochs.prepare()
        self._muster = Muster(roster, epochs)
        self._changed = self._muster.changed
        self._lease_s = lease_s
        self._membership = MembershipServer(self)
        self._lines = StageLines(dial_options, metrics, oldest_epoch=epochs.take())
        self._keeper = Keeper(self._muster, self._membership, self._lines)
        self._busy = BusyMeter()
        self._copies = PageCopies(
            self.addresses,
            lambda ended: self._keeper.events.on_copy_ended(ended),
            secret=dial_options.secret,
        )

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
            while not self._muster.roster.is_complete:
                if timeout_s is not None and waited >= timeout_s:
                    raise PeerUnavailable(
                        f"after {waited:.0f} s {self._muster.roster.describe_missing()}"
                    )
                self._changed.wait(every_s)
                waited += every_s
                check()

    def wait_until_whole(self, timeout_s: float, check: Callable[[], None]) -> None:
        """Return once a token can be generated; `check` may raise meanwhile.

        Raises:
            PeerUnavailable: the time is over; the message says what stands in the way.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self.is_whole:
                if time.monotonic() >= deadline:
                    problem = self._keeper.problem or "no attention worker is there"
                    raise PeerUnavailable(
                        f"after {timeout_s:.0f} s no token can be made: {problem}"
                    )
                self._changed.wait(CHECK_EVERY_S)
                check()

    def connect(self, events: ClusterEvents) -> None:
        """Begin to make the tiers whole, and to keep them so; `events` learn of it."""
        with self._changed:
            self._muster.roster.settle_format()
        self._keeper.start(events)

    def send_step(self, plan: StepPlan, *, epoch: int, prefill_first: bool) -> None:
        """Put a step on its way through the stages."""
        self._lines.send_step(plan, epoch=epoch, prefill_first=prefill_first)

    def reset_worker(self, name: str, epoch: int, error: GlinthawkError) -> None:
        """Have what a worker holds dropped, and its connections made anew where they broke; it
        is then reported lost and joined. Nothing happens if it has left `epoch` behind."""
        self._muster.ask_reset(name, epoch, error)

    def copy_pages(
        self, order: MoveOrder, *, source_epoch: int, target_epoch: int, timeout_s: float
    ) -> None:
        """Have one worker copy a sequence's KV to another; its end is told."""
        self._copies.begin(
            order, source_epoch=source_epoch, target_epoch=target_epoch, timeout_s=timeout_s
        )

    def release_worker(self, name: str) -> None:
        """Let a worker end that wants to: nothing that it holds is needed."""
        self._membership.send(name, Shutdown("it is drained"))

    @property
    def is_whole(self) -> bool:
        """Whether a token can be generated: steps get through, and there is a worker."""
        return self._keeper.is_whole

    @property
    def geometry(self) -> KVGeometry:
        """Shape of the KV pages; known once a stage is there, at the latest."""
        return self._muster.roster.geometry()

    @property
    def wire_dtype(self) -> DType | None:
        """Format in which the stages compute; None before the first is there."""
        return self._muster.roster.wire_dtype

    def stages(self) -> tuple[Member, ...]:
        """Return the stages that are there, in the order of their layers."""
        with self._changed:
            return self._muster.roster.stages()

    def busy_share(self, name: str) -> float | None:
        """Return the share of the last seconds in which a member computed, None if unknown."""
        return self._busy.share(name)

    def addresses(self) -> dict[str, str]:
        """Return the address (host:port of gRPC) of each member, by name."""
        with self._changed:
            return self._muster.roster.addresses()

    def stop(self, reason: str) -> None:
        """Ask every member to end, and close the connections."""
        self._keeper.stop()
        self._membership.stop(reason)
        self._lines.close()

    # --- MembershipHandler

    def on_join(self, registration: Registration) -> Accepted | Refused:
        """Admit a process, or say why not."""
        answer = self._muster.admit(registration)
        return answer if isinstance(answer, Refused) else Accepted(answer, self._lease_s)

    def on_joined(self, registration: Registration) -> None:
        """A member can be reached: it needs a view. A worker has one before the tiers are whole, if
        the shape of the pages is known: it gets memory for them while stages load weights."""
        with self._changed, contextlib.suppress(StoreUnavailable):
            if isinstance(registration.offer, AttentionOffer) and not self._keeper.has_begun:
                view = self._muster.take_first_view()
                if view is not None:
                    self._membership.send(registration.name, view)
        self._muster.want_view()

    def on_heartbeat(self, name: str, heartbeat: Heartbeat) -> None:
        """Figures of a member: of use is how busy it was, and that it wants to leave. Waits for
        nobody: what follows it on the stream counts for the lease."""
        if heartbeat.drain_s is not None:
            self._let_leave(name, heartbeat.drain_s)
        busy_s = heartbeat.stats.get("busy_seconds")
        if busy_s is not None:
            self._busy.note(name, time.monotonic(), busy_s)

    def on_leave(self, name: str, reason: str, lost: bool) -> None:
        """A member is gone."""
        log.warning("member_gone", reason=self._muster.dismiss(name, reason, is_lost=lost))
        self._busy.forget(name)

    def _let_leave(self, name: str, drain_s: float) -> None:
        """Pass on that a worker wants to end; one that is not in use may do so at once."""
        if self._keeper.is_in_use(name):
            self._keeper.events.on_worker_leaves(name, drain_s)
        else:
            self.release_worker(name)
