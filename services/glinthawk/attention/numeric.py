"""Number formats in numpy, which has no bfloat16: its bits travel as uint16."""

from typing import Any

import numpy as np
import numpy.typing as npt


def to_float32(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Widen float32, float16, or bfloat16 bits (uint16) to float32; exact."""
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32)


def from_float32(values: npt.NDArray[np.float32], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Round float32 to `dtype` (uint16: bfloat16 bits), to nearest, ties to even."""
    if dtype != np.uint16:
        with np.errstate(over="ignore"):
            return values.astype(dtype)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    quiet = (bits >> 16) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)
