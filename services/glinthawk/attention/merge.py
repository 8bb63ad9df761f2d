"""Joining partial attention results of one query over disjoint token ranges."""

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]


def merge_partials(outs: Float32s, lses: Float32s) -> tuple[Float32s, Float32s]:
    """Merge partial outputs by their log-sum-exp, in the order given.

    Args:
        outs: [parts, rows, query heads, head_dim].
        lses: [parts, rows, query heads]; -inf marks an empty part.

    Returns:
        out [rows, query heads, head_dim] and lse [rows, query heads] of the union.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if outs.ndim != 4 or lses.shape != outs.shape[:3] or not len(outs):
        raise ValueError(f"outs {outs.shape} and lses {lses.shape} do not belong together")
    top = lses.max(axis=0)
    anchor = np.where(np.isneginf(top), np.float32(0), top)
    weights = np.exp(lses - anchor)
    total = weights.sum(axis=0)
    safe = np.where(total > 0, total, np.float32(1))
    out = np.zeros(outs.shape[1:], np.float32)
    for part, weight in zip(outs, weights / safe, strict=True):
        out += part * weight[..., None]
    with np.errstate(divide="ignore"):
        lse = anchor + np.log(total)
    return out, lse.astype(np.float32)
