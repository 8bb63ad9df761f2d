from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[Any]
Int32s = npt.NDArray[np.int32]

def supported_isas() -> list[str]: ...
def read_bandwidth(num_bytes: int, num_threads: int, repeats: int, isa: str) -> float: ...

class Plan:
    @property
    def num_rows(self) -> int: ...

class Kernel:
    def __init__(
        self,
        num_layers: int,
        num_query_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_tokens: int,
        num_pages: int,
        format: int,
        scale: float,
        windows: Sequence[int],
        num_threads: int,
        isa: str,
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    def plan(
        self,
        tables: Int32s,
        offsets: npt.NDArray[np.int64],
        lengths: Int32s,
        starts: Int32s | None,
        positions: Int32s | None,
    ) -> Plan: ...
    def attend(
        self, layer: int, plan: Plan, q: Rows, out: Rows, lse: npt.NDArray[np.float32] | None
    ) -> None: ...
    def decode(self, layer: int, plan: Plan, q: Rows, k: Rows, v: Rows, out: Rows) -> None: ...
    def append(self, layer: int, pages: Int32s, slots: Int32s, k: Rows, v: Rows) -> None: ...
    def read(self, layer: int, table: Int32s, start: int, stop: int, k: Rows, v: Rows) -> None: ...
    def copy_page(self, source: int, target: int) -> None: ...
    def expect(self, num_pages: int) -> None: ...
