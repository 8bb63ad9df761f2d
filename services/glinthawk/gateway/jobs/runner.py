"""Runs the batches of the store, by itself from its start on: whoever restarts it goes on.

    created, cancelled --+                       +--> Chores (threads): Preparing, up to in_progress
    completions ---------+--> [ runner's thread ]+--> Feeder: lines to the engine, answers back
    prepared, finished --+                       +--> Chores (threads): Finishing, to its end

One thread decides; what takes long has threads of its own. Everything that must outlive the
process is in the store before the next step relies on it.
"""

import contextlib
import queue
import threading
import time
from dataclasses import dataclass
from functools import partial

from glinthawk.errors import GlinthawkError, StoreUnavailable
from glinthawk.gateway.engine import Completion
from glinthawk.gateway.jobs.chores import Attempt, Chores, Done, Failed, Kind, Settled
from glinthawk.gateway.jobs.feeder import COMMIT_EVERY_S, Feeder
from glinthawk.gateway.jobs.finishing import Finishing, drop_leftovers
from glinthawk.gateway.jobs.job import Job, JobProgress
from glinthawk.gateway.jobs.patience import Patience
from glinthawk.gateway.jobs.preparing import Preparing
from glinthawk.gateway.jobs.services import JobServices, JobSettings
from glinthawk.gateway.store.records import BatchRecord, BatchStatus
from glinthawk.telemetry.logging import get_logger

log = get_logger("gateway.jobs")

SHOW_EVERY_S = 0.5

STOP_S = 10.0
"""How long the end waits for what is under way; it is taken up at the next start."""

_PAGE = 100
_LEFTOVERS = "lines of ended batches"
_OPEN_STATUSES = tuple(status for status in BatchStatus if not status.is_final)


@dataclass(frozen=True)
class _Created:
    batch_id: str


@dataclass(frozen=True)
class _Cancelled:
    batch_id: str


class _Stop:
    pass


_Event = Completion | _Created | _Cancelled | Done | Failed | _Stop


class JobRunner:
    """Runs all batches of a store over one engine."""

    def __init__(self, services: JobServices, settings: JobSettings) -> None:
        self._services = services
        self._settings = settings
        self._store = services.store
        self._stopped = threading.Event()
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._patience = Patience("committing answers", self._stopped, clock=services.clock)
        self._feeder = Feeder(services, settings, patience=self._patience, on_done=self._events.put)
        self._chores = Chores(services, settings, stopped=self._stopped, on_event=self._events.put)
        self._cancelled: set[str] = set()
        self._is_loaded = False
        self._shown_at_s: float | None = None
        self._progress: tuple[JobProgress, ...] = ()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    # --- from any thread

    def start(self) -> None:
        """Take up every batch that is not final, and those that come."""
        self._thread.start()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """End; what is under way is left to the next start. What hangs, such as a commit to a
        store that is locked, is waited for so long, and then left behind."""
        until_s = time.monotonic() + timeout_s
        self._stopped.set()
        self._events.put(_Stop())
        self._thread.join(timeout_s)
        self._chores.stop(max(0.0, until_s - time.monotonic()))

    def batch_created(self, batch_id: str) -> None:
        """Take up a batch that the store has now."""
        self._events.put(_Created(batch_id))

    def batch_cancelled(self, batch_id: str) -> None:
        """Give up a batch that is `cancelling` in the store now."""
        self._events.put(_Cancelled(batch_id))

    @property
    def is_alive(self) -> bool:
        """Whether the runner's thread works."""
        return self._thread.is_alive()

    def progress(self) -> tuple[JobProgress, ...]:
        """Return how the batches that are not final stand, as of the last half second."""
        return self._progress

    # --- the runner's thread

    def _run(self) -> None:
        try:
            self._loop()
        except GlinthawkError as error:
            log.error("jobs_failed", error=str(error))

    def _loop(self) -> None:
        wait_s = 0.0
        while not self._stopped.is_set():
            self._take_events(wait_s)
            has_more = False
            if self._patience.is_due:
                # The patience has logged it, and says when it is time to try again.
                with contextlib.suppress(StoreUnavailable):
                    has_more = self._work()
            self._chores.look()
            self._show()
            wait_s = 0.0 if has_more else COMMIT_EVERY_S / 2
        for job in self._feeder.jobs.values():
            self._feeder.close(job)
        with contextlib.suppress(StoreUnavailable):
            self._feeder.commit(at_once=True)

    def _take_events(self, wait_s: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._handle(self._events.get(timeout=wait_s) if wait_s else self._events.get_nowait())
            while True:
                self._handle(self._events.get_nowait())

    def _handle(self, event: _Event) -> None:
        """Take note of an event, without a word to the store."""
        if isinstance(event, Completion):
            self._feeder.take(event)
        elif isinstance(event, _Created):
            self._prepare(event.batch_id)
        elif isinstance(event, _Cancelled):
            if event.batch_id in self._chores or event.batch_id in self._feeder.jobs:
                self._cancelled.add(event.batch_id)
        elif isinstance(event, Failed):
            self._chores.failed(event)
        elif isinstance(event, Done):
            self._chores.done(event)
            if event.settled is not None:
                self._settle(event.settled)

    def _work(self) -> bool:
        """Do what is due; return whether there is more to do at once."""
        if not self._is_loaded:
            self._load()
        self._feeder.commit()
        for job in list(self._feeder.jobs.values()):
            outcome = self._choose_outcome(job)
            if outcome is not None:
                self._finalize(job, outcome)
        return self._feeder.feed()

    def _load(self) -> None:
        """Take up what an earlier process has left."""
        batches: list[BatchRecord] = []
        while True:
            after = batches[-1].id if batches else None
            fetch = partial(
                self._store.list_batches,
                limit=_PAGE,
                after=after,
                statuses=_OPEN_STATUSES,
                newest_first=False,
            )
            page = self._patience.read(fetch)
            batches += page
            if len(page) < _PAGE:
                break
        self._is_loaded = True
        for batch in batches:
            self._prepare(batch.id)
        self._chores.add(
            Kind.TIDYING,
            _LEFTOVERS,
            lambda patience: Attempt(partial(drop_leftovers, self._store, patience)),
        )

    def _choose_outcome(self, job: Job) -> BatchStatus | None:
        """Return to which end a job has come; None while it goes on."""
        if job.batch.id in self._cancelled or job.batch.status is BatchStatus.CANCELLING:
            return BatchStatus.CANCELLED
        if self._feeder.is_done(job) and not job.is_closed:
            return BatchStatus.COMPLETED
        is_over = job.is_closed or self._services.now() >= job.batch.expires_at
        return BatchStatus.EXPIRED if is_over else None

    def _finalize(self, job: Job, outcome: BatchStatus) -> None:
        """Decide, durably, how a job ends; its end is then brought about elsewhere."""
        if outcome is not BatchStatus.COMPLETED:
            self._feeder.close(job)
            self._feeder.commit(at_once=True)
        is_cancelled = outcome is BatchStatus.CANCELLED
        update = partial(
            self._store.update_batch,
            job.batch.id,
            only_from=(BatchStatus.CANCELLING if is_cancelled else BatchStatus.IN_PROGRESS,),
            status=BatchStatus.FINALIZING,
            outcome=outcome,
            finalizing_at=int(self._services.now()),
        )
        batch = self._patience.write(update)
        if batch.status is BatchStatus.CANCELLING:
            self._cancelled.add(batch.id)  # a moment ago; the next turn ends it as cancelled
            return
        self._feeder.remove(job)
        self._finish(batch.id)

    def _settle(self, settled: Settled) -> None:
        """Go on with a batch that comes back from another thread."""
        batch = settled.batch
        if batch.status in (BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING):
            self._feeder.add(Job(batch, settled.path, self._services.clock()))
        elif batch.status is BatchStatus.FINALIZING:
            self._finish(batch.id)
        else:
            self._cancelled.discard(batch.id)
            log.info("batch_ended", batch=batch.id, status=str(batch.status))

    def _prepare(self, batch_id: str) -> None:
        if batch_id in self._chores or batch_id in self._feeder.jobs:
            return  # it was found in the store already

        def begin(patience: Patience) -> Attempt:
            preparing = Preparing(
                self._store,
                batch_id,
                max_line_bytes=self._settings.max_line_bytes,
                patience=patience,
                now=self._services.now,
            )
            return Attempt(lambda: Settled(*preparing.run()), preparing.interrupt)

        self._chores.add(Kind.PREPARING, batch_id, begin)

    def _finish(self, batch_id: str) -> None:
        def begin(patience: Patience) -> Attempt:
            finishing = Finishing(self._store, batch_id, patience=patience, now=self._services.now)
            return Attempt(lambda: Settled(finishing.run()))

        self._chores.add(Kind.FINISHING, batch_id, begin)

    def _show(self) -> None:
        now_s = self._services.clock()
        if self._shown_at_s is not None and now_s - self._shown_at_s < SHOW_EVERY_S:
            return
        self._shown_at_s = now_s
        jobs = [job.measure(now_s) for job in self._feeder.jobs.values()]
        self._progress = (*self._chores.progress(), *jobs)
        self._services.metrics.show_jobs(self._progress)
