"""One suite over every attention backend, against attention in float64.

The compiled backends run every instruction set that this CPU has; `portable16` is the width of
AVX-512 on emulated vectors, so that its algorithm is checked everywhere.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from glinthawk.attention.interface import WIRE_TYPES, AttentionBackend, Rows
from glinthawk.attention.merge import merge_partials
from glinthawk.attention.numeric import from_float32, to_float32
from glinthawk.attention.reference import ReferenceBackend
from glinthawk.core.dtype import DType
from glinthawk.core.geometry import KVGeometry

KERNELS = ("avx512", "avx2", "portable", "portable16")
TOLERANCE = {DType.FLOAT32: 3e-6, DType.FLOAT16: 2e-3, DType.BFLOAT16: 1.6e-2}

Float64s = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]
Make = Callable[..., AttentionBackend]


@pytest.fixture(params=("reference", *KERNELS))
def make(request: pytest.FixtureRequest) -> Make:
    """A constructor (geometry, num_pages, num_threads) of one backend."""
    name: str = request.param
    if name == "reference":
        return ReferenceBackend
    if find_spec("glinthawk.attention.kernel._kernel") is None:
        pytest.skip("the kernel is not built")
    from glinthawk.attention.kernel.backend import KernelBackend, supported_isas

    if name not in supported_isas():
        pytest.skip(f"this CPU or build has no {name}")

    def build(geometry: KVGeometry, num_pages: int, num_threads: int = 1) -> AttentionBackend:
        return KernelBackend(geometry, num_pages, num_threads, isa=name)

    return build


def build_geometry(
    group: int = 2,
    head_dim: int = 64,
    dtype: DType = DType.FLOAT32,
    *,
    kv_heads: int = 2,
    windows: tuple[int | None, ...] = (None,),
    page_tokens: int = 32,
) -> KVGeometry:
    return KVGeometry(
        len(windows), group * kv_heads, kv_heads, head_dim, dtype, windows, page_tokens
    )


@dataclass
class Scene:
    """A filled backend, with what was written, as float64 after the cache's rounding."""

    backend: AttentionBackend
    tables: list[Int32s]
    lengths: Int32s
    k: list[Float64s]  # of each sequence [tokens, KV heads, head_dim], layer 0
    v: list[Float64s]
    q: Rows

    def expected(
        self, row: int, start: int = 0, position: int | None = None
    ) -> tuple[Float64s, Float64s]:
        """Output [heads * head_dim] and lse [heads] of one row."""
        g = self.backend.geometry
        stop = int(self.lengths[row])
        window = g.windows[0]
        if window is not None:
            start = max(start, (stop - 1 if position is None else position) - window + 1)
        if start >= stop:
            return np.zeros(g.num_query_heads * g.head_dim), np.full(g.num_query_heads, -np.inf)
        q = to_float32(self.q[row]).astype(np.float64).reshape(g.num_query_heads, g.head_dim)
        group = g.num_query_heads // g.num_kv_heads
        keys = np.repeat(self.k[row][start:stop], group, axis=1)
        values = np.repeat(self.v[row][start:stop], group, axis=1)
        scores = np.einsum("hd,thd->ht", q, keys) / np.sqrt(g.head_dim)
        top = scores.max(axis=1, keepdims=True)
        weights = np.exp(scores - top)
        total = weights.sum(axis=1, keepdims=True)
        out = np.einsum("ht,thd->hd", weights / total, values)
        return out.reshape(-1), (top + np.log(total)).reshape(-1)


def build_scene(
    make: Make,
    geometry: KVGeometry,
    lengths: tuple[int, ...] = (1, 31, 32, 33, 70),
    *,
    wire: DType = DType.FLOAT32,
    num_threads: int = 1,
    seed: int = 0,
) -> Scene:
    """Fill scattered pages with random rows, as slices of interleaved [q | k | v] rows."""
    rng = np.random.default_rng(seed)
    counts = [geometry.num_pages(length) for length in lengths]
    num_pages = sum(counts) + 3
    backend = make(geometry, num_pages, num_threads)
    order = rng.permutation(num_pages)[: sum(counts)].astype(np.int32)
    tables = np.split(order, np.cumsum(counts)[:-1])
    query_columns = geometry.num_query_heads * geometry.head_dim
    columns = geometry.num_kv_heads * geometry.head_dim
    all_k, all_v = [], []
    for length, table in zip(lengths, tables, strict=True):
        values = rng.standard_normal((length, query_columns + 2 * columns), np.float32)
        rows = from_float32(values, WIRE_TYPES[wire])
        k, v = rows[:, query_columns : query_columns + columns], rows[:, query_columns + columns :]
        token = np.arange(length, dtype=np.int32)
        pages = table[token // geometry.page_tokens]
        backend.append(0, pages, token % np.int32(geometry.page_tokens), k, v)
        all_k.append(stored(k, geometry))
        all_v.append(stored(v, geometry))
    values = rng.standard_normal((len(lengths), query_columns + 2 * columns), np.float32)
    q = from_float32(values, WIRE_TYPES[wire])[:, :query_columns]
    return Scene(backend, tables, np.array(lengths, np.int32), all_k, all_v, q)


def stored(rows: Rows, geometry: KVGeometry) -> Float64s:
    """What the cache holds of rows: rounded to its format."""
    rounded = to_float32(from_float32(to_float32(rows), WIRE_TYPES[geometry.dtype]))
    return rounded.astype(np.float64).reshape(len(rows), geometry.num_kv_heads, -1)


def output_like(q: Rows) -> Rows:
    return np.full((q.shape[0], q.shape[1]), 7, q.dtype)


def assert_attends(scene: Scene, tolerance: float) -> None:
    out = output_like(scene.q)
    lse = np.zeros((len(out), scene.backend.geometry.num_query_heads), np.float32)
    plan = scene.backend.plan(scene.tables, scene.lengths)
    scene.backend.attend(0, plan, scene.q, out, lse)
    for row in range(len(out)):
        want, want_lse = scene.expected(row)
        np.testing.assert_allclose(to_float32(out[row]), want, rtol=0, atol=tolerance)
        np.testing.assert_allclose(lse[row], want_lse, rtol=0, atol=1e-5)


@pytest.mark.parametrize("group", range(1, 17))
def test_every_number_of_query_heads_per_kv_head_matches_float64(make: Make, group: int) -> None:
    assert_attends(build_scene(make, build_geometry(group, 32)), 3e-6)


@pytest.mark.parametrize("head_dim", range(8, 257, 8))
def test_every_head_size_matches_float64(make: Make, head_dim: int) -> None:
    geometry = build_geometry(3, head_dim, DType.FLOAT16)
    assert_attends(build_scene(make, geometry, (1, 45)), 3e-6)


@pytest.mark.parametrize("wire", list(DType))
@pytest.mark.parametrize("dtype", list(DType))
@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (4, 40), (8, 128)])
def test_every_pair_of_wire_and_cache_format_matches_float64(
    make: Make, wire: DType, dtype: DType, group: int, head_dim: int
) -> None:
    scene = build_scene(make, build_geometry(group, head_dim, dtype), wire=wire)
    assert_attends(scene, TOLERANCE[wire])


@pytest.mark.parametrize("page_tokens", [16, 32, 64, 128, 256, 512])
def test_every_page_size_matches_float64(make: Make, page_tokens: int) -> None:
    geometry = build_geometry(5, 24, DType.BFLOAT16, page_tokens=page_tokens)
    assert_attends(build_scene(make, geometry, (3, 513, 1100)), 3e-6)


@pytest.mark.parametrize("window", [1, 7, 32, 33, 600, 5000])
def test_a_sliding_window_cuts_what_a_row_sees(make: Make, window: int) -> None:
    geometry = build_geometry(2, 32, windows=(window,))
    assert_attends(build_scene(make, geometry, (1, 40, 512, 513, 1300)), 3e-6)


def test_layers_with_different_windows_share_a_plan(make: Make) -> None:
    geometry = build_geometry(1, 16, windows=(None, 4))
    scene = build_scene(make, geometry, (50,))
    backend = scene.backend
    token = np.arange(50, dtype=np.int32)
    k, v = (x[0].reshape(50, -1).astype(np.float32) for x in (scene.k, scene.v))
    backend.append(1, scene.tables[0][token // 32], token % np.int32(32), k, v)
    plan = backend.plan(scene.tables, scene.lengths)
    out = output_like(scene.q)
    backend.attend(1, plan, scene.q, out)
    np.testing.assert_allclose(out[0], scene.expected(0, start=46)[0], atol=3e-6)


def test_large_scores_do_not_overflow(make: Make) -> None:
    scene = build_scene(make, build_geometry(2, 64), (700,))
    scene = replace(scene, q=scene.q * np.float32(300))
    out = output_like(scene.q)
    backend = scene.backend
    backend.attend(0, backend.plan(scene.tables, scene.lengths), scene.q, out)
    np.testing.assert_allclose(out[0], scene.expected(0)[0], rtol=0, atol=2e-3)


@pytest.mark.parametrize("rise", [0.01, 0.1, 0.5, 40.0])  # of a score from token to token
def test_scores_that_rise_or_fall_with_the_position_match_float64(make: Make, rise: float) -> None:
    n = 1300
    token = np.arange(n, dtype=np.int32)
    for direction in (1, -1):
        scene = build_scene(make, build_geometry(2, 64), (n,))
        k = np.zeros((n, 2, 64), np.float32)
        k[:, :, 0] = token[:, None] * np.float32(direction * rise * 8)  # 8: sqrt(head_dim)
        page, slot = scene.tables[0][token // 32], token % np.int32(32)
        v = scene.v[0].reshape(n, -1).astype(np.float32)
        scene.backend.append(0, page, slot, k.reshape(n, -1), v)
        q = np.zeros_like(scene.q)
        q[:, ::64] = 1
        scene = replace(scene, q=q, k=[k.astype(np.float64)])
        out, lse = output_like(q), np.zeros((1, 4), np.float32)
        plan = scene.backend.plan(scene.tables, scene.lengths)
        scene.backend.attend(0, plan, q, out, lse)
        want, want_lse = scene.expected(0)
        # Scores of up to 650 (and far more, but far apart) are exact to 6e-5 in float32.
        np.testing.assert_allclose(out[0], want, rtol=0, atol=1e-4)
        np.testing.assert_allclose(lse[0], want_lse, rtol=1e-6, atol=1e-5)


def test_a_nan_in_the_cache_reaches_the_output(make: Make) -> None:
    scene = build_scene(make, build_geometry(2, 64), (70, 70))
    bad = np.full((1, 2 * 64), np.nan, np.float32)
    page, slot = scene.tables[0][1:2], np.array([3], np.int32)
    scene.backend.append(0, page, slot, bad, np.zeros_like(bad))
    out = output_like(scene.q)
    scene.backend.attend(0, scene.backend.plan(scene.tables, scene.lengths), scene.q, out)
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()


def test_stale_slots_behind_the_last_token_are_not_seen(make: Make) -> None:
    scene = build_scene(make, build_geometry(2, 64), (70,))
    bad = np.full((26, 2 * 64), np.nan, np.float32)
    slots = np.arange(6, 32, dtype=np.int32)
    scene.backend.append(0, np.full(26, scene.tables[0][2], np.int32), slots, bad, bad)
    assert_attends(scene, 3e-6)


@pytest.mark.parametrize("window", [None, 300])
def test_partial_results_merge_to_the_whole(make: Make, window: int | None) -> None:
    geometry = build_geometry(3, 40, DType.FLOAT16, windows=(window,))
    scene = build_scene(make, geometry, (1500, 90, 40))
    backend, n = scene.backend, len(scene.lengths)
    cuts = np.array([[0, 0, 0], [600, 33, 40], [1300, 64, 40], [1500, 90, 40]], np.int32)
    outs, lses = [], []
    for start, stop in pairwise(cuts):
        plan = backend.plan(scene.tables, stop, starts=start, positions=scene.lengths - 1)
        out = np.empty((n, scene.q.shape[1]), np.float32)
        lse = np.empty((n, geometry.num_query_heads), np.float32)
        backend.attend(0, plan, scene.q, out, lse)
        outs.append(out.reshape(n, geometry.num_query_heads, -1))
        lses.append(lse)
    merged, merged_lse = merge_partials(np.stack(outs), np.stack(lses))
    for row in range(n):
        want, want_lse = scene.expected(row)
        np.testing.assert_allclose(merged[row].reshape(-1), want, rtol=0, atol=3e-6)
        np.testing.assert_allclose(merged_lse[row], want_lse, rtol=0, atol=1e-5)


def test_an_empty_range_gives_zero_and_minus_infinity(make: Make) -> None:
    scene = build_scene(make, build_geometry(2, 32), (40, 40))
    plan = scene.backend.plan(scene.tables, scene.lengths, starts=np.array([40, 0], np.int32))
    out = output_like(scene.q)
    lse = np.zeros((2, 4), np.float32)
    scene.backend.attend(0, plan, scene.q, out, lse)
    assert (out[0] == 0).all()
    assert np.isneginf(lse[0]).all()
    assert np.isfinite(lse[1]).all()


def test_an_empty_batch_is_allowed(make: Make) -> None:
    backend = make(build_geometry(2, 32), 4)
    plan = backend.plan([], np.empty(0, np.int32))
    rows = np.empty((0, 4 * 32), np.float32)
    backend.attend(0, plan, rows, rows)
    assert plan.num_rows == 0


@pytest.mark.parametrize("dtype", list(DType))
@pytest.mark.parametrize("kv_heads", [2, 5])  # of which a thread takes any number together
def test_results_are_the_same_bits_at_any_number_of_threads_and_in_any_batch(
    make: Make, kv_heads: int, dtype: DType
) -> None:
    geometry = build_geometry(4, 64, dtype, kv_heads=kv_heads)
    lengths = (1, 700, 2100, 64, 1537)
    outs = []
    for num_threads in (1, 2, 3):
        scene = build_scene(make, geometry, lengths, num_threads=num_threads)
        out = output_like(scene.q)
        scene.backend.attend(0, scene.backend.plan(scene.tables, scene.lengths), scene.q, out)
        outs.append(out)
    alone = output_like(scene.q[2:3])
    plan = scene.backend.plan(scene.tables[2:3], scene.lengths[2:3])
    scene.backend.attend(0, plan, scene.q[2:3], alone)
    assert (outs[0] == outs[1]).all()
    assert (outs[0] == outs[2]).all()
    assert (outs[0][2] == alone[0]).all()


@pytest.mark.parametrize("wire", list(DType))
@pytest.mark.parametrize(("kv_heads", "num_threads"), [(2, 1), (2, 2), (5, 3)])
def test_decode_is_append_then_attend(
    make: Make, wire: DType, kv_heads: int, num_threads: int
) -> None:
    geometry = build_geometry(3, 48, DType.FLOAT16, kv_heads=kv_heads)
    lengths = (1, 33, 512, 513, 1030)
    apart = build_scene(make, geometry, lengths, wire=wire, num_threads=num_threads)
    fused = build_scene(make, geometry, lengths, wire=wire, num_threads=num_threads)
    rng = np.random.default_rng(1)
    columns = kv_heads * 48
    values = rng.standard_normal((5, 6 * columns), np.float32)
    rows = from_float32(values, WIRE_TYPES[wire])
    k, v = rows[:, 3 * columns : 4 * columns], rows[:, 4 * columns : 5 * columns]
    last = apart.lengths - 1
    pages = np.array([t[n // 32] for t, n in zip(apart.tables, last, strict=True)], np.int32)
    apart.backend.append(0, pages, last % np.int32(32), k, v)
    out, out_fused = output_like(apart.q), output_like(apart.q)
    apart.backend.attend(0, apart.backend.plan(apart.tables, apart.lengths), apart.q, out)
    plan = fused.backend.plan(fused.tables, fused.lengths)
    fused.backend.decode(0, plan, fused.q, k, v, out_fused)
    fused.backend.decode(0, plan, fused.q, k, v, out_fused)  # again: idempotent
    assert (out.view(np.uint8) == out_fused.view(np.uint8)).all()


@pytest.mark.parametrize("wire", list(DType))
@pytest.mark.parametrize("dtype", list(DType))
def test_read_returns_what_was_appended(make: Make, wire: DType, dtype: DType) -> None:
    geometry = build_geometry(2, 40, dtype)
    scene = build_scene(make, geometry, (100,))
    rows = np.zeros((57, 2 * 2 * 40), WIRE_TYPES[wire])
    k, v = rows[:, :80], rows[:, 80:]
    scene.backend.read(0, scene.tables[0], 31, 88, k, v)
    for got, kept in ((k, scene.k[0]), (v, scene.v[0])):
        want = from_float32(kept[31:88].astype(np.float32).reshape(57, 80), WIRE_TYPES[wire])
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_rounding_is_to_nearest_even_for_every_kind_of_value(make: Make, dtype: DType) -> None:
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 2**32, 6 * 1024, np.uint64).astype(np.uint32)
    special = [0, 0x80000000, 0x7F800000, 0xFF800000, 0x477FF000, 0x477FEFFF, 0x33000000]
    special += [0x33000001, 0x38800000, 0x387FF000, 0x7F7FFFFF, 0x3F808000, 0x3F818000]
    bits[: len(special)] = special
    values = bits.view(np.float32)
    values = values[np.isfinite(values) | np.isinf(values)]
    values = values[: len(values) // 64 * 64].reshape(-1, 64)
    backend = make(build_geometry(1, 64, dtype, kv_heads=1), 4)
    n = len(values)
    token = np.arange(n, dtype=np.int32)
    backend.append(0, token // np.int32(32), token % np.int32(32), values, values)
    k, v = (np.empty(values.shape, WIRE_TYPES[dtype]) for _ in range(2))
    backend.read(0, np.arange(4, dtype=np.int32), 0, n, k, v)
    want = from_float32(values, WIRE_TYPES[dtype])
    np.testing.assert_array_equal(k.view(np.uint16), want.view(np.uint16))
    np.testing.assert_array_equal(v.view(np.uint16), want.view(np.uint16))


def test_rows_in_any_order_land_in_their_slots(make: Make) -> None:
    backend = make(build_geometry(1, 16), 4)
    rng = np.random.default_rng(3)
    where = rng.permutation(128).astype(np.int32)
    values = rng.standard_normal((128, 32), np.float32)
    backend.append(0, where // np.int32(32), where % np.int32(32), values, -values)
    k, v = np.empty_like(values), np.empty_like(values)
    backend.read(0, np.arange(4, dtype=np.int32), 0, 128, k, v)
    np.testing.assert_array_equal(k[where], values)
    np.testing.assert_array_equal(v[where], -values)


def test_a_copied_page_equals_its_source_in_every_layer(make: Make) -> None:
    backend = make(build_geometry(1, 16, DType.FLOAT16, windows=(None, None)), 3)
    rng = np.random.default_rng(4)
    slots = np.arange(32, dtype=np.int32)
    for layer in range(2):
        rows = rng.standard_normal((32, 32), np.float32)
        backend.append(layer, np.zeros(32, np.int32), slots, rows, rows + 1)
    backend.copy_page(0, 2)
    assert (backend.export_page(0) == backend.export_page(2)).all()
    assert backend.export_page(0).size == backend.geometry.page_bytes


def test_an_exported_page_imports_into_any_backend(make: Make) -> None:
    scene = build_scene(make, build_geometry(2, 40, DType.BFLOAT16), (64,))
    other = ReferenceBackend(scene.backend.geometry, 2)
    for index, page in enumerate(scene.tables[0]):
        other.import_page(index, scene.backend.export_page(int(page)))
    out, want = output_like(scene.q), output_like(scene.q)
    scene.backend.attend(0, scene.backend.plan(scene.tables, scene.lengths), scene.q, want)
    table = [np.array([0, 1], np.int32)]
    other.attend(0, other.plan(table, scene.lengths), scene.q, out)
    np.testing.assert_allclose(out, want, rtol=0, atol=3e-6)


def test_pages_that_are_expected_keep_what_is_written_meanwhile(make: Make) -> None:
    backend = make(build_geometry(1, 16, DType.FLOAT16), 4096)
    rng = np.random.default_rng(6)
    pages = np.arange(4096, dtype=np.int32)
    table, slots = np.repeat(pages, 32), np.tile(np.arange(32, dtype=np.int32), 4096)
    values = rng.standard_normal((len(table), 32), np.float32).astype(np.float16)
    for first in range(0, 4096, 64):  # each step's pages are touched while they are written
        backend.expect(first + 64)
        rows = slice(first * 32, (first + 64) * 32)
        backend.append(0, table[rows], slots[rows], values[rows], -values[rows])
    backend.expect(1)
    k, v = np.empty_like(values), np.empty_like(values)
    backend.read(0, pages, 0, len(table), k, v)
    np.testing.assert_array_equal(k, values)
    np.testing.assert_array_equal(v, -values)


def test_the_kernel_has_memory_for_pages_that_are_expected(make: Make) -> None:
    if make is ReferenceBackend:
        pytest.skip("numpy gives pages memory when they are written")
    backend = make(build_geometry(1, 16, DType.FLOAT16), 16384)  # 64 MiB
    before = resident_bytes()
    backend.expect(12288)
    deadline = time.monotonic() + 60.0
    while resident_bytes() - before < 44 << 20:
        assert time.monotonic() < deadline, f"{resident_bytes() - before} bytes were touched"
        time.sleep(0.01)


def resident_bytes() -> int:
    """Return the memory that this process has from the system."""
    num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return num_pages * os.sysconf("SC_PAGE_SIZE")


def bad_appends(backend: AttentionBackend) -> dict[str, Callable[[], object]]:
    one, rows = np.zeros(1, np.int32), np.zeros((1, 64), np.float32)
    at = np.array
    return {
        "layer above": lambda: backend.append(1, one, one, rows, rows),
        "layer below": lambda: backend.append(-1, one, one, rows, rows),
        "page above": lambda: backend.append(0, at([4], np.int32), one, rows, rows),
        "page below": lambda: backend.append(0, at([-1], np.int32), one, rows, rows),
        "slot above": lambda: backend.append(0, one, at([32], np.int32), rows, rows),
        "index type": lambda: backend.append(0, one.astype(np.int64), one, rows, rows),
        "index count": lambda: backend.append(0, np.zeros(2, np.int32), one, rows, rows),
        "columns": lambda: backend.append(0, one, one, rows[:, :63], rows),
        "format": lambda: backend.append(0, one, one, rows.astype(np.float64), rows),
        "rank": lambda: backend.append(0, one, one, rows[0], rows),
        "strided columns": lambda: backend.append(
            0, one, one, np.zeros((1, 128), "f4")[:, ::2], rows
        ),
        "import size": lambda: backend.import_page(0, np.zeros(5, np.uint8)),
        "import page": lambda: backend.import_page(
            4, np.zeros(backend.geometry.page_bytes, np.uint8)
        ),
        "copy": lambda: backend.copy_page(0, 4),
        "copy below": lambda: backend.copy_page(-1, 0),
        "expect more": lambda: backend.expect(5),
        "expect less": lambda: backend.expect(-1),
    }


def bad_reads(backend: AttentionBackend) -> dict[str, Callable[[], object]]:
    table, rows = np.array([0, 1], np.int32), np.zeros((5, 64), np.float32)
    other = np.array([0, 4], np.int32)
    return {
        "read layer": lambda: backend.read(7, table, 0, 5, rows, rows),
        "read past the table": lambda: backend.read(0, table, 60, 65, rows, rows),
        "read backwards": lambda: backend.read(0, table, 5, 0, rows, rows),
        "read from below": lambda: backend.read(0, table, -5, 0, rows, rows),
        "read page": lambda: backend.read(0, other, 30, 35, rows, rows),
        "read rows": lambda: backend.read(0, table, 0, 6, rows, rows),
    }


def bad_plans(backend: AttentionBackend) -> dict[str, Callable[[], object]]:
    table, length = np.array([0], np.int32), np.array([5], np.int32)
    return {
        "long length": lambda: backend.plan([table], np.array([33], np.int32)),
        "negative length": lambda: backend.plan([table], np.array([-1], np.int32)),
        "length type": lambda: backend.plan([table], np.array([5], np.int64)),
        "length count": lambda: backend.plan([table], np.array([5, 5], np.int32)),
        "table page": lambda: backend.plan([np.array([4], np.int32)], length),
        "table page below": lambda: backend.plan([np.array([-1], np.int32)], length),
        "table type": lambda: backend.plan([table.astype(np.int64)], length),
        "starts": lambda: backend.plan([table], length, starts=np.array([-1], np.int32)),
        "starts count": lambda: backend.plan([table], length, starts=np.zeros(2, np.int32)),
        "positions": lambda: backend.plan([table], length, positions=np.array([-1], np.int32)),
    }


def bad_attends(
    backend: AttentionBackend, stranger: AttentionBackend
) -> dict[str, Callable[[], object]]:
    table, length = np.array([0], np.int32), np.array([5], np.int32)
    plan = backend.plan([table], length)
    far = backend.plan([table], length, positions=np.array([40], np.int32))
    empty = backend.plan([table], np.array([0], np.int32))
    foreign = stranger.plan([table], length)
    q, kv, out = (np.zeros((1, n), np.float32) for n in (128, 64, 128))
    locked = out.copy()
    locked.flags.writeable = False
    return {
        "attend layer": lambda: backend.attend(1, plan, q, out),
        "q rows": lambda: backend.attend(0, plan, np.zeros((2, 128), np.float32), out),
        "q columns": lambda: backend.attend(0, plan, q[:, :64], out),
        "out format": lambda: backend.attend(0, plan, q, out.astype(np.int32)),
        "read-only out": lambda: backend.attend(0, plan, q, locked),
        "lse format": lambda: backend.attend(0, plan, q, out, np.zeros((1, 4), np.float16)),
        "lse columns": lambda: backend.attend(0, plan, q, out, np.zeros((1, 3), np.float32)),
        "foreign plan": lambda: backend.attend(0, foreign, q, out),
        "decode far": lambda: backend.decode(0, far, q, kv, kv, out),
        "decode empty": lambda: backend.decode(0, empty, q, kv, kv, out),
        "decode columns": lambda: backend.decode(0, plan, q, kv[:, :8], kv, out),
        "decode v rows": lambda: backend.decode(0, plan, q, kv, np.zeros((2, 64), "f4"), out),
    }


def test_bad_input_raises_value_error_and_changes_nothing(make: Make) -> None:
    geometry = build_geometry(2, 32)
    backend = make(geometry, 4)
    stranger = make(geometry, 4)
    rows = np.ones((32, 64), np.float32)
    slots = np.arange(32, dtype=np.int32)
    backend.append(0, np.zeros(32, np.int32), slots, rows, rows)
    before = backend.export_page(0)
    calls = {
        **bad_appends(backend),
        **bad_reads(backend),
        **bad_plans(backend),
        **bad_attends(backend, stranger),
    }
    accepted = []
    for name, call in calls.items():
        try:
            call()
        except ValueError:
            continue
        accepted.append(name)
    assert accepted == []
    assert (backend.export_page(0) == before).all()


@pytest.mark.parametrize(
    "change",
    [
        {"head_dim": 12},
        {"head_dim": 264},
        {"head_dim": 0},
        {"num_query_heads": 3},
        {"num_query_heads": 34},
        {"num_kv_heads": 0},
        {"page_tokens": 8},
        {"page_tokens": 48},
        {"windows": ()},
        {"windows": (0,)},
    ],
)
def test_an_unsupported_geometry_is_refused(make: Make, change: dict[str, object]) -> None:
    geometry = replace(build_geometry(), **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\d"):
        make(geometry, 4)


@pytest.mark.parametrize(("num_pages", "num_threads"), [(0, 1), (1, 0), (-1, 1)])
def test_no_pages_or_threads_are_refused(make: Make, num_pages: int, num_threads: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        make(build_geometry(), num_pages, num_threads)
