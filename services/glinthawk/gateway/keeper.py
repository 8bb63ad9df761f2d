"""Keeps the tiers whole: one thread that does what is missing, whatever happened.

It compares, again and again, who is there with whom the others and the engine were told of:

    stages incomplete, or a line broke  -> no worker is of use: all are lost to the engine
    stages complete again               -> later epochs for all workers, a view, lines anew
    a worker came, went, or was reset   -> a view; the engine learns of it

So whatever happens in whatever order ends in the same state.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from glinthawk.core.step import StepResult
from glinthawk.errors import GlinthawkError
from glinthawk.gateway.events import CopyEnded
from glinthawk.gateway.lines import LineEvents, StageLines
from glinthawk.gateway.muster import Muster
from glinthawk.gateway.roster import WorkerEntry
from glinthawk.telemetry.logging import get_logger
from glinthawk.wire.membership_server import MembershipServer
from glinthawk.wire.messages import Member

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


class Keeper:
    """See the module. From `start` to `stop` it has a thread of its own."""

    def __init__(self, muster: Muster, membership: MembershipServer, lines: StageLines) -> None:
        self._muster = muster
        self._changed = muster.changed
        self._membership = membership
        self._lines = lines
        self._thread = threading.Thread(target=self._keep_whole, name="cluster", daemon=True)
        self._events: ClusterEvents | None = None
        self._is_closing = False
        # Of the thread: the stages that steps go through, and the workers told of.
        self._through: tuple[Member, ...] = ()
        self._announced: dict[str, int] = {}
        self._retry_at: float | None = None
        self.problem: GlinthawkError | None = None

    @property
    def events(self) -> ClusterEvents:
        """Where news goes; known once it was started."""
        assert self._events is not None, "start comes first"
        return self._events

    @property
    def has_begun(self) -> bool:
        """Whether `start` was called: views are the keeper's from then on."""
        return self._events is not None

    @property
    def is_whole(self) -> bool:
        """Whether a token can be generated: steps get through, and there is a worker."""
        return bool(self._through and self._announced)

    def is_in_use(self, name: str) -> bool:
        """Tell whether the engine knows of a worker."""
        return self._events is not None and name in self._announced

    def start(self, events: ClusterEvents) -> None:
        """Begin to make the tiers whole, and to keep them so; `events` learn of it."""
        with self._changed:
            self._events = events
            self._changed.notify_all()
        self._thread.start()

    def stop(self) -> None:
        """Do nothing more."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()

    def _keep_whole(self) -> None:
        while True:
            with self._changed:
                if self._is_closing:
                    return
            try:
                self._reconcile(time.monotonic())
                self.problem = None
            except GlinthawkError as error:
                log.warning("tiers_not_whole", reason=str(error))
                self.problem = error
                self._retry_at = time.monotonic() + RETRY_S
            with self._changed:
                self._changed.notify_all()
                if not self._is_closing and (self.problem or not self._is_behind()):
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
        if self._retry_at is not None and now < self._retry_at:
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
        self.events.on_stages_lost(reason)
        for name in list(self._announced):
            del self._announced[name]
            self.events.on_worker_lost(name, reason)

    def _find_stages(self) -> None:
        """Have steps pass again, with nothing left of earlier ones anywhere."""
        view = self._muster.renew()
        self._membership.broadcast(view)
        told = self.events
        events = LineEvents(told.on_result, told.on_failed, self._wake)
        self._lines.connect(view.stages, view.epoch, events)
        log.info("stages_connected", epoch=view.epoch, stages=len(view.stages))
        self._through = view.stages

    def _follow_workers(self, now: float) -> None:
        """Tell the members and the engine of workers that came, went, or are to begin anew."""
        changes = self._muster.take_changes(self._through, self._announced, now)
        for name, reason in changes.lost.items():
            del self._announced[name]
            self.events.on_worker_lost(name, reason)
        if changes.view is not None:
            self._membership.broadcast(changes.view)
        for entry in changes.joined:
            self.events.on_worker_joined(entry)
        self._announced.update({entry.name: entry.epoch for entry in changes.joined})

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
