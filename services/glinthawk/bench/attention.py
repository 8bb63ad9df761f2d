"""Decode attention against the read bandwidth of the machine, and against torch.

Each cell is a shape (context, batch, query heads per KV head, head size). All layers are walked
in order, as a step does, the append of the new token included; the working set is at least four
times the last-level cache. Bandwidth is read by the kernel's own loop with the same threads,
before and after each of the cell's passes, and a pass is compared with the two reads beside it,
so that both meet the same neighbours.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from glinthawk.attention.interface import WIRE_TYPES, AttentionBackend, Rows
from glinthawk.attention.kernel.backend import KernelBackend, read_bandwidth
from glinthawk.attention.numeric import from_float32
from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry

_CACHE_SIZE_FILE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
_DEFAULT_CACHE_BYTES = 32 << 20
_NUM_KV_HEADS = 8


@dataclass(frozen=True)
class AttentionBenchSettings:
    """What is measured. goal: least share of the read bandwidth; repeats: passes per cell;
    arena_bytes: most KV memory of a cell, more where the last-level cache is large; isa: None for
    the best that the CPU has."""

    num_threads: int = 2
    kv_dtype: str = "float16"
    contexts: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    batches: tuple[int, ...] = (8, 32, 64, 256)
    groups: tuple[int, ...] = (1, 2, 4)
    head_dims: tuple[int, ...] = (64, 128)
    repeats: int = 9
    arena_bytes: int = 3 << 30
    goal: float = 0.5
    seed: int = 0
    isa: str | None = None


def quick_settings(num_threads: int = 2) -> AttentionBenchSettings:
    """Return settings that take about a minute, more where the last-level cache is large."""
    return AttentionBenchSettings(
        num_threads=num_threads,
        contexts=(512, 2048, 8192),
        batches=(8, 64),
        groups=(1, 4),
        head_dims=(64, 128),
        repeats=5,
        arena_bytes=1 << 30,
    )


@dataclass(frozen=True)
class Cell:
    """One shape, with the layers that make its working set large enough."""

    geometry: KVGeometry
    context: int
    batch: int

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V that a pass over all layers reads."""
        return self.context * self.batch * self.geometry.token_bytes


def run_attention_bench(settings: AttentionBenchSettings) -> dict[str, Any]:
    """Measure every cell; return environment, settings, samples and goals as plain data.

    Raises:
        ImportError: the kernel is not built.
    """
    cache_bytes = last_level_cache_bytes()
    samples = [_measure(cell, settings, cache_bytes) for cell in build_cells(settings, cache_bytes)]
    worst = min(samples, key=lambda sample: sample["share_of_bandwidth"])
    value = worst["share_of_bandwidth"]
    name = "decode attention, KV bytes per second / read bandwidth, worst cell"
    return {
        "benchmark": "attention",
        "environment": _environment(settings, cache_bytes),
        "settings": asdict(settings),
        "samples": samples,
        "goals": [
            {"name": name, "value": value, "goal": settings.goal, "holds": value >= settings.goal}
        ],
    }


def last_level_cache_bytes() -> int:
    """Return the size of the third-level cache, 32 MiB where the system does not say."""
    try:
        text = _CACHE_SIZE_FILE.read_text().strip()
    except OSError:
        return _DEFAULT_CACHE_BYTES
    return int(text.removesuffix("K")) << 10 if text.endswith("K") else _DEFAULT_CACHE_BYTES


def _environment(settings: AttentionBenchSettings, cache_bytes: int) -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "last_level_cache_bytes": cache_bytes,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def build_cells(settings: AttentionBenchSettings, cache_bytes: int) -> Iterator[Cell]:
    """Yield a cell of every shape that fits the arena, KV heads halved where eight do not."""
    dtype = DType.parse(settings.kv_dtype)
    # Four caches, and the rest of the layer that makes them full.
    arena_bytes = max(settings.arena_bytes, 5 * cache_bytes)
    shapes = (
        (head_dim, group, context, batch)
        for head_dim in settings.head_dims
        for group in settings.groups
        for context in settings.contexts
        for batch in settings.batches
    )
    for head_dim, group, context, batch in shapes:
        kv_heads = _NUM_KV_HEADS
        layer_bytes = 2 * kv_heads * head_dim * dtype.itemsize * context * batch
        while kv_heads > 1 and 2 * layer_bytes > arena_bytes:
            kv_heads, layer_bytes = kv_heads // 2, layer_bytes // 2
        num_layers = max(2, -(-4 * cache_bytes // layer_bytes))
        if num_layers * layer_bytes > arena_bytes:
            continue
        windows = (None,) * num_layers
        geometry = KVGeometry(num_layers, group * kv_heads, kv_heads, head_dim, dtype, windows)
        yield Cell(geometry, context, batch)


def _measure(cell: Cell, settings: AttentionBenchSettings, cache_bytes: int) -> dict[str, Any]:
    g = cell.geometry
    step = _build_step(cell, settings)
    step()  # warm-up

    def read() -> float:
        return read_bandwidth(4 * cache_bytes, settings.num_threads, repeats=1, isa=settings.isa)

    seconds, bandwidths, before = [], [], read()
    for _ in range(settings.repeats):
        seconds.append(_time(step))
        after = read()
        bandwidths.append(statistics.mean((before, after)))
        before = after
    del step
    return {
        "context": cell.context,
        "batch": cell.batch,
        "query_heads_per_kv_head": g.num_query_heads // g.num_kv_heads,
        "kv_heads": g.num_kv_heads,
        "head_dim": g.head_dim,
        "layers": g.num_layers,
        "kv_bytes": cell.kv_bytes,
        "seconds": seconds,
        "p95_seconds": float(np.percentile(seconds, 95)),
        "bytes_per_second": cell.kv_bytes / statistics.median(seconds),
        "read_bytes_per_second": statistics.median(bandwidths),
        "share_of_bandwidth": statistics.median(
            cell.kv_bytes / taken / bandwidth
            for taken, bandwidth in zip(seconds, bandwidths, strict=True)
        ),
        "torch_bytes_per_second": _measure_torch(cell, settings),
    }


def _time(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _build_step(cell: Cell, settings: AttentionBenchSettings) -> Callable[[], None]:
    """Fill an arena; return one step over all its layers."""
    g = cell.geometry
    rng = np.random.default_rng(settings.seed)
    pages = g.num_pages(cell.context)
    backend = KernelBackend(g, pages * cell.batch, settings.num_threads, isa=settings.isa)
    tables = np.arange(pages * cell.batch, dtype=np.int32).reshape(cell.batch, pages)
    _fill(backend, cell, rng)
    query_columns, columns = g.num_query_heads * g.head_dim, g.num_kv_heads * g.head_dim
    rows = _random_rows(rng, cell.batch, query_columns + 2 * columns, g.dtype)
    q, k, v = np.split(rows, [query_columns, query_columns + columns], axis=1)
    out = np.empty((cell.batch, query_columns), rows.dtype)
    lengths = np.full(cell.batch, cell.context, np.int32)

    def step() -> None:
        plan = backend.plan(list(tables), lengths)
        for layer in range(g.num_layers):
            backend.decode(layer, plan, q, k, v, out)

    return step


def _fill(backend: AttentionBackend, cell: Cell, rng: np.random.Generator) -> None:
    g = cell.geometry
    columns = g.num_kv_heads * g.head_dim
    rows = _random_rows(rng, cell.context, 2 * columns, g.dtype)
    token = np.arange(cell.context, dtype=np.int32)
    page, slot = token // np.int32(g.page_tokens), token % np.int32(g.page_tokens)
    for layer in range(g.num_layers):
        for sequence in range(cell.batch):
            own = page + np.int32(sequence * g.num_pages(cell.context))
            backend.append(layer, own, slot, rows[:, :columns], rows[:, columns:])


def _random_rows(rng: np.random.Generator, rows: int, columns: int, dtype: DType) -> Rows:
    return from_float32(rng.standard_normal((rows, columns), np.float32), WIRE_TYPES[dtype])


def _measure_torch(cell: Cell, settings: AttentionBenchSettings) -> float | None:
    """Bytes per second of the faster of two ways to call torch, None where it is absent."""
    if find_spec("torch") is None:
        return None
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    g = cell.geometry
    torch.set_num_threads(settings.num_threads)
    dtype = getattr(torch, settings.kv_dtype)
    shape = (cell.batch, g.num_kv_heads, cell.context, g.head_dim)
    layers = max(1, min(g.num_layers, (256 << 20) * g.num_layers // cell.kv_bytes))
    k, v = torch.zeros((layers, *shape), dtype=dtype), torch.zeros((layers, *shape), dtype=dtype)
    heads = (cell.batch, g.num_query_heads, 1, g.head_dim)
    one_by_one = torch.zeros(heads, dtype=dtype)
    grouped = one_by_one.view(cell.batch, g.num_kv_heads, -1, g.head_dim)

    def as_rows() -> None:
        for layer in range(layers):
            attend(grouped, k[layer], v[layer])

    def as_heads() -> None:
        for layer in range(layers):
            attend(one_by_one, k[layer], v[layer], enable_gqa=True)

    with torch.inference_mode():
        seconds = min(_time(way) for way in (as_rows, as_heads))
    return cell.kv_bytes * layers / g.num_layers / seconds
