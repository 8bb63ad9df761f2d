"""Who the gateway works with: it admits stages and workers, and keeps the tiers whole.

                      Membership (gRPC)                 lines (data connections)
    stage, worker --Registration--> [ Cluster ] --STEP--> stage 0      last stage --RESULT-->
                  <--View---------

One thread compares, again and again, who is there with whom the others and the engine were told
of, and does what is missing:

    stages incomplete, or a line broke  -> no worker is of use: all are lost to the engine
    stages complete again               -> later epochs for all workers, a view, lines anew
    a worker came, went, or was reset   -> a view; the engine learns of it

So whatever happens in whatever order ends in the same state. Nothing here knows requests or KV
pages.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.step import StepPlan, StepResult
from glinthawk.errors import GlinthawkError, PeerUnavailable
from glinthawk.gateway.busy import BusyMeter
from glinthawk.gateway.copies import PageCopies
from glinthawk.gateway.epochs import Epochs
from glinthawk.gateway.events import CopyEnded
from glinthawk.gateway.lines import LineEvents, StageLines
from glinthawk.gateway.muster import Muster
from glinthawk.gateway.roster import Roster, WorkerEntry
from glinthawk.scheduler import MoveOrder
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.dial import DialOptions
from glinthawk.wire.grpc_server import GrpcServer
from glinthawk.wire.membership_server import MembershipServer
from glinthawk.wire.messages import Accepted, Heartbeat, Member, Refused, Registration, Shutdown

log = get_logger("gateway.cluster")

CHECK_EVERY_S = 0.1
"""How often is looked for what is due by the clock alone; news is acted on at once."""

SETTLE_S = 0.2
"""After a stage is lost: time in which news of the others comes, before any is dialled again."""

RETRY_S = 1.0


@dataclass(frozen=True)
class ClusterEvents:
    """Where news goes; called from threads of the cluster, must not block.

    on_result, on_failed: of a step. on_worker_joined: it is empty, and every stage is told to
    reach it. on_worker_lost: with the reason. on_stages_lost: no step gets through; all workers
    are reported lost too, and join again when the stages are back. on_worker_leaves: it wants to
    end within so many seconds; told again and again until `release_worker`. on_copy_ended: once
    for each `copy_pages`.
    """

    on_result: Callable[[StepResult], None]
    on_failed: Callable[[int, int, GlinthawkError], None]
    on_worker_joined: Callable[[WorkerEntry], None]
    on_worker_lost: Callable[[str, str], None]
    on_stages_lost: Callable[[str], None]
    on_worker_leaves: Callable[[str, float], None]
    on_copy_ended: Callable[[CopyEnded], None]


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
        self._keeper = threading.Thread(target=self._keep_whole, name="cluster", daemon=True)
        self._events: ClusterEvents | None = None
        self._is_closing = False
        self._busy = BusyMeter()
        self._copies = PageCopies(
            self.addresses,
            lambda ended: self._told().on_copy_ended(ended),
            secret=dial_options.secret,
        )
        # Of the keeper's thread: the stages that steps go through, and the workers told of.
        self._through: tuple[Member, ...] = ()
        self._announced: dict[str, int] = {}
        self._retry_at = 0.0
        self._problem: GlinthawkError | None = None

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
                    problem = self._problem or "no attention worker is there"
                    raise PeerUnavailable(
                        f"after {timeout_s:.0f} s no token can be made: {problem}"
                    )
                self._changed.wait(CHECK_EVERY_S)
                check()

    def connect(self, events: ClusterEvents) -> None:
        """Begin to make the tiers whole, and to keep them so; `events` learn of it."""
        with self._changed:
            self._muster.roster.settle_format()
            self._events = events
            self._changed.notify_all()
        self._keeper.start()

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
        return bool(self._through and self._announced)

    @property
    def geometry(self) -> KVGeometry:
        """Shape of the KV pages; known once a stage is there."""
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
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._membership.stop(reason)
        self._lines.close()

    # --- MembershipHandler

    def on_join(self, registration: Registration) -> Accepted | Refused:
        """Admit a process, or say why not."""
        answer = self._muster.admit(registration)
        return answer if isinstance(answer, Refused) else Accepted(answer, self._lease_s)

    def on_joined(self, registration: Registration) -> None:
        """A member can be reached: it needs a view."""
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
        if self._events is None or name not in self._announced:
            self.release_worker(name)
        else:
            self._events.on_worker_leaves(name, drain_s)

    # --- keeping the tiers whole

    def _keep_whole(self) -> None:
        while True:
            with self._changed:
                if self._is_closing:
                    return
            try:
                self._reconcile(time.monotonic())
                self._problem = None
            except GlinthawkError as error:
                log.warning("tiers_not_whole", reason=str(error))
                self._problem = error
                self._retry_at = time.monotonic() + RETRY_S
            with self._changed:
                self._changed.notify_all()
                if not self._is_closing and (self._problem or not self._is_behind()):
                    self._changed.wait(CHECK_EVERY_S)

    def _is_behind(self) -> bool:
        """Whether something came while the last round was under way."""
        return bool(self._through) and self._muster.is_news(self._through, self._announced)

    def _reconcile(self, now: float) -> None:
        with self._changed:
            stages = self._muster.roster.stages()
            is_complete = self._muster.roster.has_all_stages
        is_through = is_complete and self._through == stages and self._lines.broken is None
        if self._through and not is_through:
            self._lose_stages(now)
        if now < self._retry_at:
            return
        if not self._through and is_complete:
            self._find_stages()
        if self._through:
            self._follow_workers(now)

    def _lose_stages(self, now: float) -> None:
        gone = self._muster.take_reason([stage.name for stage in self._through])
        reason = gone or self._lines.broken or "a stage registered again"
        log.error("stages_lost", reason=reason)
        self._through = ()
        self._retry_at = now + SETTLE_S
        self._told().on_stages_lost(reason)
        for name in list(self._announced):
            del self._announced[name]
            self._told().on_worker_lost(name, reason)

    def _find_stages(self) -> None:
        """Have steps pass again, with nothing left of earlier ones anywhere."""
        view = self._muster.renew()
        self._membership.broadcast(view)
        told = self._told()
        events = LineEvents(told.on_result, told.on_failed, self._wake)
        self._lines.connect(view.stages, view.epoch, events)
        log.info("stages_connected", epoch=view.epoch, stages=len(view.stages))
        self._through = view.stages

    def _follow_workers(self, now: float) -> None:
        """Tell the members and the engine of workers that came, went, or are to begin anew."""
        changes = self._muster.take_changes(self._through, self._announced, now)
        told = self._told()
        for name, reason in changes.lost.items():
            del self._announced[name]
            told.on_worker_lost(name, reason)
        if changes.view is not None:
            self._membership.broadcast(changes.view)
        for entry in changes.joined:
            told.on_worker_joined(entry)
        self._announced.update({entry.name: entry.epoch for entry in changes.joined})

    def _told(self) -> ClusterEvents:
        assert self._events is not None, "the keeper starts with them"
        return self._events

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
