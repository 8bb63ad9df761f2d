"""Attention in plain numpy: slow, and short enough to be read as the definition.

The kernel is checked against it, and a machine without the kernel runs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glinthawk.attention.checks import check_index, check_layer, check_rows, check_tables
from glinthawk.attention.interface import (
    WIRE_TYPES,
    AttentionBackend,
    BatchPlan,
    Int32s,
    Rows,
)
from glinthawk.attention.numeric import from_float32, to_float32
from glinthawk.core.geometry import KVGeometry


@dataclass(frozen=True)
class ReferencePlan:
    """The tables as they were given, checked."""

    owner: "ReferenceBackend"
    page_tables: tuple[Int32s, ...]
    lengths: Int32s
    starts: Int32s
    positions: Int32s

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return len(self.page_tables)


class ReferenceBackend(AttentionBackend):
    """The numpy backend. Pages lie as [layer, page, K or V, token, KV head, head_dim]."""

    name = "reference"

    def __init__(
        self,
        geometry: KVGeometry,
        num_pages: int,
        num_threads: int = 1,
        *,
        scale: float | None = None,
    ) -> None:
        super().__init__(geometry, num_pages, num_threads, scale=scale)
        self._wire = WIRE_TYPES[geometry.dtype]
        self._columns = geometry.num_kv_heads * geometry.head_dim
        shape = (geometry.num_layers, num_pages, 2, geometry.page_tokens, self._columns)
        self._arena: Rows = np.zeros(shape, self._wire)

    def append(self, layer: int, pages: Int32s, slots: Int32s, k: Rows, v: Rows) -> None:
        """Write rows; see `AttentionBackend.append`."""
        check_layer(self.geometry, layer)
        check_index("pages", pages, len(k), self.num_pages)
        check_index("slots", slots, len(k), self.geometry.page_tokens)
        check_rows("k", k, len(k), self._columns)
        check_rows("v", v, len(k), self._columns)
        self._arena[layer, pages, 0, slots] = self._stored(k)
        self._arena[layer, pages, 1, slots] = self._stored(v)

    def plan(
        self,
        page_tables: Sequence[Int32s],
        lengths: Int32s,
        *,
        starts: Int32s | None = None,
        positions: Int32s | None = None,
    ) -> ReferencePlan:
        """Check and keep the tables; see `AttentionBackend.plan`."""
        check_tables(page_tables, lengths, self.num_pages, self.geometry.page_tokens)
        if starts is None:
            starts = np.zeros_like(lengths)
        if positions is None:
            positions = lengths - np.int32(1)
        else:
            check_index("positions", positions, len(lengths), 2**31 - 1)
        check_index("starts", starts, len(lengths), 2**31 - 1)
        tables = tuple(np.array(table, np.int32) for table in page_tables)
        return ReferencePlan(self, tables, lengths.copy(), starts.copy(), positions.copy())

    def attend(
        self,
        layer: int,
        plan: BatchPlan,
        q: Rows,
        out: Rows,
        lse: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Attend row by row; see `AttentionBackend.attend`."""
        own = self._own(plan)
        self._check_attend(layer, own, q, out)
        if lse is not None:
            check_rows("lse", lse, own.num_rows, self.geometry.num_query_heads)
            if lse.dtype != np.float32:
                raise ValueError(f"lse has type {lse.dtype}, not float32")
        window = self.geometry.windows[layer]
        for row in range(own.num_rows):
            stop, position = int(own.lengths[row]), int(own.positions[row])
            start = int(own.starts[row])
            if window is not None:
                start = max(start, position - window + 1)
            result, log_sum = self._attend_row(layer, own.page_tables[row], start, stop, q[row])
            out[row] = from_float32(result, out.dtype)
            if lse is not None:
                lse[row] = log_sum

    def read(self, layer: int, page_table: Int32s, start: int, stop: int, k: Rows, v: Rows) -> None:
        """Copy tokens out; see `AttentionBackend.read`."""
        check_layer(self.geometry, layer)
        if not 0 <= start <= stop:
            raise ValueError(f"token range {start} to {stop} is not one")
        check_tables(
            [page_table], np.array([stop], np.int32), self.num_pages, self.geometry.page_tokens
        )
        check_rows("k", k, stop - start, self._columns)
        check_rows("v", v, stop - start, self._columns)
        stored_k, stored_v = self._tokens(layer, page_table, start, stop)
        k[:] = from_float32(to_float32(stored_k), k.dtype)
        v[:] = from_float32(to_float32(stored_v), v.dtype)

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page; see `AttentionBackend.copy_page`."""
        check_index("pages", np.array([source, target], np.int32), 2, self.num_pages)
        self._arena[:, target] = self._arena[:, source]

    def decode(self, layer: int, plan: BatchPlan, q: Rows, k: Rows, v: Rows, out: Rows) -> None:
        """Append, then attend; see `AttentionBackend.decode`."""
        own = self._own(plan)
        last = own.lengths - np.int32(1)
        if (own.starts > last).any() or (own.positions != last).any():
            raise ValueError(
                "decode needs a plan without positions, and at least one token of each sequence"
            )
        self._check_attend(layer, own, q, out)
        page_tokens = np.int32(self.geometry.page_tokens)
        pages = [
            table[token // page_tokens] for table, token in zip(own.page_tables, last, strict=True)
        ]
        check_rows("k", k, own.num_rows, self._columns)
        self.append(layer, np.array(pages, np.int32), last % page_tokens, k, v)
        self.attend(layer, plan, q, out)

    def _check_attend(self, layer: int, plan: ReferencePlan, q: Rows, out: Rows) -> None:
        columns = self.geometry.num_query_heads * self.geometry.head_dim
        check_layer(self.geometry, layer)
        check_rows("q", q, plan.num_rows, columns)
        check_rows("out", out, plan.num_rows, columns)

    def _own(self, plan: BatchPlan) -> ReferencePlan:
        if not isinstance(plan, ReferencePlan) or plan.owner is not self:
            raise ValueError("the plan was built by another backend")
        return plan

    def _stored(self, rows: Rows) -> Rows:
        return rows if rows.dtype == self._wire else from_float32(to_float32(rows), self._wire)

    def _tokens(self, layer: int, table: Int32s, start: int, stop: int) -> tuple[Rows, Rows]:
        token = np.arange(start, stop)
        pages = table[token // self.geometry.page_tokens]
        slots = token % self.geometry.page_tokens
        return self._arena[layer, pages, 0, slots], self._arena[layer, pages, 1, slots]

    def _attend_row(
        self, layer: int, table: Int32s, start: int, stop: int, q: Rows
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """softmax(scale * q K^T) V of one row: out [heads * head_dim], lse [heads]."""
        g = self.geometry
        if start >= stop:
            empty = np.zeros(g.num_query_heads * g.head_dim, np.float32)
            return empty, np.full(g.num_query_heads, -np.inf, np.float32)
        stored_k, stored_v = self._tokens(layer, table, start, stop)
        # [KV heads, tokens, head_dim] and, for q, [KV heads, query heads of each, head_dim]
        shape = (stop - start, g.num_kv_heads, g.head_dim)
        keys = to_float32(stored_k).reshape(shape).transpose(1, 0, 2)
        values = to_float32(stored_v).reshape(shape).transpose(1, 0, 2)
        queries = to_float32(q).reshape(g.num_kv_heads, -1, g.head_dim)
        scores = np.float32(self.scale) * (queries @ keys.transpose(0, 2, 1))
        top = scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        result = (weights / total) @ values
        return result.reshape(-1), (top + np.log(total)).reshape(-1)
