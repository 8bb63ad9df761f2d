"""Runs the batches of the store, by itself from its start on: whoever restarts it goes on.

    created, cancelled --+                       +--> Preparing (threads): up to in_progress
    completions ---------+--> [ runner's thread ]+--> Feeder: lines to the engine, answers back
    prepared, finished --+                       +--> Finishing (threads): finalizing to its end

One thread decides; what takes long has threads of its own. Everything that must outlive the
process is in the store before the next step relies on it.
"""

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from glinthawk.errors import GlinthawkError, StoreUnavailable
from glinthawk.gateway.engine import Completion
from glinthawk.gateway.jobs.feeder import COMMIT_EVERY_S, Feeder
from glinthawk.gateway.jobs.finishing import Finishing, drop_leftovers
from glinthawk.gateway.jobs.job import Job, JobProgress
from glinthawk.gateway.jobs.patience import Patience, Stopped
from glinthawk.gateway.jobs.preparing import Preparing
from glinthawk.gateway.jobs.services import JobServices, JobSettings
from glinthawk.gateway.store.records import BatchRecord, BatchStatus
from glinthawk.telemetry.logging import get_logger

log = get_logger("gateway.jobs")

MAX_PREPARING = 4
MAX_FINISHING = 2
"""Batches that are prepared, or finished, at a time."""

SHOW_EVERY_S = 0.5
_PAGE = 100
_OPEN_STATUSES = tuple(status for status in BatchStatus if not status.is_final)


@dataclass(frozen=True)
class _Created:
    batch_id: str


@dataclass(frozen=True)
class _Cancelled:
    batch_id: str


@dataclass(frozen=True)
class _Settled:
    """A batch that was prepared or finished, as the store has it now."""

    batch: BatchRecord
    path: Path | None = None


class _Stop:
    pass


_Event = Completion | _Created | _Cancelled | _Settled | _Stop


class JobRunner:
    """Runs all batches of a store over one engine."""

    def __init__(self, services: JobServices, settings: JobSettings) -> None:
        self._services = services
        self._settings = settings
        self._store = services.store
        self._stopped = threading.Event()
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._patience = self._make_patience("committing answers")
        self._feeder = Feeder(services, settings, patience=self._patience, on_done=self._events.put)
        self._preparers = ThreadPoolExecutor(MAX_PREPARING, "preparing")
        self._finishers = ThreadPoolExecutor(MAX_FINISHING, "finishing")
        self._preparing: dict[str, Preparing] = {}
        self._away: dict[str, BatchStatus] = {}
        self._cancelled: set[str] = set()
        self._is_loaded = False
        self._shown_at_s = 0.0
        self._progress: tuple[JobProgress, ...] = ()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    # --- from any thread

    def start(self) -> None:
        """Take up every batch that is not final, and those that come."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is under way is left to the next start."""
        self._stopped.set()
        self._events.put(_Stop())
        self._thread.join()
        for preparing in list(self._preparing.values()):
            preparing.stop()
        self._preparers.shutdown(cancel_futures=True)
        self._finishers.shutdown(cancel_futures=True)

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
            if event.batch_id in self._away or event.batch_id in self._feeder.jobs:
                self._cancelled.add(event.batch_id)
        elif isinstance(event, _Settled):
            self._settle(event)

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
        patience = self._make_patience("dropping lines of ended batches")
        self._start_chore(self._finishers, partial(drop_leftovers, self._store, patience))

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

    def _settle(self, event: _Settled) -> None:
        """Go on with a batch that comes back from another thread."""
        batch = event.batch
        self._away.pop(batch.id, None)
        self._preparing.pop(batch.id, None)
        if batch.status in (BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING):
            self._feeder.add(Job(batch, event.path, self._services.clock()))
        elif batch.status is BatchStatus.FINALIZING:
            self._finish(batch.id)
        else:
            self._cancelled.discard(batch.id)
            log.info("batch_ended", batch=batch.id, status=str(batch.status))

    def _prepare(self, batch_id: str) -> None:
        if batch_id in self._away or batch_id in self._feeder.jobs:
            return  # it was found in the store already
        self._away[batch_id] = BatchStatus.VALIDATING
        preparing = Preparing(
            self._store,
            batch_id,
            max_line_bytes=self._settings.max_line_bytes,
            patience=self._make_patience(f"validating {batch_id}"),
            now=self._services.now,
        )
        self._preparing[batch_id] = preparing
        self._start_chore(self._preparers, lambda: self._events.put(_Settled(*preparing.run())))

    def _finish(self, batch_id: str) -> None:
        self._away[batch_id] = BatchStatus.FINALIZING
        patience = self._make_patience(f"finishing {batch_id}")
        finishing = Finishing(self._store, batch_id, patience=patience, now=self._services.now)
        self._start_chore(self._finishers, lambda: self._events.put(_Settled(finishing.run())))

    def _make_patience(self, doing: str) -> Patience:
        return Patience(doing, self._stopped, clock=self._services.clock)

    def _start_chore(self, executor: ThreadPoolExecutor, work: Callable[[], None]) -> None:
        executor.submit(work).add_done_callback(_log_failure)

    def _show(self) -> None:
        now_s = self._services.clock()
        if now_s - self._shown_at_s < SHOW_EVERY_S:
            return
        self._shown_at_s = now_s
        away = [JobProgress(batch_id, status) for batch_id, status in self._away.items()]
        jobs = [job.measure(now_s) for job in self._feeder.jobs.values()]
        self._progress = (*away, *jobs)
        self._services.metrics.show_jobs(self._progress)


def _log_failure(future: Future[None]) -> None:
    """Say that a chore went wrong; its batch is taken up again at the next start."""
    if future.cancelled():
        return
    error = future.exception()
    if error is not None and not isinstance(error, Stopped):
        is_ours = isinstance(error, GlinthawkError)
        log.error("batch_stuck", error=str(error), exc_info=None if is_ours else error)
