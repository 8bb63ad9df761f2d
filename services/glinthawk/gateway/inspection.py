"""How a gateway stands, in one document: for people, for the operator, and for tests.

The document is JSON: names here are names there. Bytes, seconds and shares from 0 to 1. What is
said of the fields is what docs/api-reference.md says.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from glinthawk import __version__
from glinthawk.gateway.cluster import Cluster
from glinthawk.gateway.engine import Engine
from glinthawk.gateway.jobs.job import JobProgress
from glinthawk.gateway.jobs.runner import JobRunner
from glinthawk.wire.frames import PROTOCOL_VERSION

_RATE_WINDOW_S = 10.0


@dataclass(frozen=True)
class KvFigures:
    """Bytes of KV memory, of the whole tier."""

    used_bytes: Annotated[int, Field(description="Held now.")] = 0
    demanded_bytes: Annotated[
        int, Field(description="Wanted by running and admissible waiting sequences.")
    ] = 0
    capacity_bytes: Annotated[int, Field(description="There in all workers in use.")] = 0


@dataclass(frozen=True)
class StageView:
    """A stage that is there."""

    name: Annotated[str, Field(description="As it registered.")]
    address: Annotated[str, Field(description="Host and port of its gRPC.")]
    first_layer: Annotated[int, Field(description="The first of its layers.")]
    last_layer: Annotated[int, Field(description="The first layer behind them.")]
    busy_share: Annotated[
        float | None,
        Field(description="Of the last seconds, in which it computed; null while not known."),
    ]


@dataclass(frozen=True)
class WorkerView:
    """An attention worker that is, or was, there."""

    name: Annotated[str, Field(description="As it registered.")]
    address: Annotated[str | None, Field(description="Host and port of its gRPC, while there.")]
    state: Annotated[str, Field(description="`active`, `draining`, `drained` or `lost`.")]
    num_sequences: Annotated[int, Field(description="That run there.")]
    kv_used_bytes: Annotated[int, Field(description="KV that they hold.")]
    kv_capacity_bytes: Annotated[int, Field(description="KV memory that it has.")]
    busy_share: Annotated[
        float | None,
        Field(description="Of the last seconds, in which it computed; null while not known."),
    ]


@dataclass(frozen=True)
class Inspection:
    """How a gateway stands. Tokens count from its start."""

    version: Annotated[str, Field(description="Of Glinthawk.")]
    protocol_version: Annotated[int, Field(description="That stages and workers must speak too.")]
    model: Annotated[str, Field(description="The first name under which the model is served.")]
    is_ready: Annotated[bool, Field(description="A token can be generated now.")]
    num_stages: Annotated[int, Field(description="Stages that are needed.")]
    stages: Annotated[tuple[StageView, ...], Field(description="Those that are there.")] = ()
    workers: Annotated[tuple[WorkerView, ...], Field(description="All that are known.")] = ()
    kv: Annotated[KvFigures, Field(description="KV memory.")] = KvFigures()
    lane_rows: Annotated[tuple[int, ...], Field(description="Sequences in each lane.")] = ()
    num_waiting: Annotated[int, Field(description="Sequences that wait in the engine.")] = 0
    num_waiting_interactive: Annotated[
        int, Field(description="Of these, those of callers who wait.")
    ] = 0
    num_waiting_batch: Annotated[int, Field(description="Of these, those of batches.")] = 0
    num_prefilling: Annotated[int, Field(description="Sequences whose prompt is under way.")] = 0
    num_decoding: Annotated[int, Field(description="Sequences that generate.")] = 0
    num_moving: Annotated[
        int, Field(description="Sequences whose KV is being copied to another worker.")
    ] = 0
    recomputed_tokens: Annotated[
        int, Field(description="Prefilled again, because their KV was given up or lost.")
    ] = 0
    moved_tokens: Annotated[int, Field(description="Whose KV was copied between workers.")] = 0
    moved_bytes: Annotated[int, Field(description="That were copied.")] = 0
    tokens_in: Annotated[int, Field(description="Prompt tokens prefilled.")] = 0
    tokens_out: Annotated[int, Field(description="Tokens generated.")] = 0
    tokens_out_per_s: Annotated[float, Field(description="Tokens generated a second, lately.")] = (
        0.0
    )
    jobs: Annotated[tuple[JobProgress, ...], Field(description="Batches that are not over.")] = ()

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
