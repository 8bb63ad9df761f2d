"""Work on batches that takes long, in threads of its own: so many at a time, and never given up.

    add --> queued --a free place--> thread --Done--> runner
              ^                        `----Failed--> failed: again, later and later
              `---- due --------------------------------'

An unavailable store is borne by each chore's `Patience`. What fails beyond that is a defect of ours
or a machine in trouble. It is said where users and operators look (the batch's errors, progress,
metrics, the log), and tried again as long as the gateway runs: what a chore has done so far is in
the store, so one more attempt costs little, and a batch is not lost because of it. One that does
not move for long is said in the same places, and interrupted.

The runner's thread uses this; the threads here only work, and tell it how that went.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from glinthawk.errors import GlinthawkError
from glinthawk.gateway.jobs.job import JobProgress
from glinthawk.gateway.jobs.patience import Patience, Stopped
from glinthawk.gateway.jobs.services import JobServices, JobSettings
from glinthawk.gateway.store.records import BatchError, BatchRecord, BatchStatus
from glinthawk.telemetry.logging import get_logger

log = get_logger("gateway.jobs")

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
"""Pause after a chore failed for the first time, twice as long each time, and the longest."""

LONGEST_GAP_S = 5.0
"""Of the time between two looks no more counts: then the gateway itself stood still."""

_CODE = "internal_error"
_OPEN_STATUSES = tuple(status for status in BatchStatus if not status.is_final)


class Kind(StrEnum):
    """What is done. Each kind has places of its own."""

    PREPARING = "preparing"
    FINISHING = "finishing"
    TIDYING = "tidying"


PLACES = {Kind.PREPARING: 4, Kind.FINISHING: 2, Kind.TIDYING: 1}

_STATUSES = {
    Kind.PREPARING: BatchStatus.VALIDATING,
    Kind.FINISHING: BatchStatus.FINALIZING,
}


@dataclass(frozen=True)
class Settled:
    """A batch that was prepared or finished, as the store has it now. path: of its input, if it
    is to be worked on."""

    batch: BatchRecord
    path: Path | None = None


@dataclass(frozen=True)
class Done:
    """A chore that is through."""

    key: str
    settled: Settled | None


@dataclass(frozen=True)
class Failed:
    """A chore whose attempt failed."""

    key: str
    error: Exception


@dataclass(frozen=True)
class Attempt:
    """One attempt: `run` is called once, in a thread; `interrupt` by others, more than once, ends
    what it waits for outside of this process."""

    run: Callable[[], Settled | None]
    interrupt: Callable[[], None] = lambda: None


@dataclass(eq=False)
class _Chore:
    """key: the batch's id, if it is about one. due_s: of the next attempt, None if at once.
    moves: of its thread when it was last looked at. still_s: since it was seen to move."""

    kind: Kind
    key: str
    begin: Callable[[Patience], Attempt]
    num_failures: int = 0
    due_s: float | None = None
    problem: str | None = None
    thread: threading.Thread | None = None
    attempt: Attempt = field(default_factory=lambda: Attempt(lambda: None))
    patience: Patience | None = None
    moves: int | None = None
    still_s: float = 0.0

    def is_due(self, now_s: float) -> bool:
        return self.due_s is None or self.due_s <= now_s


class Chores:
    """See the module. stopped: set when the gateway ends. on_event: where the threads leave what
    happened; called from them."""

    def __init__(
        self,
        services: JobServices,
        settings: JobSettings,
        *,
        stopped: threading.Event,
        on_event: Callable[[Done | Failed], None],
    ) -> None:
        self._store = services.store
        self._metrics = services.metrics
        self._clock = services.clock
        self._stopped = stopped
        self._on_event = on_event
        self._stuck_after_s = settings.stuck_after_s
        self._chores: dict[str, _Chore] = {}
        self._looked_at_s = services.clock()

    def __contains__(self, key: str) -> bool:
        return key in self._chores

    def add(self, kind: Kind, key: str, begin: Callable[[Patience], Attempt]) -> None:
        """Do something soon. begin: makes an attempt, with a patience of its own."""
        self._chores[key] = _Chore(kind, key, begin)
        self.look()

    def done(self, event: Done) -> None:
        """Take note that a chore is through."""
        del self._chores[event.key]
        self.look()

    def failed(self, event: Failed) -> None:
        """Take note that an attempt failed; the next one comes by itself."""
        chore = self._chores[event.key]
        chore.num_failures += 1
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(16, chore.num_failures - 1))
        chore.due_s = self._clock() + pause_s
        chore.thread = chore.patience = None
        chore.problem = _describe_failure(chore)
        self._metrics.count_failure()
        is_ours = isinstance(event.error, GlinthawkError)
        log.error(
            "batch_stuck",
            batch=chore.key,
            doing=str(chore.kind),
            attempt=chore.num_failures,
            again_in_s=pause_s,
            error=str(event.error) if is_ours else type(event.error).__name__,
            exc_info=None if is_ours else event.error,
        )
        self.look()

    def look(self) -> None:
        """Begin what is due and has a place; notice what does not move. Call it again and again."""
        now_s = self._clock()
        gap_s, self._looked_at_s = min(LONGEST_GAP_S, now_s - self._looked_at_s), now_s
        taken = Counter(chore.kind for chore in self._chores.values() if chore.thread is not None)
        for chore in self._chores.values():
            if chore.thread is not None:
                self._watch(chore, gap_s)
            elif chore.is_due(now_s) and taken[chore.kind] < PLACES[chore.kind]:
                taken[chore.kind] += 1
                self._begin(chore)

    def progress(self) -> list[JobProgress]:
        """Return how the batches stand that are here."""
        return [
            JobProgress(chore.key, _STATUSES[chore.kind], problem=chore.problem)
            for chore in self._chores.values()
            if chore.kind in _STATUSES
        ]

    def stop(self, timeout_s: float) -> None:
        """End; the event is set before. What hangs for so long is left behind."""
        threads = [(chore, chore.thread) for chore in self._chores.values() if chore.thread]
        for chore, _ in threads:
            chore.attempt.interrupt()
        deadline_s = self._clock() + timeout_s
        for _, thread in threads:
            thread.join(max(0.0, deadline_s - self._clock()))

    def _begin(self, chore: _Chore) -> None:
        chore.patience = Patience(f"{chore.kind} {chore.key}", self._stopped, clock=self._clock)
        chore.attempt = chore.begin(chore.patience)
        chore.moves, chore.still_s = None, 0.0
        chore.thread = threading.Thread(
            target=self._work, args=(chore, chore.attempt), name=str(chore.kind), daemon=True
        )
        chore.thread.start()

    def _watch(self, chore: _Chore, gap_s: float) -> None:
        """Notice that a chore moves, or that it does not."""
        assert chore.patience is not None, "it has one while it has a thread"
        moves = chore.patience.num_moves
        was_stuck = chore.still_s > self._stuck_after_s
        chore.still_s = 0.0 if moves != chore.moves else chore.still_s + gap_s
        chore.moves = moves
        if chore.still_s > self._stuck_after_s and not was_stuck:
            chore.problem = f"{chore.kind} it has not moved for {chore.still_s:.0f} s"
            self._metrics.count_failure()
            log.error("batch_stuck", batch=chore.key, doing=str(chore.kind), error=chore.problem)
            chore.attempt.interrupt()
        elif was_stuck and chore.still_s == 0.0 and not chore.num_failures:
            chore.problem = None

    def _work(self, chore: _Chore, attempt: Attempt) -> None:
        """The thread of one attempt."""
        event: Done | Failed
        try:
            event = Done(chore.key, attempt.run())
        except Stopped:
            return
        except Exception as error:  # noqa: BLE001 - the thread's boundary
            event = Failed(chore.key, error)
            if chore.kind in _STATUSES:
                self._tell_user(chore)
        self._on_event(event)

    def _tell_user(self, chore: _Chore) -> None:
        """Say in the batch that it is stuck; what ends well takes that away."""
        with contextlib.suppress(GlinthawkError):
            self._store.update_batch(
                chore.key,
                only_from=_OPEN_STATUSES,
                errors=(BatchError(_CODE, f"{_describe_failure(chore)}; it is tried again"),),
            )


def _describe_failure(chore: _Chore) -> str:
    """Say what users may know; the log has the error itself, which may hold paths."""
    return f"{chore.kind} batch {chore.key} failed in the gateway; its log has the reason"
