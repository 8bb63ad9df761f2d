"""The engine loop: requests in, finished choices out, steps to the stages in between.

One thread owns the scheduler and everything it knows of sequences; other threads post events.
It plans before it looks at text: the next step of a lane is on its way before the tokens of the
last one are decoded, so at most one token of a sequence is thrown away when a stop string ends
it. It knows no sockets, no files and no HTTP: steps leave through the carrier.

    submit, cancel --+                        +--> carrier.send_step(plan)
    results --------- +--> [ commit -> plan ] -+--> on_done(completion)
    failures --------+        then text       +--> carrier.reset_worker(name)
    workers ---------+

Workers come and go under it (see `changes`): what a lost one held is computed again elsewhere, from
prompt and tokens so far; what a draining one holds is copied. Without a worker, everything
waits. While a stage is away no worker is of use, so all of them count as lost.
"""

import queue
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from glinthawk.core.step import SampledToken, StepResult
from glinthawk.errors import GlinthawkError, InvariantBroken, NotFound
from glinthawk.gateway.carrier import Carrier
from glinthawk.gateway.changes import WorkerChanges
from glinthawk.gateway.conversation import Listener, OpenRequest
from glinthawk.gateway.detokenize import ChoiceResult
from glinthawk.gateway.events import (
    Broken,
    Cancel,
    CopyEnded,
    Drain,
    Event,
    MemberEvent,
    StepFailed,
    Stop,
    Submit,
    WorkerJoined,
    WorkerLost,
)
from glinthawk.gateway.open_requests import OpenRequests
from glinthawk.gateway.requests import ParsedRequest
from glinthawk.gateway.roster import WorkerEntry
from glinthawk.gateway.worker_sizes import WorkerSizes
from glinthawk.gateway.workers import WorkerFigures, Workforce
from glinthawk.models.tokenizer import Tokenizer
from glinthawk.scheduler import Flow, Scheduler, SchedulerStats
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import ServiceMetrics

log = get_logger("gateway.engine")

STATS_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Completion:
    """A request that ended: with all its choices, or with an error."""

    key: Hashable
    request: ParsedRequest
    choices: tuple[ChoiceResult, ...] = ()
    error: GlinthawkError | None = None


@dataclass(frozen=True)
class EngineStats:
    """What the engine has done since it began, and how the scheduler stands."""

    tokens_in: int
    tokens_out: int
    steps: int
    scheduler: SchedulerStats
    moved_bytes: int = 0
    workers: tuple[WorkerFigures, ...] = ()


class Engine:
    """Drives one scheduler. `run` is the body of its thread.

    carrier: takes steps away. on_done: called in the engine's thread, must not block. sizes: of
    workers of earlier lives too. Workers come by `worker_joined`; the scheduler that is given
    has none.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        *,
        carrier: Carrier,
        on_done: Callable[[Completion], None],
        metrics: ServiceMetrics,
        sizes: WorkerSizes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._workers = Workforce(scheduler)
        self._requests = OpenRequests(scheduler, tokenizer, self._end_request, metrics)
        self._changes = WorkerChanges(
            scheduler, self._workers, self._requests, carrier, sizes or WorkerSizes()
        )
        self._carrier = carrier
        self._on_done = on_done
        self._metrics = metrics
        self._clock = clock
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stats_due: float | None = None
        self.stats = EngineStats(0, 0, 0, scheduler.stats())
        self.failure: GlinthawkError | None = None

    # --- from any thread

    def submit(
        self,
        key: Hashable,
        request: ParsedRequest,
        listener: Listener | None = None,
        flow: Flow = Flow(),  # noqa: B008 - it is frozen
    ) -> None:
        """Queue a request; `on_done` is called once with its key, after all that `listener`
        hears of."""
        self._events.put(Submit(key, request, listener, flow))

    def cancel(self, key: Hashable) -> None:
        """Give a request up: its KV is freed and `on_done` is not called."""
        self._events.put(Cancel(key))

    def take_result(self, result: StepResult) -> None:
        """Hand over what the last stage sent."""
        self._events.put(result)

    def step_failed(self, lane: int, step: int, error: GlinthawkError) -> None:
        """Hand over that a step did not get through."""
        self._events.put(StepFailed(lane, step, error))

    def worker_joined(self, entry: WorkerEntry, drain_s: float | None = None) -> None:
        """A worker can be used from now on, with an empty cache; its former self is void.
        drain_s: it was to be empty in so many seconds, by the word of an earlier gateway."""
        until = None if drain_s is None else self._clock() + drain_s
        self._events.put(WorkerJoined(entry, until))

    def worker_lost(self, name: str) -> None:
        """A worker is gone, with what it held."""
        self._events.put(WorkerLost(name))

    def copy_ended(self, event: CopyEnded) -> None:
        """Hand over what became of a copy."""
        self._events.put(event)

    def find_worker(self, name: str) -> WorkerFigures:
        """Return how a worker stands, half a second ago at most.

        Raises:
            NotFound: there is no such worker.
        """
        workers = {worker.name: worker for worker in self.stats.workers}
        if name not in workers:
            known = ", ".join(workers) or "none"
            raise NotFound(f"there is no attention worker {name!r}; known are {known}")
        return workers[name]

    def drain(self, name: str, deadline_s: float) -> None:
        """Place nothing more on a worker; what would not end there in `deadline_s` seconds is
        copied elsewhere, and what still runs there then computed again. `stats` says when it is
        drained.

        Raises:
            NotFound: there is no such worker.
        """
        self.find_worker(name)
        self._events.put(Drain(name, self._clock() + deadline_s))

    def worker_leaves(self, name: str, deadline_s: float) -> None:
        """A worker wants to end: it is drained, and released when it is empty. May be told
        again."""
        self._events.put(Drain(name, self._clock() + deadline_s, then_ends=True))

    def cancel_drain(self, name: str) -> None:
        """Place sequences on a worker again.

        Raises:
            NotFound: there is no such worker.
        """
        self.find_worker(name)
        self._events.put(Drain(name, None))

    def break_down(self, error: GlinthawkError) -> None:
        """End the engine because something it cannot do without is gone."""
        self._events.put(Broken(error))

    def stop(self) -> None:
        """End the engine; what is open stays unfinished."""
        self._events.put(Stop())

    # --- the loop

    def run(self) -> None:
        """Serve until `stop` or a failure, which is then in `failure`."""
        try:
            while self._turn():
                pass
        except GlinthawkError as error:
            self._fail(error)
        except Exception as error:
            log.error("engine_defect", exc_info=error)
            name = type(error).__name__
            self._fail(InvariantBroken(f"a defect of the engine ({name}); its log says where"))

    def _turn(self) -> bool:
        """Take all events that are there, plan, then look at text. False: the end."""
        sampled: list[SampledToken] = []
        event: Event | None = self._wait()
        while event is not None:
            if isinstance(event, Stop):
                return False
            if isinstance(event, Broken):
                self._fail(event.error)
                return False
            self._handle(event, sampled)
            event = self._poll()
        self._plan()
        self._requests.read(sampled)
        self._refresh_stats()
        return True

    def _wait(self) -> Event | None:
        try:
            return self._events.get(timeout=STATS_INTERVAL_S)
        except queue.Empty:
            return None

    def _poll(self) -> Event | None:
        try:
            return self._events.get_nowait()
        except queue.Empty:
            return None

    def _fail(self, error: GlinthawkError) -> None:
        self.failure = error
        log.error("engine_failed", error=str(error))

    def _handle(self, event: Event, sampled: list[SampledToken]) -> None:
        if isinstance(event, Submit):
            self._requests.open(event)
        elif isinstance(event, Cancel):
            self._requests.close(event.key)
        elif isinstance(event, StepResult):
            sampled += self._requests.commit(event)
        elif isinstance(event, StepFailed):
            if self._changes.recover(event):
                self._stats_due = None
        elif isinstance(event, CopyEnded):
            self._changes.end_copy(event)
        elif isinstance(event, MemberEvent):
            self._changes.follow(event)
            self._stats_due = None

    def _plan(self) -> None:
        self._changes.settle(self._clock())
        for plan in self._scheduler.plan():
            self._carrier.send_step(
                plan,
                epoch=self._workers.epoch_of(plan.worker),
                prefill_first=self._scheduler.prefill_first,
            )

    def _end_request(self, request: OpenRequest, error: GlinthawkError | None) -> None:
        choices = () if error is not None else request.build_results()
        self._on_done(Completion(request.key, request.parsed, choices, error))

    def _refresh_stats(self) -> None:
        now = self._clock()
        if self._stats_due is not None and now < self._stats_due:
            return
        self._stats_due = now + STATS_INTERVAL_S
        self._changes.note_sizes()
        stats = self._scheduler.stats()
        self._metrics.kv_used_bytes.set(stats.kv_used_bytes)
        self._metrics.kv_demanded_bytes.set(stats.kv_demanded_bytes)
        self._metrics.kv_capacity_bytes.set(stats.kv_capacity_bytes)
        self._metrics.queue_depth.set(stats.num_waiting)
        self._metrics.set_waiting(
            interactive=stats.num_waiting_interactive, batch=stats.num_waiting_batch
        )
        self._metrics.lanes.set(sum(rows > 0 for rows in stats.lane_rows))
        self.stats = EngineStats(
            tokens_in=self._requests.totals.tokens_in,
            tokens_out=self._requests.totals.tokens_out,
            steps=self._requests.totals.steps,
            scheduler=stats,
            moved_bytes=self._changes.moved_bytes,
            workers=tuple(self._workers.figures()),
        )
