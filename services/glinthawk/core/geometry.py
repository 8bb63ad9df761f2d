"""Shape of the KV cache: what the gateway, the stages and the workers must agree on.

A page holds `page_tokens` tokens of K and V for all layers, so one page table serves every
layer, and the gateway can mirror a worker's arithmetic from these few numbers.
"""

from dataclasses import dataclass

from glinthawk.core.dtype import DType

PAGE_TOKENS = 32
"""Tokens per page. At a mean of 1,000 tokens half a page of 32 wastes 1.6%."""


MAX_GROUP = 16
"""Most query heads that may share a KV head."""

MAX_HEAD_DIM = 256
"""Largest head size; sizes are multiples of 8."""


@dataclass(frozen=True)
class KVGeometry:
    """Dimensions of a KV cache. `windows[l]` is the sliding window of layer l in tokens
    (a token sees itself and the window - 1 before it), or None for full attention."""

    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: DType
    windows: tuple[int | None, ...]
    page_tokens: int = PAGE_TOKENS

    @property
    def token_bytes(self) -> int:
        """Bytes of K and V of one token, all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return self.token_bytes * self.page_tokens

    def num_pages(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_tokens)

    def pages_in(self, memory_bytes: int) -> int:
        """Whole pages that fit into `memory_bytes`."""
        return memory_bytes // self.page_bytes
