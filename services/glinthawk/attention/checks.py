"""Argument checks of the reference; the kernel makes the same ones at its C++ boundary."""

from collections.abc import Sequence

import numpy as np

from glinthawk.attention.interface import WIRE_TYPES, Int32s, Rows
from glinthawk.core.geometry import KVGeometry


def check_layer(geometry: KVGeometry, layer: int) -> None:
    """Raise ValueError unless `layer` is a layer of `geometry`."""
    if not 0 <= layer < geometry.num_layers:
        raise ValueError(f"layer {layer} is not one of {geometry.num_layers}")


def check_rows(name: str, rows: Rows, num_rows: int, num_columns: int) -> None:
    """Raise ValueError unless `rows` is [num_rows, num_columns] of a wire format."""
    if rows.dtype not in WIRE_TYPES.values():
        raise ValueError(f"{name} has type {rows.dtype}, not float32, float16 or uint16")
    if rows.shape != (num_rows, num_columns):
        raise ValueError(f"{name} has shape {rows.shape}, expected {(num_rows, num_columns)}")
    if num_rows and rows.strides[1] != rows.itemsize:
        raise ValueError(f"{name} has rows that are not contiguous")


def check_index(name: str, values: Int32s, num_rows: int, limit: int) -> None:
    """Raise ValueError unless `values` is [num_rows] of int32, each from 0 to limit - 1."""
    if values.dtype != np.int32 or values.shape != (num_rows,):
        raise ValueError(f"{name} is {values.dtype} {values.shape}, expected int32 ({num_rows},)")
    if num_rows and not (values.min() >= 0 and values.max() < limit):
        raise ValueError(f"{name} has values outside 0 to {limit - 1}")


def check_tables(
    page_tables: Sequence[Int32s], lengths: Int32s, num_pages: int, page_tokens: int
) -> None:
    """Raise ValueError unless each table holds its length in pages of the arena."""
    check_index("lengths", lengths, len(page_tables), 2**31 - 1)
    for row, (table, length) in enumerate(zip(page_tables, lengths, strict=True)):
        if table.ndim != 1 or len(table) * page_tokens < length:
            raise ValueError(
                f"page table {row} of shape {table.shape} does not hold {length} tokens"
            )
        check_index(f"page table {row}", table, len(table), num_pages)
