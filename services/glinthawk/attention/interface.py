"""What an attention backend must do: hold K and V in pages and attend over them.

Two implementations stand behind this interface, the compiled kernel and a plain numpy
reference; one contract suite runs over both. Neither knows sequences, peers or frames: a
sequence is a page table and a length here.

Rows are two-dimensional numpy arrays, one row per token, of a wire format: float32, float16,
or uint16 holding the bits of bfloat16. Rows may be strided (a column slice of an interleaved
buffer), but each row itself is contiguous:

    one decode row    [ q: query heads x head_dim | k: KV heads x head_dim | v: same ]
    head h of a row   columns h * head_dim ... (h + 1) * head_dim

Query head h reads KV head h // (query heads / KV heads).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from glinthawk.core.dtype import DType
from glinthawk.core.geometry import MAX_GROUP, MAX_HEAD_DIM, KVGeometry

WIRE_TYPES: dict[DType, np.dtype[Any]] = {
    DType.FLOAT32: np.dtype(np.float32),
    DType.FLOAT16: np.dtype(np.float16),
    DType.BFLOAT16: np.dtype(np.uint16),
}
"""The numpy type that carries each number format (bfloat16 as its bits)."""

Rows = npt.NDArray[Any]
Int32s = npt.NDArray[np.int32]

SPLIT_TOKENS = 512
"""Token ranges are split at multiples of this, whatever the batch, threads or load, so that
sums are formed in one order and results are the same bit for bit."""


class BatchPlan(Protocol):
    """The plan of one step, built once and used for every layer. Opaque to callers."""

    @property
    def num_rows(self) -> int:
        """Rows (sequences) of the batch."""


class AttentionBackend(ABC):
    """K and V of all layers in an arena of `num_pages` pages, and attention over them.

    Calls are safe from several threads; they run one after another. Everything a backend is
    given is checked before anything is written, so a raised ValueError changed nothing.
    """

    name: str
    """What computes: ``reference``, or ``kernel-`` and the instruction set."""

    def __init__(
        self,
        geometry: KVGeometry,
        num_pages: int,
        num_threads: int,
        *,
        scale: float | None = None,
    ) -> None:
        """Keep the dimensions; memory is only touched when a page is written, or expected.

        Args:
            geometry: dimensions of the cache.
            num_pages: pages of the arena.
            num_threads: threads that attend, the calling one included.
            scale: factor on q . k; None is 1 / sqrt(head_dim).

        Raises:
            ValueError: a dimension is outside what backends support.
        """
        check_geometry(geometry)
        if num_pages < 1 or num_threads < 1:
            raise ValueError(
                f"num_pages {num_pages} and num_threads {num_threads} must be at least 1"
            )
        if scale is not None and not scale > 0:
            raise ValueError(f"scale {scale} must be above 0")
        self.geometry = geometry
        self.num_pages = num_pages
        self.num_threads = num_threads
        self.scale = geometry.head_dim**-0.5 if scale is None else scale

    @abstractmethod
    def append(self, layer: int, pages: Int32s, slots: Int32s, k: Rows, v: Rows) -> None:
        """Write row i of k and v at slot `slots[i]` of page `pages[i]`, in the cache's format.

        Writing a slot again overwrites it. No two rows may name the same slot.

        Args:
            layer: layer to write.
            pages: [n] page of each row.
            slots: [n] token slot within the page, 0 to page_tokens - 1.
            k: [n, KV heads * head_dim].
            v: [n, KV heads * head_dim], the same wire format as k.

        Raises:
            ValueError: a shape, format, layer, page or slot does not fit.
        """

    @abstractmethod
    def plan(
        self,
        page_tables: Sequence[Int32s],
        lengths: Int32s,
        *,
        starts: Int32s | None = None,
        positions: Int32s | None = None,
    ) -> BatchPlan:
        """Build the plan of one step: row i attends to tokens [starts[i], lengths[i]).

        Token t of a table lies in page `table[t // page_tokens]`, slot `t % page_tokens`.

        Args:
            page_tables: a table per sequence; may be longer than its length needs.
            lengths: [n] tokens, the row's own included.
            starts: [n] first token (for a partial result); None is 0.
            positions: [n] position of the query, counted as the table's tokens are, which
                sliding windows count back from; None is lengths - 1. May lie beyond the
                table when later tokens are held elsewhere.

        Raises:
            ValueError: a table is too short for its length, or names no page of the arena.
        """

    @abstractmethod
    def attend(
        self,
        layer: int,
        plan: BatchPlan,
        q: Rows,
        out: Rows,
        lse: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Attend with one query row per sequence; sums are formed in float32.

        A row whose range (cut by the layer's window) is empty gives 0, and -inf as lse.

        Args:
            layer: layer to read.
            plan: from `plan` of this backend.
            q: [n, query heads * head_dim], unscaled.
            out: [n, query heads * head_dim], written; any wire format.
            lse: [n, query heads] written with the natural logarithm of the sum of
                exponentials of the scaled scores, to merge partial results.

        Raises:
            ValueError: a shape, format or layer does not fit, or the plan is another's.
        """

    @abstractmethod
    def read(self, layer: int, page_table: Int32s, start: int, stop: int, k: Rows, v: Rows) -> None:
        """Copy tokens [start, stop) of a table into rows, in token order.

        Args:
            layer: layer to read.
            page_table: the sequence's table.
            start: first token.
            stop: token after the last.
            k: [stop - start, KV heads * head_dim], written; any wire format.
            v: the same for V.

        Raises:
            ValueError: a shape, format, layer, page or range does not fit.
        """

    @abstractmethod
    def copy_page(self, source: int, target: int) -> None:
        """Copy all layers of page `source` over page `target`.

        Raises:
            ValueError: there is no such page.
        """

    def expect(self, num_pages: int) -> None:
        """Say that pages below `num_pages` will be written soon.

        A backend may have the system give them memory meanwhile; what they hold stays.

        Raises:
            ValueError: there are fewer pages.
        """
        if not 0 <= num_pages <= self.num_pages:
            raise ValueError(f"num_pages {num_pages} is not from 0 to {self.num_pages}")

    @abstractmethod
    def decode(self, layer: int, plan: BatchPlan, q: Rows, k: Rows, v: Rows, out: Rows) -> None:
        """Write row i of k and v as the last token of sequence i, then attend with q.

        The usual decode step in one call: `append` at token lengths[i] - 1, and `attend`. No
        two sequences of the plan may hold the same last page.

        Raises:
            ValueError: as `append` and `attend`; or the plan has positions other than
                lengths - 1, or a row whose range is empty.
        """

    def export_page(self, page: int) -> npt.NDArray[np.uint8]:
        """Return a page's content in a layout that any backend imports.

        The layout is [layers][K, V][page_tokens][KV heads][head_dim] of the cache's format.
        """
        content = self._page_buffer()
        table = np.array([page], np.int32)
        for layer in range(self.geometry.num_layers):
            self.read(
                layer, table, 0, self.geometry.page_tokens, content[layer, 0], content[layer, 1]
            )
        return content.view(np.uint8).reshape(-1)

    def import_page(self, page: int, content: npt.NDArray[np.uint8]) -> None:
        """Overwrite a page with what `export_page` returned, here or elsewhere.

        Raises:
            ValueError: the content has not the size of a page, or there is no such page.
        """
        if content.dtype != np.uint8 or content.size != self.geometry.page_bytes:
            raise ValueError(
                f"page content has {content.size} elements of {content.dtype}, "
                f"a page has {self.geometry.page_bytes} bytes"
            )
        rows = np.ascontiguousarray(content).view(WIRE_TYPES[self.geometry.dtype])
        rows = rows.reshape(self._page_shape())
        slots = np.arange(self.geometry.page_tokens, dtype=np.int32)
        pages = np.full_like(slots, page)
        for layer in range(self.geometry.num_layers):
            self.append(layer, pages, slots, rows[layer, 0], rows[layer, 1])

    def _page_shape(self) -> tuple[int, int, int, int]:
        g = self.geometry
        return (g.num_layers, 2, g.page_tokens, g.num_kv_heads * g.head_dim)

    def _page_buffer(self) -> Rows:
        return np.empty(self._page_shape(), WIRE_TYPES[self.geometry.dtype])


def check_geometry(geometry: KVGeometry) -> None:
    """Raise ValueError, naming value and limit, where no backend supports `geometry`."""
    g = geometry
    if g.num_layers < 1 or len(g.windows) != g.num_layers:
        raise ValueError(f"{len(g.windows)} windows given for {g.num_layers} layers")
    if any(window is not None and window < 1 for window in g.windows):
        raise ValueError(f"windows {g.windows} must be at least 1 token, or None")
    if g.num_kv_heads < 1 or g.num_query_heads < 1 or g.num_query_heads % g.num_kv_heads:
        raise ValueError(
            f"{g.num_query_heads} query heads is no multiple of {g.num_kv_heads} KV heads"
        )
    if g.num_query_heads // g.num_kv_heads > MAX_GROUP:
        raise ValueError(
            f"{g.num_query_heads // g.num_kv_heads} query heads per KV head, "
            f"at most {MAX_GROUP} are supported"
        )
    if not 8 <= g.head_dim <= MAX_HEAD_DIM or g.head_dim % 8:
        raise ValueError(f"head_dim {g.head_dim} is no multiple of 8 from 8 to {MAX_HEAD_DIM}")
    if g.page_tokens < 16 or g.page_tokens % 16 or g.page_tokens > SPLIT_TOKENS:
        raise ValueError(
            f"page_tokens {g.page_tokens} is no multiple of 16 from 16 to {SPLIT_TOKENS}"
        )
    if SPLIT_TOKENS % g.page_tokens:
        raise ValueError(f"page_tokens {g.page_tokens} does not divide {SPLIT_TOKENS}")
