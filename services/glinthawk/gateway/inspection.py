"""How a gateway stands, in one document: for people, for the operator, and for tests.

The document is JSON: names here are names there. Bytes, seconds and shares from 0 to 1.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from glinthawk import __version__
from glinthawk.gateway.cluster import Cluster
from glinthawk.gateway.engine import Engine
from glinthawk.gateway.jobs.job import JobProgress
from glinthawk.gateway.jobs.runner import JobRunner
from glinthawk.wire.frames import PROTOCOL_VERSION

_RATE_WINDOW_S = 10.0


@dataclass(frozen=True)
class KvFigures:
    """KV bytes held now, wanted by running and admissible waiting sequences, and there."""

    used_bytes: int = 0
    demanded_bytes: int = 0
    capacity_bytes: int = 0


@dataclass(frozen=True)
class StageView:
    """A stage: layers [first_layer, last_layer). busy_share: None while it is not known."""

    name: str
    address: str
    first_layer: int
    last_layer: int
    busy_share: float | None


@dataclass(frozen=True)
class WorkerView:
    """An attention worker. state: active, draining, drained or lost."""

    name: str
    address: str | None
    state: str
    num_sequences: int
    kv_used_bytes: int
    kv_capacity_bytes: int
    busy_share: float | None


@dataclass(frozen=True)
class Inspection:
    """See the module. lane_rows: sequences in each lane. Tokens count from the engine's start."""

    version: str
    protocol_version: int
    model: str
    is_ready: bool
    num_stages: int
    stages: tuple[StageView, ...] = ()
    workers: tuple[WorkerView, ...] = ()
    kv: KvFigures = KvFigures()
    lane_rows: tuple[int, ...] = ()
    num_waiting: int = 0
    num_waiting_interactive: int = 0
    num_waiting_batch: int = 0
    num_prefilling: int = 0
    num_decoding: int = 0
    num_moving: int = 0
    recomputed_tokens: int = 0
    moved_tokens: int = 0
    moved_bytes: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_out_per_s: float = 0.0
    jobs: tuple[JobProgress, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)


class Inspector:
    """Builds inspections of one gateway. Any thread may ask; `tick` is called now and then."""

    def __init__(
        self,
        model: str,
        num_stages: int,
        cluster: Cluster,
        jobs: JobRunner,
        *,
        is_ready: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._num_stages = num_stages
        self._cluster = cluster
        self._jobs = jobs
        self._is_ready = is_ready
        self._clock = clock
        self._engine: Engine | None = None
        self._points: deque[tuple[float, int]] = deque(maxlen=256)

    def attach(self, engine: Engine) -> None:
        """Show the figures of an engine from now on."""
        self._engine = engine

    def tick(self) -> None:
        """Take a point for rates."""
        if self._engine is None:
            return
        now = self._clock()
        self._points.append((now, self._engine.stats.tokens_out))
        while len(self._points) > 2 and self._points[1][0] <= now - _RATE_WINDOW_S:
            self._points.popleft()

    def inspect(self) -> Inspection:
        """Return how the gateway stands now; figures are half a second old at most."""
        addresses = self._cluster.addresses()
        base = Inspection(
            version=__version__,
            protocol_version=PROTOCOL_VERSION,
            model=self._model,
            is_ready=self._is_ready(),
            num_stages=self._num_stages,
            stages=tuple(
                StageView(
                    stage.name,
                    stage.address,
                    stage.first_layer,
                    stage.last_layer,
                    self._cluster.busy_share(stage.name),
                )
                for stage in self._cluster.stages()
            ),
            jobs=self._jobs.progress(),
        )
        return base if self._engine is None else self._add_engine(base, self._engine, addresses)

    def _add_engine(
        self, base: Inspection, engine: Engine, addresses: Mapping[str, str]
    ) -> Inspection:
        stats = engine.stats
        scheduler = stats.scheduler
        workers = tuple(
            WorkerView(
                worker.name,
                addresses.get(worker.name),
                str(worker.state),
                worker.num_sequences,
                worker.kv_used_bytes,
                worker.kv_capacity_bytes,
                self._cluster.busy_share(worker.name),
            )
            for worker in stats.workers
        )
        return replace(
            base,
            workers=workers,
            kv=KvFigures(
                scheduler.kv_used_bytes, scheduler.kv_demanded_bytes, scheduler.kv_capacity_bytes
            ),
            lane_rows=scheduler.lane_rows,
            num_waiting=scheduler.num_waiting,
            num_waiting_interactive=scheduler.num_waiting_interactive,
            num_waiting_batch=scheduler.num_waiting_batch,
            num_prefilling=scheduler.num_prefilling,
            num_decoding=scheduler.num_decoding,
            num_moving=scheduler.num_moving,
            recomputed_tokens=scheduler.recomputed_tokens,
            moved_tokens=scheduler.moved_tokens,
            moved_bytes=stats.moved_bytes,
            tokens_in=stats.tokens_in,
            tokens_out=stats.tokens_out,
            tokens_out_per_s=self._rate(),
        )

    def _rate(self) -> float:
        points = list(self._points)
        if len(points) < 2 or points[-1][0] <= points[0][0]:
            return 0.0
        return (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])
