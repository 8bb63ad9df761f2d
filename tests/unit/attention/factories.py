"""A stage that drives a worker frame by frame, and a cache in plain lists to check it against."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry

from glinthawk.attention.frame import Frame
from glinthawk.attention.interface import WIRE_TYPES
from glinthawk.attention.numeric import from_float32, to_float32
from glinthawk.attention.selection import Preference, select_backend
from glinthawk.attention.worker import AttentionWorker
from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry
from glinthawk.core.ids import LaneId, SequenceId
from glinthawk.core.step import Fork, StepKind, StepPlan
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.composition import encode_step
from glinthawk.wire.failures import decode_failure
from glinthawk.wire.frames import FrameHeader, FrameKind
from glinthawk.wire.transport import Buffer, view_bytes

GEOMETRY = KVGeometry(
    num_layers=3,
    num_query_heads=4,
    num_kv_heads=2,
    head_dim=16,
    dtype=DType.FLOAT32,
    windows=(None, 20, None),
    page_tokens=16,
)
Q_COLUMNS = GEOMETRY.num_query_heads * GEOMETRY.head_dim
KV_COLUMNS = GEOMETRY.num_kv_heads * GEOMETRY.head_dim
EPOCH = 3
WORKER = "worker-0"

Answer = tuple[FrameHeader, bytes]
Floats = npt.NDArray[np.float32]


class Recorder:
    """Keeps what a worker answers."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def post(self, header: FrameHeader, *buffers: Buffer) -> None:
        self.answers.append((header, b"".join(bytes(view_bytes(item)) for item in buffers)))

    def take(self) -> list[Answer]:
        answers, self.answers = self.answers, []
        return answers


def make_worker(
    *,
    num_pages: int = 64,
    prefer: Preference = "reference",
    geometry: KVGeometry = GEOMETRY,
    begin: bool = True,
    metrics: ServiceMetrics | None = None,
) -> AttentionWorker:
    worker = AttentionWorker(
        WORKER,
        num_pages * geometry.page_bytes,
        lambda shape, pages: select_backend(shape, pages, 1, prefer=prefer),
        metrics or ServiceMetrics(CollectorRegistry()),
    )
    if begin:
        worker.begin(EPOCH, geometry)
    return worker


def make_plan(
    kind: StepKind,
    lane: int,
    step: int,
    rows: Sequence[tuple[int, int, int]] = (),
    *,
    releases: Sequence[int] = (),
    forks: Sequence[tuple[int, int, int]] = (),
    worker: str = WORKER,
) -> StepPlan:
    """rows: sequence, start, count of each; forks: parent, child, tokens."""
    counts = np.array([count for _, _, count in rows], np.uint32)
    return StepPlan(
        kind=kind,
        lane=LaneId(lane),
        step=step,
        worker=worker,
        sequences=np.array([sequence for sequence, _, _ in rows], np.uint64),
        starts=np.array([start for _, start, _ in rows], np.uint32),
        counts=counts,
        samples=np.ones(len(rows), np.bool_),
        tokens=np.zeros(int(counts.sum()), np.uint32),
        releases=tuple(SequenceId(item) for item in releases),
        forks=tuple(Fork(SequenceId(p), SequenceId(c), tokens) for p, c, tokens in forks),
    )


@cache
def token_row(sequence: int, position: int, layer: int) -> Floats:
    """Return [q | k | v] of a token, the same whenever it is asked for."""
    rng = np.random.default_rng((sequence, position, layer))
    return rng.standard_normal(Q_COLUMNS + 2 * KV_COLUMNS).astype(np.float32)


def token_rows(sequence: int, positions: Sequence[int], layer: int) -> Floats:
    """Return the rows of several tokens of a sequence."""
    return np.stack([token_row(sequence, position, layer) for position in positions])


def plan_rows(plan: StepPlan, layer: int, names: dict[int, int]) -> Floats:
    """Return [q | k | v] of all rows of a step; `names`: whose tokens a fork's first ones are."""
    parts = [
        token_rows(names.get(sequence, sequence), range(start, start + count), layer)
        for sequence, start, count in zip(
            plan.sequences.tolist(), plan.starts.tolist(), plan.counts.tolist(), strict=True
        )
    ]
    return np.concatenate(parts)


class Stage:
    """Builds the frames of steps and hands them to a worker."""

    def __init__(self, worker: AttentionWorker, *, dtype: DType = DType.FLOAT32) -> None:
        self.worker = worker
        self.dtype = dtype
        self.replies = Recorder()
        self.names: dict[int, int] = {}

    def frame(
        self, kind: FrameKind, plan: StepPlan, layer: int = 0, *, epoch: int = EPOCH
    ) -> Frame:
        payload, rows = b"", plan.num_rows
        if kind is FrameKind.COMPOSE:
            payload = encode_step(plan, include_tokens_and_registrations=False)
        elif kind is FrameKind.FETCH:
            rows = int(plan.starts.sum())
        else:
            columns = slice(Q_COLUMNS if kind is FrameKind.STORE else 0, None)
            values = plan_rows(plan, layer, self.names)[:, columns]
            payload = from_float32(values, WIRE_TYPES[self.dtype]).tobytes()
        header = FrameHeader(
            kind,
            epoch=epoch,
            lane=plan.lane,
            step=plan.step,
            layer=layer,
            rows=rows,
            dtype=self.dtype,
            payload_bytes=len(payload),
        )
        return Frame(header, memoryview(bytearray(payload)), self.replies)

    def send(
        self, kind: FrameKind, plan: StepPlan, layer: int = 0, *, epoch: int = EPOCH
    ) -> list[Answer]:
        """Send a frame and return what was answered since the last one."""
        self.worker.handle(self.frame(kind, plan, layer, epoch=epoch))
        return self.replies.take()

    def prefill(self, plan: StepPlan, layers: Sequence[int] | None = None) -> None:
        """Compose a prefill step and store its layers."""
        expect_composed(self.send(FrameKind.COMPOSE, plan))
        for layer in range(GEOMETRY.num_layers) if layers is None else layers:
            assert self.send(FrameKind.STORE, plan, layer) == []

    def decode(self, plan: StepPlan) -> list[Floats]:
        """Take a decode step through all layers and return each one's output rows."""
        expect_composed(self.send(FrameKind.COMPOSE, plan))
        return [self.attend(plan, layer) for layer in range(GEOMETRY.num_layers)]

    def attend(self, plan: StepPlan, layer: int) -> Floats:
        ((header, payload),) = self.send(FrameKind.ATTEND, plan, layer)
        assert (header.kind, header.layer) == (FrameKind.OUTPUT, layer), describe(payload)
        assert (header.lane, header.step, header.epoch) == (plan.lane, plan.step, EPOCH)
        assert (header.rows, header.dtype) == (plan.num_rows, self.dtype)
        return read_rows(payload, self.dtype, Q_COLUMNS)

    def fetch(self, plan: StepPlan, layer: int) -> Floats:
        ((header, payload),) = self.send(FrameKind.FETCH, plan, layer)
        assert (header.kind, header.layer) == (FrameKind.FETCHED, layer), describe(payload)
        assert header.rows == plan.starts.sum()
        return read_rows(payload, self.dtype, 2 * KV_COLUMNS)


def expect_composed(answers: list[Answer]) -> None:
    ((header, payload),) = answers
    assert header.kind is FrameKind.COMPOSED, describe(payload)


def expect_failed(answers: list[Answer], error: type[Exception], match: str) -> None:
    ((header, payload),) = answers
    assert header.kind is FrameKind.FAILED
    failure = decode_failure(payload)
    assert type(failure) is error
    assert match in str(failure)


def describe(payload: bytes) -> str:
    return repr(payload[:300])


def read_rows(payload: bytes, dtype: DType, columns: int) -> Floats:
    return to_float32(np.frombuffer(payload, WIRE_TYPES[dtype])).reshape(-1, columns)


def expected_kv(tokens: Sequence[tuple[int, int]], layer: int) -> Floats:
    """Return [k | v] of (sequence, position) tokens."""
    return np.concatenate([token_rows(s, [p], layer)[:, Q_COLUMNS:] for s, p in tokens])


def expected_output(tokens: Sequence[tuple[int, int]], layer: int) -> Floats:
    """Return attention of the last of (sequence, position) tokens over all of them."""
    window = GEOMETRY.windows[layer]
    if window is not None:
        tokens = tokens[-window:]
    sequence, position = tokens[-1]
    heads, kv_heads, size = 4, 2, GEOMETRY.head_dim
    kv: Any = expected_kv(tokens, layer).astype(np.float64)
    k = kv[:, :KV_COLUMNS].reshape(-1, kv_heads, size)
    v = kv[:, KV_COLUMNS:].reshape(-1, kv_heads, size)
    q = token_rows(sequence, [position], layer)[0, :Q_COLUMNS].reshape(heads, size)
    outputs = []
    for head in range(heads):
        own = head // (heads // kv_heads)
        scores = np.exp(k[:, own] @ q[head].astype(np.float64) / np.sqrt(size))
        outputs.append((scores / scores.sum()) @ v[:, own])
    return np.concatenate(outputs).astype(np.float32)
