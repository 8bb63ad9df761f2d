"""The tiers and the engine over them, brought up in one place: one engine behind several doors.

    roster, cluster (members, lines) ---workers, results---> engine ---completions---> the door
                  server: Membership       <---steps---

The batch command and the gateway differ in what a lost machine means: the one ends with a
message that names it, the other goes on without it. Nothing here knows files, jobs or HTTP.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from glinthawk.core.dtype import DType
from glinthawk.core.step import StepPlan
from glinthawk.errors import GlinthawkError, PeerUnavailable
from glinthawk.gateway.cluster import Cluster
from glinthawk.gateway.engine import Completion, Engine
from glinthawk.gateway.keeper import ClusterEvents
from glinthawk.gateway.lane_settings import LaneSettings
from glinthawk.gateway.roster import Roster, WorkerEntry
from glinthawk.gateway.worker_sizes import WorkerSizes
from glinthawk.gateway.workers import WorkerState
from glinthawk.models.config import ModelConfig
from glinthawk.models.tokenizer import Tokenizer
from glinthawk.scheduler import MoveOrder, Scheduler, SchedulerConfig
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.dial import DialOptions
from glinthawk.wire.grpc_server import GrpcServer

DIAL_S = 5.0
"""Members have registered, so they are up: one that does not answer for so long is tried again."""

CONNECT_S = 60.0

STOP_S = 5.0


@dataclass(frozen=True)
class TiersSettings:
    """What the tiers are made of.

    num_workers: attention workers that must be there before the engine starts. kv_dtype: None
    for the format in which the stages compute. survives: go on when members are lost; without
    it, the engine ends with the reason.
    """

    model: ModelConfig
    model_digest: str
    num_stages: int
    num_workers: int
    kv_dtype: DType | None
    max_sequence_length: int
    lanes: LaneSettings
    transport: str = "auto"
    secret: str | None = None
    survives: bool = True
    lease_s: float = 6.0


class Tiers:
    """Stages and attention workers that register, and the engine that runs over them.

    Args:
        settings: what they are made of.
        server: gRPC server of the process; started by the caller after this was made.
        tokenizer: of the model.
        reserve_epochs: raises the durable counter of epochs by so many, and returns the first.
        on_done: gets each finished request, in the engine's thread; must not block.
        metrics: of the process.
        drain_left: seconds in which a worker that joins is to be empty, None if it is to stay.
        sizes: of workers, also of those before this process; None for none before.
    """

    def __init__(
        self,
        settings: TiersSettings,
        server: GrpcServer,
        tokenizer: Tokenizer,
        *,
        reserve_epochs: Callable[[int], int],
        on_done: Callable[[Completion], None],
        metrics: ServiceMetrics,
        drain_left: Callable[[WorkerEntry], float | None] = lambda entry: None,
        sizes: WorkerSizes | None = None,
    ) -> None:
        self._settings = settings
        self._drain_left = drain_left
        self._sizes = sizes
        self._tokenizer = tokenizer
        self._on_done = on_done
        self._metrics = metrics
        roster = Roster(
            settings.model,
            settings.model_digest,
            num_stages=settings.num_stages,
            num_workers=settings.num_workers,
            kv_dtype=settings.kv_dtype,
        )
        self.cluster = Cluster(
            roster,
            reserve_epochs=reserve_epochs,
            dial_options=DialOptions(
                transport=settings.transport,
                timeout_s=DIAL_S,
                role="gateway",
                secret=settings.secret,
            ),
            metrics=metrics,
            lease_s=settings.lease_s,
        )
        self.cluster.attach(server)
        self._engine: Engine | None = None
        self._thread: threading.Thread | None = None

    @property
    def engine(self) -> Engine:
        """The engine, once it is started."""
        assert self._engine is not None, "start_engine comes first"
        return self._engine

    @property
    def is_ready(self) -> bool:
        """Whether a token can be generated now."""
        engine = self._engine
        if engine is None or engine.failure is not None or not self.cluster.is_whole:
            return False
        return any(worker.state is WorkerState.ACTIVE for worker in engine.stats.workers)

    def start(self) -> None:
        """Take in stages and workers."""
        self.cluster.start()

    def start_engine(self, timeout_s: float | None, check: Callable[[], None]) -> Engine:
        """Wait for the stages and the wanted workers, then start the engine over them.

        `check` is called meanwhile, and may raise.

        Raises:
            PeerUnavailable: the time is over; the message says who is missing.
        """
        self.cluster.wait_until_complete(timeout_s, check)
        settings = self._settings
        scheduler = Scheduler(
            SchedulerConfig(
                geometry=self.cluster.geometry,
                num_lanes=settings.lanes.num_lanes,
                max_lane_rows=settings.lanes.max_lane_rows,
                min_lane_rows=settings.lanes.min_lane_rows,
                prefill_tokens=settings.lanes.prefill_tokens,
                max_sequence_length=settings.max_sequence_length,
            )
        )
        carrier = self.cluster if settings.survives else _StrictCarrier(self)
        engine = Engine(
            scheduler,
            self._tokenizer,
            carrier=carrier,
            on_done=self._on_done,
            metrics=self._metrics,
            sizes=self._sizes,
        )
        self._engine = engine
        self._thread = threading.Thread(target=engine.run, name="engine", daemon=True)
        self._thread.start()
        events = ClusterEvents(
            on_result=engine.take_result,
            on_failed=engine.step_failed,
            on_worker_joined=lambda entry: engine.worker_joined(entry, self._drain_left(entry)),
            on_worker_lost=lambda name, _: engine.worker_lost(name),
            on_stages_lost=lambda _: None,
            on_worker_leaves=engine.worker_leaves,
            on_copy_ended=engine.copy_ended,
        )
        self.cluster.connect(events if settings.survives else self._end_with(engine, events))
        if settings.num_workers:
            self.cluster.wait_until_whole(CONNECT_S, lambda: self._check(check))
        return engine

    def stop(self, reason: str, timeout_s: float = STOP_S) -> None:
        """End the engine and ask every member to end; what is open stays unfinished. timeout_s:
        how long the engine is waited for."""
        if self._engine is not None and self._thread is not None:
            self._engine.stop()
            self._thread.join(timeout_s)
        self.cluster.stop(reason)

    def _end_with(self, engine: Engine, events: ClusterEvents) -> ClusterEvents:
        """Return events that end the engine when a member is lost, and are else the same."""
        return replace(
            events,
            on_worker_lost=lambda _, reason: engine.break_down(PeerUnavailable(reason)),
            on_stages_lost=lambda reason: engine.break_down(PeerUnavailable(reason)),
            on_worker_leaves=lambda name, _: self.cluster.release_worker(name),
        )

    def _check(self, check: Callable[[], None]) -> None:
        check()
        if self.engine.failure is not None:
            raise self.engine.failure


class _StrictCarrier:
    """Takes steps to the tiers; a worker that would have to begin anew ends the engine."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers

    def send_step(self, plan: StepPlan, *, epoch: int, prefill_first: bool) -> None:
        """Put a step on its way."""
        self._tiers.cluster.send_step(plan, epoch=epoch, prefill_first=prefill_first)

    def copy_pages(
        self, order: MoveOrder, *, source_epoch: int, target_epoch: int, timeout_s: float
    ) -> None:
        """Have one worker copy a sequence's KV to another."""
        self._tiers.cluster.copy_pages(
            order, source_epoch=source_epoch, target_epoch=target_epoch, timeout_s=timeout_s
        )

    def reset_worker(self, name: str, epoch: int, error: GlinthawkError) -> None:
        """End the run with the error."""
        self._tiers.engine.break_down(error)

    def release_worker(self, name: str) -> None:
        """Let a worker end."""
        self._tiers.cluster.release_worker(name)
