"""Attention inside packed prompts, on the stage's device.

A prefill step's rows are whole prompts, or chunks of them, one after another; a row sees the
rows of its own sequence up to itself, and the K and V of earlier chunks that the attention
worker sent back:

    earlier K, V   A A A A            starts = [4, 0]
    rows           A A A B B B B B    counts = [3, 5]

Short whole prompts are attended in batches of about equal length, the shorter ones padded at the
end, where a causal mask hides the padding from every real row. Long ones, and chunks that have
earlier K and V, are attended one by one, in blocks of queries where a mask must be in memory.

On a CPU the sums are float32 whatever the activations are; on a GPU its kernels' own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional

from glinthawk.core.step import StepPlan
from glinthawk.errors import InvariantBroken
from glinthawk.models.config import ModelConfig
from glinthawk.stage.device import ComputePolicy

SHORT_ROWS = 256
"""Prompts up to this many rows are attended in batches."""

PADDING = 1.25
"""A batch's longest prompt has at most this many times the rows of its shortest."""

BLOCK_ROWS = 512
"""Queries that are attended together where a mask is needed."""


@dataclass(frozen=True)
class _Batch:
    """Prompts of about equal length, all from position 0.

    index: int64 [sequences x longest], the row of each place (a padded place has the
    sequence's last row). is_real: bool of the same length, None where nothing is padded.
    """

    num_sequences: int
    longest: int
    index: torch.Tensor
    is_real: torch.Tensor | None


@dataclass(frozen=True)
class _Single:
    """One sequence: its rows [first, last), and its earlier rows, which begin at `earlier`."""

    first: int
    last: int
    start: int
    earlier: int


@dataclass(frozen=True)
class _Layout:
    batches: tuple[_Batch, ...]
    singles: tuple[_Single, ...]
    num_rows: int
    num_earlier: int


class PrefillAttention:
    """Causal attention (sliding windows, grouped query heads) over the rows of prefill steps."""

    def __init__(self, config: ModelConfig, policy: ComputePolicy) -> None:
        self._config = config
        self._policy = policy
        on_cpu = policy.device.type == "cpu"
        self._dtype = torch.float32 if on_cpu else policy.activations
        # GPU kernels that take a mask know no grouped heads; there K and V are repeated.
        self._groups_heads = on_cpu
        self._planned: StepPlan | None = None
        self._layout = _Layout((), (), 0, 0)

    @torch.inference_mode()
    def attend(
        self,
        layer: int,
        qkv: torch.Tensor,
        plan: StepPlan,
        earlier: memoryview | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return attention's output of every row of `plan`: a new [rows, Hq D].

        qkv: [rows, (Hq + 2 Hkv) D], activation dtype. earlier: K and V of the positions below
        plan.starts, sequences packed in order, [sum of starts, 2 Hkv D] in the activation
        dtype (as bytes, or as a tensor); may be left out if every start is 0.

        Raises:
            InvariantBroken: the rows of `qkv` or `earlier` are not the plan's.
        """
        layout = self._layout_of(plan)
        window = self._config.windows[layer]
        rows = self._earlier_rows(earlier, layout.num_earlier)
        if len(qkv) != layout.num_rows:
            raise InvariantBroken(f"{len(qkv)} rows of qkv came for {layout.num_rows} in the plan")
        output = torch.empty(
            layout.num_rows, self._config.query_size, dtype=qkv.dtype, device=qkv.device
        )
        for batch in layout.batches:
            self._attend_batch(batch, qkv, window, output)
        for single in layout.singles:
            self._attend_single(single, qkv, rows, window, output)
        return output

    def _layout_of(self, plan: StepPlan) -> _Layout:
        """Return how the plan's sequences are attended: the same for all its layers."""
        if self._planned is not plan:
            self._layout = _build_layout(
                plan.starts.astype(np.int64), plan.counts.astype(np.int64), self._policy.device
            )
            self._planned = plan
        return self._layout

    def _earlier_rows(
        self, earlier: memoryview | torch.Tensor | None, num_rows: int
    ) -> torch.Tensor:
        width = 2 * self._config.kv_size
        if earlier is None:
            earlier = torch.empty(0, width, dtype=self._policy.activations)
        elif not isinstance(earlier, torch.Tensor):
            writable = bytearray(earlier) if earlier.readonly else earlier
            earlier = (
                torch.frombuffer(writable, dtype=self._policy.activations)
                if earlier.nbytes
                else torch.empty(0, dtype=self._policy.activations)
            )
        if earlier.numel() != num_rows * width:
            raise InvariantBroken(
                f"{earlier.numel() / width:g} rows of earlier K and V came for {num_rows}"
            )
        return earlier.view(num_rows, width).to(self._policy.device)

    def _attend_batch(
        self, batch: _Batch, qkv: torch.Tensor, window: int | None, output: torch.Tensor
    ) -> None:
        config, shape = self._config, (batch.num_sequences, batch.longest)
        rows = qkv.index_select(0, batch.index).view(*shape, -1)
        q, kv = rows[..., : config.query_size], rows[..., config.query_size :]
        mask = None
        if window is not None and window < batch.longest:
            mask = _visible(0, batch.longest, 0, batch.longest, window, qkv.device)
        attended = self._attend(q, kv, mask).to(output.dtype)
        index = batch.index
        if batch.is_real is not None:
            attended, index = attended[batch.is_real], index[batch.is_real]
        output.index_copy_(0, index, attended)

    def _attend_single(
        self,
        single: _Single,
        qkv: torch.Tensor,
        earlier: torch.Tensor,
        window: int | None,
        output: torch.Tensor,
    ) -> None:
        config = self._config
        rows = qkv[single.first : single.last]
        kv = rows[:, config.query_size :]
        if single.start:
            kv = torch.cat([earlier[single.earlier : single.earlier + single.start], kv])
        count, end = len(rows), single.start + len(rows)
        needs_mask = single.start > 0 or (window is not None and window < end)
        block = BLOCK_ROWS if needs_mask else count
        for first in range(0, count, block):
            last = min(first + block, count)
            position = single.start + first
            lowest = 0 if window is None else max(0, position - window + 1)
            keys = kv[lowest : single.start + last]
            mask = None
            if needs_mask:
                mask = _visible(
                    position, single.start + last, lowest, len(keys), window, qkv.device
                )
            q = rows[None, first:last, : config.query_size]
            attended = self._attend(q, keys[None], mask)
            output[single.first + first : single.first + last] = attended

    def _attend(self, q: torch.Tensor, kv: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Attend [sequences, queries, Hq D] to [sequences, keys, 2 Hkv D]; causal without a mask.

        Returns [sequences x queries, Hq D].
        """
        config = self._config
        q, k, v = (
            x.view(*x.shape[:2], -1, config.head_dim).transpose(1, 2).to(self._dtype)
            for x in (q, kv[..., : config.kv_size], kv[..., config.kv_size :])
        )
        group = config.num_query_heads // config.num_kv_heads
        if group > 1 and not self._groups_heads:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        attended = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            scale=config.attention_scale,
            enable_gqa=group > 1 and self._groups_heads,
        )
        return attended.transpose(1, 2).reshape(-1, config.query_size)


def _visible(
    first: int, last: int, lowest: int, num_keys: int, window: int | None, device: torch.device
) -> torch.Tensor:
    """Return which keys (positions from `lowest`) the queries [first, last) see: bool [q, k]."""
    queries = torch.arange(first, last, device=device)[:, None]
    keys = torch.arange(lowest, lowest + num_keys, device=device)
    visible = keys <= queries
    return visible if window is None else visible & (keys > queries - window)


def _build_layout(
    starts: np.ndarray[tuple[int], np.dtype[np.int64]],
    counts: np.ndarray[tuple[int], np.dtype[np.int64]],
    device: torch.device,
) -> _Layout:
    ends, earlier_ends = np.cumsum(counts), np.cumsum(starts)
    is_short = (starts == 0) & (counts <= SHORT_ROWS) & (counts > 0)
    singles = tuple(
        _Single(
            first=int(ends[i] - counts[i]),
            last=int(ends[i]),
            start=int(starts[i]),
            earlier=int(earlier_ends[i] - starts[i]),
        )
        for i in np.flatnonzero(~is_short & (counts > 0)).tolist()
    )
    short = np.flatnonzero(is_short)
    batches = tuple(
        _build_batch((ends - counts)[chosen], counts[chosen], device)
        for chosen in _group(short, counts[short])
    )
    return _Layout(batches, singles, int(counts.sum()), int(starts.sum()))


def _group(
    sequences: np.ndarray[tuple[int], np.dtype[np.int64]],
    counts: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> Iterator[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Yield sequences of about equal length together, shortest first."""
    order = np.argsort(counts, kind="stable")
    sorted_counts = counts[order]
    first = 0
    while first < len(order):
        limit = int(sorted_counts[first] * PADDING)
        last = int(np.searchsorted(sorted_counts, limit, side="right"))
        yield sequences[np.sort(order[first:last])]
        first = last


def _build_batch(
    first_rows: np.ndarray[tuple[int], np.dtype[np.int64]],
    counts: np.ndarray[tuple[int], np.dtype[np.int64]],
    device: torch.device,
) -> _Batch:
    longest = int(counts.max())
    places = np.minimum(np.arange(longest), counts[:, None] - 1)
    index = (first_rows[:, None] + places).reshape(-1)
    is_real = None
    if int(counts.min()) < longest:
        real = (np.arange(longest) < counts[:, None]).reshape(-1)
        is_real = torch.from_numpy(real).to(device)
    return _Batch(len(counts), longest, torch.from_numpy(index).to(device), is_real)
