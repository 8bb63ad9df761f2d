"""The cells of the attention benchmark: each reads more than the caches hold."""

import pytest

from glinthawk.bench.attention import build_cells, quick_settings

MIB = 1 << 20


@pytest.mark.parametrize("cache_mib", [1, 32, 480, 1024])
def test_every_shape_has_a_cell_of_four_caches(cache_mib: int) -> None:
    settings, cache_bytes = quick_settings(), cache_mib * MIB
    cells = list(build_cells(settings, cache_bytes))
    shapes = {(c.context, c.batch, c.geometry.head_dim) for c in cells}
    assert {(512, 8, 64), (8192, 64, 128)} <= shapes
    assert len(cells) == 24
    limit = max(settings.arena_bytes, 5 * cache_bytes)
    assert all(4 * cache_bytes <= cell.kv_bytes <= limit for cell in cells)
