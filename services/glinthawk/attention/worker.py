"""The core of an attention worker: what each frame of a stage does to pages and rows.

    COMPOSE   make room for a step, all or nothing        -> COMPOSED
    ATTEND    write one row of K and V a sequence, attend -> OUTPUT
    STORE     write the K and V of a prompt's rows
    FETCH     read the K and V before a prompt's chunk    -> FETCHED
    IMPORT    write a page that another worker sends      -> IMPORTED, after the last
    anything that cannot be done                          -> FAILED

One thread owns a worker. It knows no sockets: frames come with something to answer on. Frames
of one connection come in order; those of several in any. What needs K and V that another
stage has sent already and that are still on their way (a fork of a page that fills) waits for
them.
"""

import time
from collections.abc import Callable
from enum import Enum

import numpy as np
import numpy.typing as npt

from glinthawk.attention.cache import KVCache
from glinthawk.attention.frame import Frame, WorkerStats
from glinthawk.attention.interface import AttentionBackend
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.ids import SequenceId
from glinthawk.errors import CapacityExceeded, GlinthawkError, InvalidRequest, StateLost
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.composition import decode_step
from glinthawk.wire.failures import encode_failure
from glinthawk.wire.frames import EpochFence, FrameHeader, FrameKind
from glinthawk.wire.transport import Buffer

log = get_logger("attention.worker")

BuildBackend = Callable[[KVGeometry, int], AttentionBackend]
"""Makes a backend with an arena of so many pages."""


class _Outcome(Enum):
    """What became of a frame. COMPLETED_STEP: it may let frames go on that waited."""

    DONE = 1
    COMPLETED_STEP = 2
    MUST_WAIT = 3


class AttentionWorker:
    """Serves frames, one at a time.

    Args:
        name: as the gateway knows this worker.
        kv_memory: bytes for KV pages.
        build_backend: called when the shape of the pages is known.
        metrics: of the process.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        name: str,
        kv_memory: int,
        build_backend: BuildBackend,
        metrics: ServiceMetrics,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._name = name
        self._kv_memory = kv_memory
        self._build_backend = build_backend
        self._metrics = metrics
        self._clock = clock
        self._cache: KVCache | None = None
        self._fence = EpochFence()
        self._early: list[Frame] = []
        self._held: list[Frame] = []
        self._num_dropped = 0
        self._busy_s = 0.0

    # --- what the gateway says

    def begin(self, epoch: int, geometry: KVGeometry) -> None:
        """Serve frames of `epoch` from now on; forget what an earlier one left.

        The same epoch and geometry again change nothing.

        Raises:
            CapacityExceeded: not one page fits into the memory, or the arena is not to be had.
            InvalidRequest: the geometry is none that the backend supports.
        """
        cache = self._cache
        if cache is not None and (epoch, geometry) == (self._fence.highest, cache.geometry):
            return
        backend = cache.backend if cache is not None and cache.geometry == geometry else None
        self._drop_state()
        if backend is None:
            # The former arena is given back before the next one is taken.
            cache = None
            backend = self._build_arena(geometry)
        self._cache = KVCache(backend)
        self._fence = EpochFence()
        self._fence.highest = epoch
        self._metrics.kv_capacity_bytes.set(self._cache.capacity_bytes)
        self._metrics.kv_used_bytes.set(0)
        log.info(
            "arena_ready",
            epoch=epoch,
            backend=backend.name,
            pages=backend.num_pages,
            page_bytes=geometry.page_bytes,
            kv_dtype=geometry.dtype.label,
        )
        early, self._early = self._early, []
        for frame in early:
            self.handle(frame)

    def forget(self) -> None:
        """Forget everything; frames wait until the next epoch begins."""
        self._drop_state()
        early, self._early = self._early, []
        for frame in early:
            self._drop(frame)
        self._metrics.kv_used_bytes.set(0)
        self._metrics.kv_capacity_bytes.set(0)

    def stats(self) -> WorkerStats:
        """Return figures; may be called from any thread."""
        cache = self._cache
        if cache is None:
            return WorkerStats(0, 0, self._busy_s, self._num_dropped)
        return WorkerStats(cache.used_bytes, cache.capacity_bytes, self._busy_s, self._num_dropped)

    @property
    def cache(self) -> KVCache | None:
        """The cache of the present epoch, for inspection by the thread that owns the worker."""
        return self._cache

    def export_page(
        self, epoch: int, sequence: SequenceId, num_tokens: int, index: int
    ) -> npt.NDArray[np.uint8] | None:
        """Return a page for another worker; see `KVCache.export_page`.

        Raises:
            StateLost: this worker is not in `epoch`, or does not hold the tokens.
        """
        if self._cache is None or epoch != self._fence.highest:
            raise StateLost(
                f"worker {self._name!r} is in epoch {self._fence.highest}, pages of epoch {epoch} "
                "are wanted: it has begun anew"
            )
        started = self._clock()
        content = self._cache.export_page(sequence, num_tokens, index)
        self._busy_s += self._clock() - started
        return content

    # --- what stages and other workers send

    def handle(self, frame: Frame) -> None:
        """Do what a frame asks for, and answer it; a bad frame is answered with FAILED."""
        if self._cache is None or frame.header.epoch > self._fence.highest:
            self._early.append(frame)
        elif not self._fence.admits(frame.header):
            self._drop(frame)
        elif self._must_wait(frame.header):
            self._held.append(frame)
        else:
            self._serve(self._cache, frame)

    def _must_wait(self, header: FrameHeader) -> bool:
        """Tell whether a frame comes after one that waits: compositions keep their order."""
        if not self._held:
            return False
        key = (header.lane, header.step)
        return header.kind is FrameKind.COMPOSE or any(
            (held.header.lane, held.header.step) == key for held in self._held
        )

    def _serve(self, cache: KVCache, frame: Frame) -> None:
        started = self._clock()
        outcome = _Outcome.DONE
        try:
            outcome = self._perform(cache, frame)
        except GlinthawkError as error:
            self._refuse(frame, error)
        except ValueError as error:
            # What the backend's own checks find, in arguments that came off the wire.
            self._refuse(frame, InvalidRequest(f"{frame.header.kind.name}: {error}"))
        elapsed = self._clock() - started
        self._busy_s += elapsed
        self._metrics.attention_busy_seconds.inc(elapsed)
        if outcome is _Outcome.MUST_WAIT:
            self._held.append(frame)
            return
        frame.finish()
        if outcome is _Outcome.COMPLETED_STEP and self._held:
            held, self._held = self._held, []
            for waiting in held:
                self.handle(waiting)

    def _perform(self, cache: KVCache, frame: Frame) -> _Outcome:
        header = frame.header
        if header.kind is FrameKind.COMPOSE:
            return self._compose(cache, frame)
        if header.kind is FrameKind.STORE:
            is_complete = cache.store(header, frame.payload)
            return _Outcome.COMPLETED_STEP if is_complete else _Outcome.DONE
        if header.kind is FrameKind.ATTEND:
            started = self._clock()
            output = cache.attend(header, frame.payload)
            self._metrics.attention_seconds.observe(self._clock() - started)
            self._answer(frame, FrameKind.OUTPUT, output)
            self._metrics.batch_rows.observe(header.rows)
            return _Outcome.DONE
        if header.kind is FrameKind.FETCH:
            self._answer(frame, FrameKind.FETCHED, cache.fetch(header, frame.payload))
            return _Outcome.DONE
        if header.kind is FrameKind.IMPORT:
            if cache.import_page(header, frame.payload):
                self._answer(frame, FrameKind.IMPORTED)
            self._metrics.kv_used_bytes.set(cache.used_bytes)
            return _Outcome.DONE
        raise InvalidRequest(f"an attention worker takes no {header.kind.name} frames")

    def _compose(self, cache: KVCache, frame: Frame) -> _Outcome:
        plan, _ = decode_step(frame.payload, frame.header)
        if plan.worker != self._name:
            raise InvalidRequest(
                f"step {plan.step} of lane {plan.lane} is for worker {plan.worker!r}, this is "
                f"{self._name!r}"
            )
        if cache.must_wait(plan):
            return _Outcome.MUST_WAIT
        cache.compose(plan)
        self._metrics.kv_used_bytes.set(cache.used_bytes)
        self._answer(frame, FrameKind.COMPOSED)
        return _Outcome.DONE

    # --- answers

    def _answer(self, frame: Frame, kind: FrameKind, *buffers: Buffer) -> None:
        header = frame.header
        answer = FrameHeader(
            kind,
            epoch=header.epoch,
            lane=header.lane,
            step=header.step,
            layer=header.layer,
            rows=header.rows,
            dtype=header.dtype,
        )
        frame.replies.post(answer, *buffers)

    def _refuse(self, frame: Frame, error: GlinthawkError) -> None:
        header = frame.header
        log.warning(
            "frame_refused",
            kind=header.kind.name,
            lane=header.lane,
            step=header.step,
            layer=header.layer,
            reason=str(error),
        )
        if header.kind is not FrameKind.FAILED:
            self._answer(frame, FrameKind.FAILED, encode_failure(error))

    # --- state

    def _drop(self, frame: Frame) -> None:
        self._num_dropped += 1
        self._metrics.dropped_frames.inc()
        frame.finish()

    def _drop_state(self) -> None:
        self._cache = None
        held, self._held = self._held, []
        for frame in held:
            self._drop(frame)

    def _build_arena(self, geometry: KVGeometry) -> AttentionBackend:
        num_pages = geometry.pages_in(self._kv_memory)
        if num_pages < 1:
            raise CapacityExceeded(
                f"the KV memory of {self._kv_memory} bytes does not hold one page of "
                f"{geometry.page_bytes} bytes: raise --kv-memory"
            )
        try:
            return self._build_backend(geometry, num_pages)
        except MemoryError as error:
            raise CapacityExceeded(
                f"this machine has no {num_pages * geometry.page_bytes} bytes for KV pages: "
                "lower --kv-memory"
            ) from error
        except ValueError as error:
            raise InvalidRequest(f"this worker cannot serve the model: {error}") from error
