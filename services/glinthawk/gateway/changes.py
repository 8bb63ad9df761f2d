"""What the engine does about its workers: they join, are lost, drain, or fail a step.

    joined   --> in use, empty; its former self is void
    lost     --> its sequences wait again, and are computed elsewhere
    drain    --> nothing new is placed; what would not end in time is copied (see `evacuation`)
    a step failed --> what the worker holds is not certain any more: it begins anew

The engine's thread owns it. It plans no steps, and knows requests only to blame them.
"""

from glinthawk.core.ids import LaneId
from glinthawk.errors import InvalidRequest, NotFound, PeerUnavailable
from glinthawk.gateway.carrier import Carrier
from glinthawk.gateway.evacuation import Evacuation
from glinthawk.gateway.events import (
    CopyEnded,
    Drain,
    MemberEvent,
    StepFailed,
    WorkerJoined,
    WorkerLost,
)
from glinthawk.gateway.open_requests import OpenRequests
from glinthawk.gateway.worker_sizes import WorkerSizes
from glinthawk.gateway.workers import Workforce
from glinthawk.scheduler import Scheduler
from glinthawk.telemetry.logging import get_logger

log = get_logger("gateway.engine")


class WorkerChanges:
    """Follows what happens to the workers of one engine. sizes: of workers of earlier lives too."""

    def __init__(
        self,
        scheduler: Scheduler,
        workers: Workforce,
        requests: OpenRequests,
        carrier: Carrier,
        sizes: WorkerSizes,
    ) -> None:
        self._scheduler = scheduler
        self._workers = workers
        self._requests = requests
        self._carrier = carrier
        self._sizes = sizes
        self._evacuation = Evacuation(scheduler, workers, carrier)
        scheduler.remember(sizes.largest())

    @property
    def moved_bytes(self) -> int:
        """Bytes of KV that were copied from worker to worker."""
        return self._evacuation.moved_bytes

    def follow(self, event: MemberEvent) -> None:
        """Do what the news of a worker, or an order about it, asks for."""
        if isinstance(event, WorkerJoined):
            self._join(event)
        elif isinstance(event, WorkerLost):
            log.info("worker_lost", worker=event.name)
            self._workers.lose(event.name)
        else:
            try:
                self._change_drain(event)
            except NotFound as error:
                # It was there when the caller looked.
                log.info("drain_ignored", reason=str(error))

    def note_sizes(self) -> None:
        """Take note of who is there; end what nobody is left for, not even in memory."""
        self._sizes.note(self._workers.sizes())
        if self._scheduler.remember(self._sizes.largest()):
            self._requests.end_oversized()

    def recover(self, event: StepFailed) -> bool:
        """A step failed, and what its worker holds is not certain any more: the worker begins
        anew, and its sequences are computed again. Those that fail again and again end.

        Returns whether the step was still in flight.
        """
        plan = self._scheduler.find_step(LaneId(event.lane), event.step)
        if plan is None:
            return False
        log.warning("step_failed", worker=plan.worker, step=plan.step, error=str(event.error))
        epoch = self._workers.epoch_of(plan.worker)
        self._workers.lose(plan.worker)
        if not isinstance(event.error, PeerUnavailable):
            self._requests.blame(plan, event.error)
        self._carrier.reset_worker(plan.worker, epoch, event.error)
        return True

    def end_copy(self, event: CopyEnded) -> None:
        """Take note of what became of a copy."""
        self._evacuation.end_copy(event)

    def settle(self, now: float) -> None:
        """Let go who may end, and go on emptying who drains."""
        ended = self._workers.settle(now)
        for name in ended.may_end:
            self._carrier.release_worker(name)
        for entry in ended.to_empty:
            error = PeerUnavailable("its drain is over; what it held is computed again elsewhere")
            self._carrier.reset_worker(entry.name, entry.epoch, error)
        self._evacuation.begin_copies(now)

    def _join(self, event: WorkerJoined) -> None:
        log.info("worker_joined", worker=event.entry.name, epoch=event.entry.epoch)
        try:
            self._workers.join(event.entry)
            if event.drain_until is not None:
                self._workers.drain(event.entry.name, event.drain_until)
        except InvalidRequest as error:
            # It registered before the size of a page was known, and will find out itself.
            log.warning("worker_unusable", worker=event.entry.name, reason=str(error))

    def _change_drain(self, event: Drain) -> None:
        if event.deadline is not None:
            if self._workers.drain(event.name, event.deadline, then_ends=event.then_ends):
                log.info("worker_drains", worker=event.name)
            return
        log.info("drain_cancelled", worker=event.name)
        entry = self._workers.cancel_drain(event.name)
        if entry is not None:
            error = PeerUnavailable("it was drained, and comes back empty")
            self._carrier.reset_worker(entry.name, entry.epoch, error)
