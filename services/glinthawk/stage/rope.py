"""Rotary position embedding: tables of angles by position, and the rotation.

A head of size D is rotated in D / 2 planes; plane i is spanned by elements i and i + D / 2
("rotate half", as Hugging Face stores q and k):

    y[i]         = x[i] cos(p f[i])         - x[i + D / 2] sin(p f[i])
    y[i + D / 2] = x[i + D / 2] cos(p f[i]) + x[i] sin(p f[i])

The frequencies f, with whatever scaling a model has, come from its configuration. All in
float32, as transformers does.
"""

import numpy as np
import numpy.typing as npt
import torch


class RopeTable:
    """cos and sin of every position below `num_positions`, each float32 [positions, D / 2]."""

    def __init__(
        self,
        inverse_frequencies: npt.NDArray[np.float32],
        num_positions: int,
        device: torch.device,
    ) -> None:
        frequencies = torch.tensor(inverse_frequencies, dtype=torch.float32)
        angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * frequencies
        self._cos = angles.cos().to(device)
        self._sin = angles.sin_().to(device)

    @property
    def num_positions(self) -> int:
        """Positions in the table."""
        return len(self._cos)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin of int64 `positions` [rows], each [rows, D / 2]."""
        return self._cos.index_select(0, positions), self._sin.index_select(0, positions)


def rotate(
    heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, out: torch.Tensor
) -> torch.Tensor:
    """Rotate float32 `heads` [rows, heads, D] into `out` of the same shape (not the same memory).

    cos, sin: [rows, D / 2].
    """
    shape = (*heads.shape[:2], 2, heads.shape[2] // 2)
    halves, rotated = heads.view(shape), out.view(shape)
    rows = len(heads)
    torch.mul(halves, cos.view(rows, 1, 1, -1), out=rotated)
    sin = sin.view(rows, 1, -1)
    rotated[:, :, 0].addcmul_(halves[:, :, 1], sin, value=-1)
    rotated[:, :, 1].addcmul_(halves[:, :, 0], sin)
    return out
