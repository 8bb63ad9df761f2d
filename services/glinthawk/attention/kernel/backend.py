"""The compiled kernel behind the attention interface.

The extension checks shapes, formats and ranges itself; here only numpy is turned into what it
takes. It must know nothing of sequences or peers.
"""

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from glinthawk.attention.interface import AttentionBackend, BatchPlan, Int32s, Rows
from glinthawk.attention.kernel import _kernel
from glinthawk.core.geometry import KVGeometry

ISA_VARIABLE = "GLINTHAWK_ISA"
"""Environment variable that forces an instruction set."""


def supported_isas() -> list[str]:
    """Return the instruction sets that this CPU and build support, the best first."""
    return _kernel.supported_isas()


def read_bandwidth(
    num_bytes: int, num_threads: int, *, repeats: int = 5, isa: str | None = None
) -> float:
    """Return bytes per second at which threads read fresh memory: attention's ceiling.

    The fastest of `repeats` passes over `num_bytes`.
    """
    return _kernel.read_bandwidth(num_bytes, num_threads, repeats, isa or supported_isas()[0])


class KernelBackend(AttentionBackend):
    """The C++ kernel. `isa` (or GLINTHAWK_ISA) forces an instruction set."""

    def __init__(
        self,
        geometry: KVGeometry,
        num_pages: int,
        num_threads: int,
        *,
        scale: float | None = None,
        isa: str | None = None,
    ) -> None:
        super().__init__(geometry, num_pages, num_threads, scale=scale)
        chosen = isa or os.environ.get(ISA_VARIABLE) or supported_isas()[0]
        self._kernel = _kernel.Kernel(
            num_layers=geometry.num_layers,
            num_query_heads=geometry.num_query_heads,
            num_kv_heads=geometry.num_kv_heads,
            head_dim=geometry.head_dim,
            page_tokens=geometry.page_tokens,
            num_pages=num_pages,
            format=int(geometry.dtype),
            scale=self.scale,
            windows=[window or 0 for window in geometry.windows],
            num_threads=num_threads,
            isa=chosen,
        )
        self.name = f"kernel-{chosen}"

    def append(self, layer: int, pages: Int32s, slots: Int32s, k: Rows, v: Rows) -> None:
        """Write rows; see `AttentionBackend.append`."""
        _check_int32("pages", pages)
        _check_int32("slots", slots)
        self._kernel.append(layer, pages, slots, k, v)

    def plan(
        self,
        page_tables: Sequence[Int32s],
        lengths: Int32s,
        *,
        starts: Int32s | None = None,
        positions: Int32s | None = None,
    ) -> BatchPlan:
        """Build units of work; see `AttentionBackend.plan`."""
        for table in page_tables:
            _check_int32("page table", table)
        for name, values in (("lengths", lengths), ("starts", starts), ("positions", positions)):
            if values is not None:
                _check_int32(name, values)
        offsets = np.zeros(len(page_tables) + 1, np.int64)
        np.cumsum([len(table) for table in page_tables], out=offsets[1:])
        empty = np.empty(0, np.int32)
        tables = np.concatenate([*page_tables, empty])
        return self._kernel.plan(tables, offsets, lengths, starts, positions)

    def attend(
        self,
        layer: int,
        plan: BatchPlan,
        q: Rows,
        out: Rows,
        lse: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Attend; see `AttentionBackend.attend`."""
        _check_writable("out", out)
        if lse is not None:
            _check_writable("lse", lse)
        self._kernel.attend(layer, _own(plan), q, out, lse)

    def decode(self, layer: int, plan: BatchPlan, q: Rows, k: Rows, v: Rows, out: Rows) -> None:
        """Append and attend in one pass over memory; see `AttentionBackend.decode`."""
        _check_writable("out", out)
        self._kernel.decode(layer, _own(plan), q, k, v, out)

    def read(self, layer: int, page_table: Int32s, start: int, stop: int, k: Rows, v: Rows) -> None:
        """Copy tokens out; see `AttentionBackend.read`."""
        _check_int32("page table", page_table)
        _check_writable("k", k)
        _check_writable("v", v)
        self._kernel.read(layer, page_table, start, stop, k, v)

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page; see `AttentionBackend.copy_page`."""
        self._kernel.copy_page(source, target)

    def expect(self, num_pages: int) -> None:
        """Warm pages beside other work; see `AttentionBackend.expect`."""
        super().expect(num_pages)
        self._kernel.expect(num_pages)


def _own(plan: BatchPlan) -> _kernel.Plan:
    if not isinstance(plan, _kernel.Plan):
        raise ValueError("the plan was built by another backend")
    return plan


def _check_int32(name: str, values: Int32s) -> None:
    if values.dtype != np.int32 or values.ndim != 1 or not values.flags.c_contiguous:
        raise ValueError(
            f"{name} is {values.dtype} {values.shape}, expected contiguous int32 of one dimension"
        )


def _check_writable(name: str, rows: Rows) -> None:
    if not rows.flags.writeable:
        raise ValueError(f"{name} is read-only")
