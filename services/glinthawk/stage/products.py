"""The matrix products of a layer and of the output head, in the way that suits the processor.

    qkv(h)                    W_qkv h (+ b)
    add_output(x, o)          x + W_o o (+ b)
    add_feed_forward(x, h)    x + W_down (silu(W_gate h) * (W_up h)) (+ b)

Two ways:

    turned    any device: features are rows, [features, rows]. The weight is the left factor, which
              MKL packs with less work where rows are few beside the weight's; gate and up are
              contiguous, and the down product takes them as they are.
    packed    bfloat16 on CPUs that have its instructions, float32 on those with AVX2: weights
              in the layout that oneDNN computes in, made once; silu, the multiplication by gate and
              (in float32) the addition to the residual happen in the products (ADR 0014, 0015).

What `qkv` returns is valid until the next call of any.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as functional

from glinthawk.errors import InvariantBroken
from glinthawk.models.weights import LayerWeights
from glinthawk.stage.buffers import Buffers
from glinthawk.stage.threads import threads_for

HEAD_TOKENS = 1024
"""Tokens whose logits a CPU computes at a time: their block is turned while it is in the cache."""

PACKED_HEAD_TOKENS = 4096
"""The same for packed products. A block of 256 rows is 4 MiB, which the allocator uses again; of
what is much larger it has new pages from the system each time."""


class LayerProducts(ABC):
    """The products of one layer.

    h and o come in the weights' dtype. x, the residual, is float32 and belongs to the caller; it
    may be changed, and what comes back, float32 too, takes its place: it may be x, or new memory.
    """

    @abstractmethod
    def qkv(self, h: torch.Tensor) -> torch.Tensor:
        """Return q, k and v of h [rows, hidden], before norms and rope: [rows, (Hq + 2 Hkv) D]."""

    @abstractmethod
    def add_output(self, x: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        """Return x [rows, hidden] plus the output projection of o [rows, Hq D]."""

    @abstractmethod
    def add_feed_forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """Return x plus the feed-forward network of h, both [rows, hidden]."""


class Head(ABC):
    """The output head."""

    @abstractmethod
    def write(self, h: torch.Tensor, *, out: torch.Tensor) -> None:
        """Write the logits of h [rows, hidden] into float32 `out` [rows, vocabulary]."""


class TurnedProducts(LayerProducts):
    """Products with features as rows, on any device."""

    def __init__(self, weights: LayerWeights, buffers: Buffers) -> None:
        self._weights = weights
        self._buffers = buffers
        self._intermediate_size = len(weights.gate_up) // 2

    def qkv(self, h: torch.Tensor) -> torch.Tensor:
        """See `LayerProducts`."""
        return self._product("qkv_t", self._weights.qkv, h, self._weights.qkv_bias).t()

    def add_output(self, x: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        """See `LayerProducts`."""
        output = self._product("hidden_t", self._weights.output, o, self._weights.output_bias)
        return _add(x, output.t())

    def add_feed_forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """See `LayerProducts`."""
        weights, size = self._weights, self._intermediate_size
        gate_up = self._product("gate_up_t", weights.gate_up, h, weights.gate_up_bias)
        gate, up = gate_up[:size], gate_up[size:]
        functional.silu(gate, inplace=True).mul_(up)
        return _add(x, self._product("hidden_t", weights.down, gate.t(), weights.down_bias).t())

    def _product(
        self, name: str, weight: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return weight y^T (+ bias) as [out, rows], in the buffer `name`. y: [rows, in]."""
        out = self._buffers.take(name, (len(weight), len(y)), weight.dtype)
        if bias is None:
            return torch.mm(weight, y.t(), out=out)
        return torch.addmm(bias[:, None], weight, y.t(), out=out)


class PackedProducts(LayerProducts):
    """Products of oneDNN over packed weights; keeps nothing of `weights` but biases."""

    def __init__(self, weights: LayerWeights) -> None:
        size = len(weights.gate_up) // 2
        gate_bias = up_bias = None
        if weights.gate_up_bias is not None:
            gate_bias, up_bias = weights.gate_up_bias[:size], weights.gate_up_bias[size:]
        self._qkv = _Packed(weights.qkv, weights.qkv_bias)
        self._output = _Packed(weights.output, weights.output_bias)
        self._gate = _Packed(weights.gate_up[:size], gate_bias)
        self._up = _Packed(weights.gate_up[size:], up_bias)
        self._down = _Packed(weights.down, weights.down_bias)

    def qkv(self, h: torch.Tensor) -> torch.Tensor:
        """See `LayerProducts`."""
        return self._qkv.times(h)

    def add_output(self, x: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        """See `LayerProducts`."""
        return self._output.add_times(x, o)

    def add_feed_forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """See `LayerProducts`."""
        gate = self._gate.times(h, then="swish")
        return self._down.add_times(x, self._up.times_each(h, gate))


class _Packed:
    """A weight [out, in] as oneDNN holds it, and its bias."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = bias

    def times(self, y: torch.Tensor, then: str = "none") -> torch.Tensor:
        """Return y [rows, in] times the weight (+ bias), new [rows, out]. then: none or swish."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            y, self._weight, self._bias, then, [], ""
        )
        return result

    def times_each(self, y: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """Return y times the weight (+ bias), each element times that of `factor` [rows, out]."""
        _check_rows(factor, y)
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            y, factor, self._weight, self._bias, "mul"
        )
        return result

    def add_times(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return float32 x [rows, out] plus y times the weight (+ bias); x may be changed, or be
        what is returned."""
        _check_rows(x, y)
        if y.dtype is not x.dtype:
            return _add(x, self.times(y))
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            y, x, self._weight, self._bias, "add"
        )
        return result


def _check_rows(x: torch.Tensor, y: torch.Tensor) -> None:
    """oneDNN's operators would take what does not fit, and return what means nothing."""
    if len(x) != len(y):
        raise InvariantBroken(f"a product of {len(y)} rows was to be joined with {len(x)} rows")


def _add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Add y to x in place, and return x."""
    with threads_for(x):
        return x.add_(y)


class TurnedHead(Head):
    """The head with features as rows; on a CPU in blocks of `HEAD_TOKENS`."""

    def __init__(self, weight: torch.Tensor, buffers: Buffers) -> None:
        self._weight = weight
        self._buffers = buffers
        self._step = HEAD_TOKENS if weight.device.type == "cpu" else len(weight)

    def write(self, h: torch.Tensor, *, out: torch.Tensor) -> None:
        """See `Head`."""
        for first in range(0, len(self._weight), self._step):
            weight = self._weight[first : first + self._step]
            part = self._buffers.take("logits_t", (len(weight), len(h)), weight.dtype)
            torch.mm(weight, h.t(), out=part)
            out[:, first : first + len(weight)].copy_(part.t())


class PackedHead(Head):
    """The head of oneDNN over packed blocks of `PACKED_HEAD_TOKENS`."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._parts = [_Packed(part) for part in torch.split(weight, PACKED_HEAD_TOKENS)]

    def write(self, h: torch.Tensor, *, out: torch.Tensor) -> None:
        """See `Head`."""
        blocks = torch.split(out, PACKED_HEAD_TOKENS, dim=1)
        for part, block in zip(self._parts, blocks, strict=True):
            block.copy_(part.times(h))


def can_pack(weight: torch.Tensor) -> bool:
    """Tell whether products of this weight are to be packed: see the top of this file."""
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    has_avx2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return weight.dtype is torch.float32 and has_avx2


def build_products(weights: LayerWeights, buffers: Buffers) -> LayerProducts:
    """Return the products of a layer in the faster way; packed ones keep a copy of their own."""
    return PackedProducts(weights) if can_pack(weights.qkv) else TurnedProducts(weights, buffers)


def build_head(weight: torch.Tensor, buffers: Buffers) -> Head:
    """Return the output head of `weight` [vocabulary, hidden] in the faster way."""
    return PackedHead(weight) if can_pack(weight) else TurnedHead(weight, buffers)
